// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/x86/lapic_timer.hpp"

#include <algorithm>

namespace coremesh::x86 {
namespace {

using u128 = unsigned __int128;
using i128 = __int128;

/// SDM vol. 3A, figure 11-10: bits 3, 1 and 0; 0 divides by 2, ... 6 by 128, 7 by 1.
unsigned divide_shift_of(uint32_t configuration) noexcept {
    const unsigned code = (configuration & 3) | ((configuration >> 1) & 4);
    return (code + 1) & 7;
}

}  // namespace

LapicTimer::LapicTimer(TimerQueue& queue, Listener& listener, uint64_t timer_hz) noexcept
    : clock_(queue.clock()),
      listener_(listener),
      timer_hz_(timer_hz),
      least_gap_(queue.clock().ticks(kLeastGapNs)),
      timer_(queue, *this) {}

void LapicTimer::reset() noexcept {
    timer_.cancel();
    mode_ = Mode::kOneShot;
    running_ = false;
    initial_ = 0;
    divide_configuration_ = 0;
    divide_shift_ = 1;
}

LapicTimer::Saved LapicTimer::save() noexcept {
    const uint64_t armed = timer_.cancel();
    const Saved saved{running_, initial_, divide_configuration_, first_, start_, tsc_deadline_, armed};
    if (armed != 0) timer_.arm(armed);
    return saved;
}

void LapicTimer::load(Mode mode, uint64_t tsc_offset, const Saved& saved) noexcept {
    mode_ = mode;
    tsc_offset_ = tsc_offset;
    running_ = saved.running;
    initial_ = saved.initial;
    divide_configuration_ = saved.divide_configuration;
    divide_shift_ = divide_shift_of(saved.divide_configuration);
    first_ = saved.first;
    start_ = saved.start;
    tsc_deadline_ = saved.tsc_deadline;
    if (saved.armed != 0) timer_.arm(saved.armed);  // last: publishes the fields to the callback
}

void LapicTimer::settle() noexcept {
    const uint64_t armed = timer_.cancel();
    if (armed == 0) return;
    if (armed <= clock_.tsc()) {
        on_timer(armed);
    } else {
        timer_.arm(armed);
    }
}

void LapicTimer::set_mode(Mode mode) noexcept {
    if (mode == mode_) return;
    const uint64_t armed = timer_.cancel();
    if (mode == Mode::kTscDeadline || mode_ == Mode::kTscDeadline) {
        // 11.5.4.1: a change between TSC-deadline and the others disarms.
        running_ = false;
    } else if (armed != 0) {
        // Between one-shot and periodic the count in progress goes on, and an expiry that was due stays due.
        if (mode_ == Mode::kPeriodic) restart(armed <= clock_.tsc() ? 0 : current_count());
        mode_ = mode;
        timer_.arm(armed);  // last: publishes the fields to the callback
        return;
    } else {
        running_ = false;
    }
    mode_ = mode;
}

void LapicTimer::write_initial_count(uint32_t count) noexcept {
    if (mode_ == Mode::kTscDeadline) return;
    timer_.cancel();
    initial_ = count;
    running_ = count != 0;
    if (!running_) return;
    restart(count);
    timer_.arm(deadline_after(first_));
}

uint32_t LapicTimer::current_count() const noexcept {
    if (!running_ || mode_ == Mode::kTscDeadline) return 0;
    const uint64_t passed = counts_until(clock_.tsc());
    if (passed < first_) return static_cast<uint32_t>(first_ - passed);
    return mode_ == Mode::kPeriodic ? static_cast<uint32_t>(initial_ - (passed - first_) % initial_) : 0;
}

void LapicTimer::write_divide_configuration(uint32_t value) noexcept {
    const unsigned shift = divide_shift_of(value);
    divide_configuration_ = value & 0xB;
    if (shift == divide_shift_) return;
    const uint64_t armed = mode_ == Mode::kTscDeadline ? 0 : timer_.cancel();
    if (armed == 0) {
        divide_shift_ = shift;
        running_ = false;
        return;
    }
    // What is left of the count is counted down at the new rate; what was due stays due.
    const uint32_t left = armed <= clock_.tsc() ? 0 : current_count();
    divide_shift_ = shift;
    restart(left);
    timer_.arm(deadline_after(first_));
}

uint64_t LapicTimer::tsc_deadline() noexcept {
    if (mode_ != Mode::kTscDeadline) return 0;
    if (timer_.deadline() != 0) return tsc_deadline_;
    timer_.settle();  // zero tells that the interrupt has been raised: then it has to be seen as raised
    return 0;
}

void LapicTimer::write_tsc_deadline(uint64_t deadline) noexcept {
    if (mode_ != Mode::kTscDeadline) return;
    tsc_deadline_ = deadline;
    if (deadline == 0) {
        timer_.cancel();
        return;
    }
    // No `cancel` here, where every tick comes by: an expiry under way is that of a deadline truly reached.
    const i128 machine = static_cast<i128>(deadline) - static_cast<int64_t>(tsc_offset_);
    if (machine <= static_cast<i128>(clock_.tsc())) {
        timer_.disarm();
        listener_.on_timer_expiry();
    } else {
        timer_.arm(static_cast<uint64_t>(std::min<i128>(machine, ~uint64_t{0})));
    }
}

void LapicTimer::set_tsc_offset(uint64_t offset) noexcept {
    const uint64_t deadline = tsc_deadline();
    tsc_offset_ = offset;
    if (deadline != 0) write_tsc_deadline(deadline);
}

/// Queue thread, or the vCPU's.
void LapicTimer::on_timer(uint64_t) noexcept {
    if (mode_ == Mode::kPeriodic) {
        // Periods that the host was too late for are gone: their interrupts would meet in one IRR bit anyway.
        const bool absurd = deadline_after(initial_) - start_ < least_gap_;
        const uint64_t reached = counts_until(clock_.tsc() + (absurd ? least_gap_ : 0));
        const uint64_t periods = reached < first_ ? 0 : (reached - first_) / initial_ + 1;
        timer_.arm(deadline_after(first_ + periods * initial_));
    }
    listener_.on_timer_expiry();
}

/// Only while no deadline is armed.
void LapicTimer::restart(uint32_t first) noexcept {
    first_ = first;
    start_ = clock_.tsc();
}

uint64_t LapicTimer::counts_until(uint64_t tsc) const noexcept {
    if (tsc <= start_) return 0;
    const u128 scale = static_cast<u128>(clock_.hz()) << divide_shift_;
    return static_cast<uint64_t>(static_cast<u128>(tsc - start_) * timer_hz_ / scale);
}

/// The first TSC value at which `counts` counts have passed.
uint64_t LapicTimer::deadline_after(uint64_t counts) const noexcept {
    const u128 scale = static_cast<u128>(clock_.hz()) << divide_shift_;
    return start_ + static_cast<uint64_t>((counts * scale + timer_hz_ - 1) / timer_hz_);
}

}  // namespace coremesh::x86
