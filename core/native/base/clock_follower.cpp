// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/clock_follower.hpp"

#include <array>
#include <optional>
#include <utility>

namespace coremesh {

ClockFollower::ClockFollower(Clock& clock, HostId self, Send send)
    : clock_(clock), self_(self), send_(std::move(send)), sync_({.hz = clock.hz()}), settled_(self == 0) {}

void ClockFollower::received(HostId from, std::span<const uint8_t> payload) noexcept {
    // First of all: every tick between the arrival and this look counts as the path's.
    const uint64_t unchanged = clock_.unchanged();
    const uint64_t tsc = clock_.tsc();
    auto message = ClockMessage::decode(payload);
    const bool question = message && message->kind == ClockMessage::Kind::kQuestion;
    if (!message || question != (self_ == 0) || from == self_ || (self_ != 0 && from != 0)) {
        const std::lock_guard lock(mutex_);
        ++garbage_;
        return;
    }
    if (question) {
        {
            const std::lock_guard lock(mutex_);
            ++answers_given_;
        }
        message->kind = ClockMessage::Kind::kAnswer;
        message->received = tsc;
        message->answered = clock_.tsc();
        send_(from, message->encode());
        return;
    }
    std::optional<ClockSync::Correction> correction;
    {
        const std::lock_guard lock(mutex_);
        correction = sync_.answered(*message, unchanged, tsc);
    }
    if (correction) correct(*correction);
}

int64_t ClockFollower::due(int64_t now_ns) noexcept {
    if (self_ == 0) return -1;
    std::optional<ClockMessage> question;
    int64_t next;
    {
        const std::lock_guard lock(mutex_);
        question = sync_.ask(now_ns, clock_.unchanged());
        next = sync_.next_ns();
    }
    if (question) send_(0, question->encode());
    return next;
}

void ClockFollower::correct(const ClockSync::Correction& correction) noexcept {
    clock_.follow(correction.offset, correction.over, correction.drift_ppb);
    if (correction.set && !running_.load(std::memory_order_acquire)) {
        clock_.set(correction.tsc);
    } else if (correction.set || correction.jump) {
        clock_.witness(correction.tsc);
    }
    if (settled_.load(std::memory_order_relaxed)) return;
    bool settled;
    {
        const std::lock_guard lock(mutex_);
        settled = sync_.facts().settled;
    }
    settled_.store(settled, std::memory_order_release);
}

ClockFollower::Facts ClockFollower::facts() const {
    Facts facts;
    {
        const std::lock_guard lock(mutex_);
        static_cast<ClockSync::Facts&>(facts) = sync_.facts();
        facts.answers_given = answers_given_;
        facts.garbage = garbage_;
    }
    facts.settled = settled();
    facts.changes = clock_.changes();
    return facts;
}

}  // namespace coremesh
