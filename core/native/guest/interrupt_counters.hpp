// SPDX-License-Identifier: GPL-2.0-or-later
// What a platform counts of the interrupts between hosts.
#pragma once

#include "base/counters.hpp"

namespace coremesh {

#define COREMESH_INTERRUPT_COUNTERS(X)                                                    \
    X(interrupts_sent, "messages", "sent to other hosts")                                 \
    X(interrupts_received, "messages", "received from other hosts")                       \
    X(interrupts_passed_on, "messages", "for one core of several, none of which is here") \
    X(interrupts_unclaimed, "messages", "for one core of several, none of which took it") \
    X(interrupts_refused, "messages", "that no host sends, or not that host")             \
    X(interrupts_lost, "messages", "could not be sent: the destination has gone")

COREMESH_SHARED_COUNTERS(Interrupt, COREMESH_INTERRUPT_COUNTERS)

}  // namespace coremesh
