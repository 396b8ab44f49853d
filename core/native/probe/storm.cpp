// SPDX-License-Identifier: GPL-2.0-or-later
#include "probe/storm.hpp"

#include <sched.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "base/clock.hpp"

namespace coremesh {

namespace {

constexpr unsigned kLooksPerYield = 2000;

}  // namespace

StormOutcome run_storm(Host& host, const Storm& storm) {
    const uint64_t words = storm.kinds.size();
    if (!words || !host.ram().offset_of(storm.counters, 4 * words)) {
        throw std::out_of_range("the counters of the storm are not in guest RAM");
    }
    Vcpu& vcpu = host.vcpu(storm.vcpu);
    const auto* counters = reinterpret_cast<const uint32_t*>(host.ram().protocol_view(storm.counters));
    std::mt19937_64 random(storm.seed);
    const int64_t end = Clock::monotonic_ns() + static_cast<int64_t>(storm.seconds * 1e9);
    const auto patience = static_cast<int64_t>(storm.patience * 1e9);
    StormOutcome outcome;
    while (outcome.messages < storm.messages && Clock::monotonic_ns() < end) {
        const uint64_t kind = random() % words;
        const uint32_t before = __atomic_load_n(&counters[kind], __ATOMIC_ACQUIRE);
        const int64_t sent = Clock::monotonic_ns();
        host.platform().message(storm.address, storm.kinds[kind]);
        outcome.messages++;
        uint32_t now;
        for (unsigned looks = 1;; looks++) {
            now = __atomic_load_n(&counters[kind], __ATOMIC_ACQUIRE);
            if (now != before) break;
            if (looks % kLooksPerYield) continue;
            if (Clock::monotonic_ns() - sent > patience) {
                outcome.lost = true;
                return outcome;
            }
            sched_yield();
        }
        const int64_t arrived = Clock::monotonic_ns();
        outcome.longest_ns = std::max(outcome.longest_ns, arrived - sent);
        if (now != before + 1) {
            outcome.surplus = true;
            return outcome;
        }
        for (uint64_t kicks = storm.kicks ? random() % (storm.kicks + 1) : 0; kicks; kicks--) {
            vcpu.kick();
            outcome.kicks++;
        }
        // Short gaps more often than long ones: the handler's way out is as interesting as the loop.
        const uint64_t gap = storm.longest_gap ? (random() % storm.longest_gap) >> (random() % 8) : 0;
        while (Clock::monotonic_ns() - arrived < static_cast<int64_t>(gap)) {
        }
    }
    return outcome;
}

}  // namespace coremesh
