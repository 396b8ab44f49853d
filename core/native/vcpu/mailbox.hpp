// SPDX-License-Identifier: GPL-2.0-or-later
// What others ask of a vCPU: everything rare comes through here.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/requests.hpp"

namespace coremesh {

/// The requests to a vCPU, and the pages whose code was written. Many producers, one consumer, no lock, no
/// allocation: it is filled inside signal handlers.
class Mailbox : public Requests {
  public:
    void post_page(uint64_t entry) noexcept {
        uint64_t ticket = tail_.load(std::memory_order_relaxed);
        for (;;) {
            Slot& slot = slots_[ticket % kSlots];
            const uint64_t sequence = slot.sequence.load(std::memory_order_acquire);
            if (sequence == ticket) {
                if (tail_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_relaxed)) {
                    slot.entry = entry;
                    slot.sequence.store(ticket + 1, std::memory_order_release);
                    break;
                }
            } else if (sequence < ticket) {
                // Full: the vCPU has been away for long. It will drop all of its code instead.
                overflow_.store(true, std::memory_order_release);
                break;
            } else {
                ticket = tail_.load(std::memory_order_relaxed);
            }
        }
        post(kRequestPages);
    }

    bool take_overflow() noexcept { return overflow_.exchange(false, std::memory_order_acq_rel); }

    /// Consumer only.
    bool next_page(uint64_t& entry) noexcept {
        Slot& slot = slots_[head_ % kSlots];
        if (slot.sequence.load(std::memory_order_acquire) != head_ + 1) return false;
        entry = slot.entry;
        slot.sequence.store(head_ + kSlots, std::memory_order_release);
        ++head_;
        return true;
    }

    /// Consumer only, when next_page has no more: whether an entry is under way. Its producer has taken a
    /// place and not filled it yet. Behind it there may be entries of other threads, which posted, kicked and
    /// let their writes go on; they cannot be read, and may not be waited for: the producer may have lost the
    /// CPU.
    bool entry_under_way() const noexcept { return tail_.load(std::memory_order_acquire) != head_; }

    Mailbox() {
        for (uint64_t i = 0; i < kSlots; ++i) slots_[i].sequence.store(i, std::memory_order_relaxed);
    }

  private:
    static constexpr uint64_t kSlots = 256;
    struct Slot {
        std::atomic<uint64_t> sequence;
        uint64_t entry;
    };

    std::atomic<bool> overflow_{false};
    alignas(64) std::atomic<uint64_t> tail_{0};
    alignas(64) uint64_t head_ = 0;
    std::array<Slot, kSlots> slots_;
};

}  // namespace coremesh
