// SPDX-License-Identifier: GPL-2.0-or-later
// Which thread of a host receives: the protocol thread, or for a while one that waits for an answer.
#pragma once

#include <atomic>
#include <cstdint>

namespace coremesh::link {

/// The role has one holder at a time, or none: then the protocol thread sleeps, and what arrives wakes it.
/// `tests/model/receiver.pml` states the rules below for spin, and what is lost without each.
///
/// ## How no frame is left lying
///
///  - The holder, before it lets go, makes arrivals wake the protocol thread; *then* it lets go; *then* it
///    looks whether something has arrived, and wakes the protocol thread if so.
///  - A protocol thread that was woken by what arrived, and finds the role taken, claims the next turn: who
///    sends will not wake it again. It tries once more after that, for the holder may just have let go.
///  - A waiting thread that meets a frame which is not for it claims the next turn for the protocol thread
///    before it lets go: no other waiting thread takes the role until that one has had it.
///
/// ## State that two threads touch
///
/// `state_`, seq_cst: whether the role is held, and whether the next turn is claimed. What the role protects
/// (the wire's receiving side, sequence numbers) passes with it.
class ReceiverRole {
  public:
    /// A thread that waits. False: another has the role, or the protocol thread has claimed it.
    bool borrow() noexcept {
        uint32_t free = 0;
        return state_.compare_exchange_strong(free, kHeld, std::memory_order_seq_cst);
    }
    /// The protocol thread. A claim ends with it.
    bool take() noexcept {
        uint32_t now = state_.load(std::memory_order_seq_cst);
        while ((now & kHeld) == 0) {
            if (state_.compare_exchange_weak(now, kHeld, std::memory_order_seq_cst)) return true;
        }
        return false;
    }
    /// The next turn is the protocol thread's. Any thread.
    void claim() noexcept { state_.fetch_or(kClaimed, std::memory_order_seq_cst); }
    bool claimed() const noexcept { return (state_.load(std::memory_order_seq_cst) & kClaimed) != 0; }
    /// The holder. Look for what has arrived after it.
    void give() noexcept { state_.fetch_and(~kHeld, std::memory_order_seq_cst); }

  private:
    static constexpr uint32_t kHeld = 1, kClaimed = 2;
    std::atomic<uint32_t> state_{kClaimed};  // the first turn is the protocol thread's
};

}  // namespace coremesh::link
