// SPDX-License-Identifier: GPL-2.0-or-later
// The guest's time: one time-stamp counter for all vCPUs of a machine.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/pi_mutex.hpp"

namespace coremesh {

/// A counter of constant rate that starts at zero when the machine is made and that all vCPUs of the host
/// share.
///
/// It is the host's own TSC, shifted (and scaled when the guest was promised another rate), if that one is
/// invariant (CPUID 8000_0007 EDX[8]) and trusted by the host's kernel; otherwise CLOCK_MONOTONIC scaled to
/// `hz()`. Every method may be called by any thread, and none that reads takes a lock.
///
/// A machine of one host has a clock that never changes after its vCPUs have started. Where several hosts
/// make one machine each has a *following* clock, which is brought to that of host 0: a little faster or
/// slower for a while (`follow`), and forward at once when a message proves that another host is ahead
/// (`witness`). What `tsc()` gives never falls, on one thread or between two that synchronise, whatever is
/// asked of the clock; `set` alone may turn it back, and is for the time before the guest runs.
///
/// ## State that two threads touch (following clocks only)
///
///  - `version_`: a sequence lock and the writers' own lock: odd while one of them changes the words below.
///    seq_cst. It becomes odd before the writer reads the host's counter, and a reader looks at it after it
///    has read that counter: so no reader applies the old words to a moment later than the change.
///  - `from_`, `value_`, `slew_`, `slew_ratio_`, `slewed_`, `rate_`: written while `version_` is odd.
///  - `observers_`: under `observers_mutex_`.
class Clock {
  public:
    /// A thread that sleeps until a time that `monotonic_at` gave.
    class Observer {
      public:
        /// The clock runs otherwise than before. On the thread that changed it; must be short.
        virtual void clock_changed() noexcept = 0;

      protected:
        ~Observer() = default;
    };

    /// @param guest_hz  ticks a second that the guest is told; 0: the host counter's own rate, rounded to
    ///                  1 kHz, the unit in which Linux keeps it.
    /// @param start     what `tsc()` gives at the moment of construction.
    /// @param following whether the clock can be changed; reading one that can costs some ns more.
    /// The first construction in a process measures the host's rate and takes about 20 ms.
    explicit Clock(uint64_t guest_hz = 0, uint64_t start = 0, bool following = false);

    Clock(const Clock&) = delete;
    Clock& operator=(const Clock&) = delete;

    /// The guest's TSC now. Earlier loads and instructions of this thread are done before the counter is read
    /// (SDM vol. 2, RDTSC: LFENCE before it), so what one vCPU reads after seeing another's write is never
    /// less.
    uint64_t tsc() const noexcept;

    /// Ticks a second.
    uint64_t hz() const noexcept { return guest_hz_; }

    /// The moment on CLOCK_MONOTONIC, in ns, at which `tsc()` reaches `tsc`; rounded up, saturating.
    /// Anchored at the moment of the call: CLOCK_MONOTONIC is slewed by NTP, so a far answer is an estimate
    /// and a sleeper compares `tsc()` again when it wakes. A following clock's later changes are told to
    /// observers.
    int64_t monotonic_at(uint64_t tsc) const noexcept;

    /// Ticks in `ns` nanoseconds, rounded down.
    uint64_t ticks(uint64_t ns) const noexcept;

    /// True when the host's TSC is read directly, false when CLOCK_MONOTONIC stands in for it.
    bool from_host_tsc() const noexcept { return host_tsc_; }

    /// CLOCK_MONOTONIC now, in ns.
    static int64_t monotonic_ns() noexcept;

    /// The host's counter now, for a span of time on one thread. Unlike `monotonic_ns` it is not ordered with
    /// other instructions, so that a span is wrong by a few dozen ns, and costs a third of it.
    static uint64_t span_ticks() noexcept;

    /// The nanoseconds in `ticks` of `span_ticks`.
    static uint64_t span_ns(uint64_t ticks) noexcept;

    /// Shows `tsc` now, even if that is less than before. Only while no vCPU runs and, of a clock that does
    /// not follow, no other thread reads it: no timer is armed. Keeps the rate.
    void set(uint64_t tsc) noexcept;

    // ---- following clocks; without effect on others ------------------------------------------------------

    bool following() const noexcept { return following_; }

    /// What the clock would read had it never been changed. The ruler by which the other hosts' clocks are
    /// measured: changes of this one do not disturb it.
    uint64_t unchanged() const noexcept;

    /// From now on `drift_ppb` parts in 10^9 faster than the host's counter, and during the next `over` ticks
    /// also by as much as makes `offset` ticks (negative: slower). What an earlier call had still to gain or
    /// to lose is dropped. `drift_ppb` is limited to a thousandth, `offset` to half of `over` either way.
    void follow(int64_t offset, uint64_t over, int64_t drift_ppb) noexcept;

    /// A message was sent when its sender's clock showed `tsc`: this one is not behind it when this returns.
    /// To be called before anything that the message brings can be seen by a vCPU. True if the clock had to
    /// jump. A stamp more than `kCredibleSeconds` ahead is not believed, and counted.
    bool witness(uint64_t tsc) noexcept;

    static constexpr uint64_t kCredibleSeconds = 3600;

    struct Changes {
        uint64_t jumps = 0;         ///< by `witness`
        uint64_t jumped_ticks = 0;  ///< all of them together
        uint64_t longest_jump = 0;  ///< ticks
        uint64_t incredible = 0;    ///< stamps that were not believed
    };
    Changes changes() const noexcept;

    /// Not while a change is being told. An observer outlives its time on the list.
    void observe(Observer& observer) const;
    void forget(Observer& observer) const noexcept;

  private:
    struct Course;

    uint64_t host_counter() const noexcept;
    Course followed(uint64_t& counter) const noexcept;
    Course course() const noexcept;
    void steer(const Course& course) noexcept;
    uint64_t lock_course() noexcept;
    void unlock_course(uint64_t version) noexcept;
    void tell_observers() const noexcept;

    bool host_tsc_;
    bool following_;
    bool plain_;  // neither scaled nor following: the shortest way
    uint64_t guest_hz_;
    uint64_t host_hz_;
    uint64_t ratio_;      // guest ticks per host tick, 16.48 fixed point
    uint64_t host_base_;  // host counter at construction
    uint64_t start_;

    // A following clock: `value_` at host counter `from_`; `slew_` host ticks at `slew_ratio_`, which bring
    // it to `slewed_`; `rate_` from there on.
    alignas(64) mutable std::atomic<uint64_t> version_{0};
    std::atomic<uint64_t> from_{0}, value_{0}, slew_{0}, slew_ratio_{0}, slewed_{0}, rate_{0};

    alignas(64) std::atomic<uint64_t> jumps_{0}, jumped_ticks_{0}, longest_jump_{0}, incredible_{0};
    mutable PiMutex observers_mutex_;
    mutable std::vector<Observer*> observers_;
};

}  // namespace coremesh
