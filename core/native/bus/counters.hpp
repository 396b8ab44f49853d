// SPDX-License-Identifier: GPL-2.0-or-later
// What the two ends of a device access between hosts count.
#pragma once

#include "base/counters.hpp"

namespace coremesh {

#define COREMESH_REMOTE_NODE_COUNTERS(X)                                                             \
    X(device_asked, "requests", "for which a vCPU waited")                                           \
    X(device_posted, "requests", "for which none waited: ends of interrupts")                        \
    X(device_held_back, "times", "a vCPU waited because too many ends of interrupts were under way") \
    X(device_waited_ns, "ns", "that vCPUs slept for answers, together")                              \
    X(device_strays, "messages", "that answered nothing that was asked")                             \
    X(device_cut_off, "requests", "ended without an answer, because their host or the machine stops")

#define COREMESH_NODE_SERVER_COUNTERS(X)                                       \
    X(device_served, "requests", "of other hosts, done")                       \
    X(device_refused, "messages", "that no vCPU sends, or one too many")       \
    X(device_unanswered, "requests", "done, but the answer could not be sent") \
    X(device_queue, "requests", "that wait at this moment")                    \
    X(device_queue_longest, "requests", "the most that have waited at once")   \
    X(device_queued_ns, "ns", "that requests waited for a worker, together")   \
    X(device_called_ns, "ns", "in the devices' code for other hosts")

struct NodeServerCounters {
    COREMESH_COUNTER_WORDS(COREMESH_NODE_SERVER_COUNTERS)
};
COREMESH_SHARED_COUNTERS(RemoteNode, COREMESH_REMOTE_NODE_COUNTERS)
COREMESH_VISIT_COUNTERS(NodeServerCounters, COREMESH_NODE_SERVER_COUNTERS)

}  // namespace coremesh
