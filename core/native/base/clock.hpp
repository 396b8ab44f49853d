// SPDX-License-Identifier: GPL-2.0-or-later
// The guest's time: one time-stamp counter for all vCPUs of a machine.
#pragma once

#include <cstdint>

namespace coremesh {

/// A counter of constant rate that starts at zero when the machine is made and that all vCPUs of the host
/// share.
///
/// It is the host's own TSC, shifted (and scaled when the guest was promised another rate), if that one is
/// invariant (CPUID 8000_0007 EDX[8]) and trusted by the host's kernel; otherwise CLOCK_MONOTONIC scaled to
/// `hz()`. Immutable after construction: every method may be called by any thread, none takes a lock.
class Clock {
  public:
    /// @param guest_hz ticks a second that the guest is told; 0: the host counter's own rate, rounded to 1
    /// kHz
    ///                 (so that CPUID leaf 15H can state it exactly as a fraction of a 25 MHz crystal).
    /// @param start    what `tsc()` gives at the moment of construction.
    /// The first construction in a process measures the host's rate and takes about 20 ms.
    explicit Clock(uint64_t guest_hz = 0, uint64_t start = 0);

    /// The guest's TSC now. Earlier loads and instructions of this thread are done before the counter is read
    /// (SDM vol. 2, RDTSC: LFENCE before it), so what one vCPU reads after seeing another's write is never
    /// less.
    uint64_t tsc() const noexcept;

    /// Ticks a second.
    uint64_t hz() const noexcept { return guest_hz_; }

    /// The moment on CLOCK_MONOTONIC, in ns, at which `tsc()` reaches `tsc`; rounded up, saturating.
    /// Anchored at the moment of the call: CLOCK_MONOTONIC is slewed by NTP, so a far answer is an estimate
    /// and a sleeper compares `tsc()` again when it wakes.
    int64_t monotonic_at(uint64_t tsc) const noexcept;

    /// What `tsc()` reads when CLOCK_MONOTONIC is `monotonic_ns`; the same caveat.
    uint64_t tsc_at(int64_t monotonic_ns) const noexcept;

    /// Ticks in `ns` nanoseconds, rounded down.
    uint64_t ticks(uint64_t ns) const noexcept;

    /// True when the host's TSC is read directly, false when CLOCK_MONOTONIC stands in for it.
    bool from_host_tsc() const noexcept { return host_tsc_; }

    /// CLOCK_MONOTONIC now, in ns.
    static int64_t monotonic_ns() noexcept;

  private:
    uint64_t host_counter() const noexcept;

    bool host_tsc_;
    bool scaled_;
    uint64_t guest_hz_;
    uint64_t ratio_;      // guest ticks per host tick, 16.48 fixed point; unused unless scaled_
    uint64_t host_base_;  // host counter at construction
    uint64_t start_;
};

}  // namespace coremesh
