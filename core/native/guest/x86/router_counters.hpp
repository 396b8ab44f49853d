// SPDX-License-Identifier: GPL-2.0-or-later
// What the interrupt router counts.
#pragma once

#include "base/counters.hpp"

namespace coremesh::x86 {

#define COREMESH_ROUTER_COUNTERS(X)                                                       \
    X(interrupts_sent, "messages", "sent to other hosts")                                 \
    X(interrupts_received, "messages", "received from other hosts")                       \
    X(interrupts_passed_on, "messages", "for one APIC of several, none of which is here") \
    X(interrupts_unclaimed, "messages", "for one APIC of several, none of which took it") \
    X(interrupts_refused, "messages", "that no host sends, or not that host")             \
    X(interrupts_lost, "messages", "could not be sent: the destination has gone")

struct RouterCounters {
    COREMESH_COUNTER_WORDS(COREMESH_ROUTER_COUNTERS)
};
struct RouterAtomics {
    COREMESH_COUNTER_ATOMICS(COREMESH_ROUTER_COUNTERS)
};
COREMESH_VISIT_COUNTERS(RouterCounters, COREMESH_ROUTER_COUNTERS)
COREMESH_READ_COUNTERS(RouterCounters, RouterAtomics, COREMESH_ROUTER_COUNTERS)

}  // namespace coremesh::x86
