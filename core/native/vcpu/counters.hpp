// SPDX-License-Identifier: GPL-2.0-or-later
// What a vCPU's thread counts. Beside it the engine counts (tcg/engine.h).
#pragma once

#include "base/counters.hpp"

namespace coremesh {

#define COREMESH_VCPU_COUNTERS(X)                                                       \
    X(exits_io, "times", "accesses of I/O ports")                                       \
    X(exits_mmio, "times", "accesses of memory that is not RAM, local APIC included")   \
    X(exits_halt, "times", "HLT")                                                       \
    X(exits_kick, "times", "the mailbox was read in the middle of guest code")          \
    X(kicks, "times", "a thread made the vCPU look at its mailbox")                     \
    X(yields, "times", "PAUSE gave the host's core to another thread")                  \
    X(halted_ns, "ns", "asleep, or waiting to fall asleep")                             \
    X(run_ns, "ns", "inside guest code, the waits for pages and devices included")      \
    X(code_invalidations, "pages", "pages of which this vCPU dropped its translations") \
    X(resets, "times", "the machine was reset")

COREMESH_SHARED_COUNTERS(Vcpu, COREMESH_VCPU_COUNTERS)

}  // namespace coremesh
