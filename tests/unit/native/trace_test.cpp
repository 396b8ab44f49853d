// SPDX-License-Identifier: GPL-2.0-or-later
// The ring of the last protocol messages: it wraps, and may be read while it is written.
#include "coherence/trace.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <thread>

#include "check.hpp"

using coremesh::Access;
using coremesh::coherence::Message;
using coremesh::coherence::Trace;
using coremesh::coherence::TraceEntry;

namespace {

/// Every word says the same number: an entry that is half old and half new would be seen.
TraceEntry entry(uint64_t number) {
    return {.time_ns = static_cast<int64_t>(number),
            .page = number,
            .serial = number,
            .kind = static_cast<uint8_t>(number % 17),
            .sent = number % 2 != 0,
            .rejected = number % 3 == 0,
            .peer = static_cast<uint8_t>(number % 64),
            .requester = static_cast<uint8_t>((number + 1) % 64),
            .flags = static_cast<uint8_t>(number),
            .before = static_cast<Access>(number % 3),
            .after = static_cast<Access>((number + 1) % 3)};
}

}  // namespace

STORY("given an empty ring, or fewer messages than it holds, then it gives these, oldest first") {
    static Trace trace;
    CHECK(trace.last(10).empty());
    for (uint64_t number = 0; number < 5; ++number) trace.note(entry(number));
    CHECK_EQ(trace.last(100).size(), 5u);
    CHECK(trace.last(2)[0] == entry(3));
    CHECK(trace.last(2)[1] == entry(4));
    CHECK(trace.last(0).empty());
}

STORY("given more messages than the ring holds, then it gives the last ones") {
    static Trace trace;
    for (uint64_t number = 0; number < 3 * Trace::kEntries + 7; ++number) trace.note(entry(number));
    const auto last = trace.last(SIZE_MAX);
    CHECK_EQ(last.size(), Trace::kEntries);
    for (size_t index = 0; index < last.size(); ++index) {
        CHECK(last[index] == entry(2 * Trace::kEntries + 7 + index));
    }
    CHECK_EQ(trace.noted(), 3 * Trace::kEntries + 7);
}

STORY(
    "given a thread that writes without a pause, when others read, then each entry that they see is whole") {
    static Trace trace;
    std::atomic<bool> stop{false};
    std::thread writer([&] {
        for (uint64_t number = 0; !stop.load(std::memory_order_relaxed); ++number) trace.note(entry(number));
    });
    std::atomic<uint64_t> seen{0}, wrong{0};
    const auto reader = [&] {
        while (seen.load(std::memory_order_relaxed) < 200'000) {
            uint64_t before = 0;
            for (const TraceEntry& one : trace.last(Trace::kEntries)) {
                if (!(one == entry(one.page)) || (before != 0 && one.page <= before)) ++wrong;
                before = one.page;
                ++seen;
            }
        }
    };
    std::thread first(reader), second(reader);
    first.join();
    second.join();
    stop = true;
    writer.join();
    CHECK_EQ(wrong, 0u);
}

STORY("given a message, then noting it costs some nanoseconds") {
    static Trace trace;
    // The best of many short batches: a busy machine takes the processor away in the midst of some.
    constexpr uint64_t kBatches = 200, kTimes = 1000;
    double best = 1e9;
    for (uint64_t batch = 0; batch < kBatches; ++batch) {
        const auto start = std::chrono::steady_clock::now();
        for (uint64_t number = 0; number < kTimes; ++number) trace.note(entry(number));
        const auto took = std::chrono::steady_clock::now() - start;
        best = std::min(best, std::chrono::duration<double, std::nano>(took).count() / kTimes);
    }
    std::printf("noting a message: %.1f ns\n", best);
    CHECK(best < 2000);  // under a sanitizer too; a system call would cost more
}

RUN_STORIES()
