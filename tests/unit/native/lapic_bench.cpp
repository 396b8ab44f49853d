// SPDX-License-Identifier: GPL-2.0-or-later
// What the hot operations cost. Prints, and asserts nothing: figures depend on the host.
#include <algorithm>

#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

namespace {

template <typename Operation>
void measure(const char* name, Operation&& operation) {
    constexpr int kTimes = 200'000;
    double best = 1e9;
    for (int attempt = 0; attempt < 5; ++attempt) {
        const auto begin = std::chrono::steady_clock::now();
        for (int count = 0; count < kTimes; ++count) operation();
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
        best = std::min(best, took.count() / kTimes);
    }
    std::printf("  %-58s %8.1f ns\n", name, best);
    std::fflush(stdout);
}

}  // namespace

STORY("cost of the hot operations, best of five") {
    Apic apic;
    Lapic& lapic = apic.lapic;
    [[maybe_unused]] volatile int sink = 0;
    measure("highest_pending, nothing pending", [&] { sink = lapic.highest_pending(); });
    measure("accept + acknowledge + EOI, one thread", [&] {
        apic.accept(0x41);
        sink = lapic.acknowledge();
        lapic.write(kEoi, 0);
    });
    apic.accept(0x41);
    measure("accept of a vector that is already pending", [&] { apic.accept(0x41); });
    measure("highest_pending, one pending", [&] { sink = lapic.highest_pending(); });
    lapic.acknowledge();
    lapic.write(kEoi, 0);
    measure("clock read", [&] { sink = static_cast<int>(apic.clock.tsc()); });

    lapic.write(kLvtTimer, kTscDeadline | 0x41);
    const uint64_t far = apic.clock.tsc() + apic.clock.hz() * 100;
    uint64_t step = 0;
    lapic.write_msr(kMsrDeadline, far);
    measure("TSC-deadline moved later", [&] { lapic.write_msr(kMsrDeadline, far + ++step); });
    measure("TSC-deadline disarmed and armed", [&] {
        lapic.write_msr(kMsrDeadline, 0);
        lapic.write_msr(kMsrDeadline, far);
    });
    lapic.write_msr(kMsrDeadline, 0);

    std::atomic<bool> over{false};
    std::thread other([&] {
        while (!over.load(std::memory_order_relaxed)) {
            if (lapic.acknowledge() >= 0) lapic.write(kEoi, 0);
        }
    });
    measure("accept while another thread acknowledges", [&] { apic.accept(0x41); });
    over.store(true);
    other.join();
}

RUN_STORIES()
