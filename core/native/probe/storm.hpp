// SPDX-License-Identifier: GPL-2.0-or-later
// A test of a machine from outside: interrupt messages at random moments, each waited for.
#pragma once

#include <cstdint>
#include <vector>

#include "host/host.hpp"

namespace coremesh {

/// What to send. The guest counts the messages of each kind in a 32-bit word of its RAM: message data
/// `kinds[i]` at `counters + 4 * i`.
struct Storm {
    unsigned vcpu = 0;     ///< for bare kicks
    uint64_t address = 0;  ///< of the messages
    std::vector<uint32_t> kinds;
    uint64_t counters = 0;     ///< guest-physical
    uint64_t messages = 0;     ///< how many at most,
    double seconds = 0;        ///< or until this time is over
    double patience = 0;       ///< seconds after which a message is called lost
    unsigned kicks = 0;        ///< the most kicks without a message after each message
    unsigned longest_gap = 0;  ///< ns between a message's arrival and the next one, at most
    uint64_t seed = 0;
};

struct StormOutcome {
    uint64_t messages = 0, kicks = 0;
    int64_t longest_ns = 0;  ///< from sending to the change of the counter
    bool lost = false;       ///< the last one sent did not arrive within the patience
    bool surplus = false;    ///< a counter moved by more than one
};

/// One message is under way at a time, so that none can merge with another that is pending: a counter that
/// does not move is a lost interrupt. On the calling thread; the machine runs.
StormOutcome run_storm(Host& host, const Storm& storm);

}  // namespace coremesh
