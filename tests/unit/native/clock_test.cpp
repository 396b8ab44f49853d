// SPDX-License-Identifier: GPL-2.0-or-later
// Guest time: its rate, its order between threads, and its conversions.
#include "base/clock.hpp"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <thread>
#include <vector>

#include "check.hpp"

using coremesh::Clock;

namespace {

double measured_hz(const Clock& clock) {
    const int64_t begin_ns = Clock::monotonic_ns();
    const uint64_t begin = clock.tsc();
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    const int64_t end_ns = Clock::monotonic_ns();
    const uint64_t end = clock.tsc();
    return static_cast<double>(end - begin) * 1e9 / static_cast<double>(end_ns - begin_ns);
}

/// A preemption between two reads can spoil one try; it does not spoil five.
bool close_to(const Clock& clock, double hz, double tolerance) {
    for (int attempt = 0; attempt < 5; ++attempt) {
        const double ratio = measured_hz(clock) / hz;
        if (ratio > 1 - tolerance && ratio < 1 + tolerance) return true;
    }
    return false;
}

}  // namespace

STORY("given the host's own rate, then hz() is what a stopwatch measures, in whole kilohertz") {
    const Clock clock;
    std::cout << "  " << (clock.from_host_tsc() ? "host TSC, " : "CLOCK_MONOTONIC, ") << clock.hz()
              << " Hz\n";
    CHECK_EQ(clock.hz() % 1000, 0u);
    CHECK(close_to(clock, static_cast<double>(clock.hz()), 0.001));
}

STORY("given a rate promised to the guest, faster or slower than the host's, then the clock keeps it") {
    for (const uint64_t hz : {1'000'000'000u, 3'000'000'000u}) {
        const Clock clock(hz);
        CHECK_EQ(clock.hz(), hz);
        CHECK(close_to(clock, static_cast<double>(hz), 0.001));
    }
}

STORY("given a span on one thread, then its ticks are as many nanoseconds as a stopwatch says") {
    double ratio = 0;
    for (int attempt = 0; attempt < 5 && (ratio < 0.999 || ratio > 1.001); ++attempt) {
        const int64_t begin_ns = Clock::monotonic_ns();
        const uint64_t begin = Clock::span_ticks();
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
        const uint64_t ticks = Clock::span_ticks() - begin;
        ratio = static_cast<double>(Clock::span_ns(ticks)) /
                static_cast<double>(Clock::monotonic_ns() - begin_ns);
    }
    CHECK(ratio > 0.999 && ratio < 1.001);
}

STORY("given a new clock, then it begins at its start value") {
    const Clock zero, later(0, uint64_t{1} << 40);
    CHECK(zero.tsc() < zero.ticks(1'000'000'000));
    CHECK(later.tsc() >= uint64_t{1} << 40);
    CHECK(later.tsc() - (uint64_t{1} << 40) < later.ticks(1'000'000'000));
}

STORY("given two threads that hand a value to and fro, then time never runs backwards between them") {
    for (const uint64_t hz : {uint64_t{0}, uint64_t{2'999'999'999}}) {
        const Clock clock(hz);
        std::atomic<uint64_t> latest{0};
        std::atomic<uint64_t> backwards{0};
        std::vector<std::thread> threads;
        for (int index = 0; index < 3; ++index) {
            threads.emplace_back([&] {
                for (int round = 0; round < 200'000; ++round) {
                    uint64_t seen = latest.load(std::memory_order_acquire);
                    const uint64_t now = clock.tsc();
                    if (now < seen) backwards.fetch_add(1);
                    while (seen < now && !latest.compare_exchange_weak(seen, now)) {
                    }
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK_EQ(backwards, 0u);
    }
}

STORY(
    "given a moment of the TSC ten milliseconds ahead, when it is converted to nanoseconds, then so far "
    "ahead "
    "it is") {
    const Clock clock;
    bool close = false;
    for (int attempt = 0; attempt < 20 && !close; ++attempt) {
        const uint64_t moment = clock.tsc() + clock.hz() / 100;
        const int64_t ahead = clock.monotonic_at(moment) - Clock::monotonic_ns();
        close = std::llabs(ahead - 10'000'000) < 20'000;
    }
    CHECK(close);
}

STORY("given moments at the ends of the range, then conversions saturate") {
    const Clock clock;
    CHECK_EQ(clock.monotonic_at(std::numeric_limits<uint64_t>::max()) < 0, false);
    CHECK(clock.monotonic_at(std::numeric_limits<uint64_t>::max()) > Clock::monotonic_ns());
    CHECK(clock.monotonic_at(0) <= Clock::monotonic_ns());
    const Clock slow(1'000'000);
    CHECK_EQ(slow.monotonic_at(std::numeric_limits<uint64_t>::max()), std::numeric_limits<int64_t>::max());
}

RUN_STORIES()
