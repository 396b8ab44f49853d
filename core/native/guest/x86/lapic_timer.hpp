// SPDX-License-Identifier: GPL-2.0-or-later
// The timer inside a local APIC (SDM vol. 3A, 11.5.4): one-shot, periodic, TSC-deadline.
#pragma once

#include <cstdint>

#include "base/timer_queue.hpp"

namespace coremesh::x86 {

/// Counts by the machine's clock, never by ticks of its own: the current count is computed when it is read,
/// and a period is a multiple of the start, so a late host neither makes the timer drift nor owes it a burst.
///
/// All methods are called by the vCPU's thread. The timer queue's thread only runs `on_timer`, which reads
/// the plain fields below: they change only while no deadline is armed and no callback runs (`cancel`), and
/// `arm` publishes them.
class LapicTimer final : private TimerQueue::Client {
  public:
    /// What is told of an expiry: on the queue's thread, or on the vCPU's own when a deadline is in the past.
    class Listener {
      public:
        virtual void on_timer_expiry() noexcept = 0;

      protected:
        ~Listener() = default;
    };

    enum class Mode : uint8_t { kOneShot = 0, kPeriodic = 1, kTscDeadline = 2 };  // LVT timer bits 18:17

    /// A periodic timer does not fire more often than this. A guest that asks for less gets the period that
    /// it asked for in the current count, and an interrupt at the next multiple of it.
    static constexpr uint64_t kLeastGapNs = 50'000;

    /// @param timer_hz rate of the input clock (the crystal that CPUID leaf 15H tells of).
    LapicTimer(TimerQueue& queue, Listener& listener, uint64_t timer_hz) noexcept;

    /// Power-up or INIT state: stopped, one-shot, divide by two.
    void reset() noexcept;

    Mode mode() const noexcept { return mode_; }
    void set_mode(Mode mode) noexcept;

    uint32_t initial_count() const noexcept { return initial_; }
    void write_initial_count(uint32_t count) noexcept;
    uint32_t current_count() const noexcept;

    uint32_t divide_configuration() const noexcept { return divide_configuration_; }
    void write_divide_configuration(uint32_t value) noexcept;

    /// IA32_TSC_DEADLINE in the vCPU's TSC; 0 when not armed. Reads 0 and ignores writes in the other modes.
    uint64_t tsc_deadline() noexcept;
    void write_tsc_deadline(uint64_t deadline) noexcept;

    /// The vCPU's TSC is the machine's plus `offset` (IA32_TSC_ADJUST); an armed deadline keeps its TSC
    /// value.
    void set_tsc_offset(uint64_t offset) noexcept;

    /// What is kept of it; the mode is that of the LVT entry, the TSC's offset the vCPU's.
    struct Saved {
        bool running;
        uint32_t initial, divide_configuration, first;
        uint64_t start;         ///< machine TSC
        uint64_t tsc_deadline;  ///< as the guest wrote it
        uint64_t armed;         ///< machine TSC; 0: no interrupt is due
    };
    /// While the vCPU does not run. An expiry that has begun reaches the listener before this returns, and
    /// one that is saved as due does not until then.
    Saved save() noexcept;
    /// For a timer that was never started; arms it.
    void load(Mode mode, uint64_t tsc_offset, const Saved& saved) noexcept;

    /// What is due by now has expired when this returns, also when the queue's thread is late: an expiry
    /// meets the LVT entry of its own moment.
    void settle() noexcept;

    /// An expiry that has begun has reached the listener when this returns.
    void finish_expiry() noexcept { timer_.settle(); }

  private:
    void on_timer(uint64_t deadline) noexcept override;
    void restart(uint32_t first) noexcept;
    uint64_t counts_until(uint64_t tsc) const noexcept;
    uint64_t deadline_after(uint64_t counts) const noexcept;

    const Clock& clock_;
    Listener& listener_;
    const uint64_t timer_hz_;
    const uint64_t least_gap_;  // TSC ticks

    Mode mode_ = Mode::kOneShot;
    bool running_ = false;  // a count was started (one-shot: and perhaps has reached zero)
    uint32_t initial_ = 0;
    uint32_t divide_configuration_ = 0;
    unsigned divide_shift_ = 1;
    uint32_t first_ = 0;  // counts from `start_` to the first expiry; each further period has `initial_`
    uint64_t start_ = 0;  // machine TSC
    uint64_t tsc_offset_ = 0;
    uint64_t tsc_deadline_ = 0;  // as the guest wrote it

    TimerQueue::Timer timer_;  // last: the callback uses the fields above until the timer is gone
};

}  // namespace coremesh::x86
