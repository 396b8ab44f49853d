// SPDX-License-Identifier: GPL-2.0-or-later
// What others ask of a vCPU: everything rare comes through here.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace coremesh {

/// Requests, as bits. All are posted by any thread and taken by the vCPU's thread.
enum Request : uint32_t {
    kRequestPages = 1 << 0,  ///< code pages were written: the queue below has them
    kRequestPark = 1 << 1,   ///< the gate is closed
    kRequestNmi = 1 << 2,
    kRequestInit = 1 << 3,
    kRequestSipi = 1 << 4,
    kRequestStop = 1 << 5,
};

/// Many producers, one consumer, no lock, no allocation: it is filled inside signal handlers.
///
/// `requests_` is the only word the consumer looks at when nothing is up. A producer stores its data first
/// and sets its bit second (release); the consumer takes the bit first (acquire) and the data second. A
/// producer that comes in between sets the bit again, so nothing stays behind.
class Mailbox {
  public:
    void post(uint32_t request) noexcept { requests_.fetch_or(request, std::memory_order_seq_cst); }

    /// An INIT undoes a SIPI that was sent before it and has not been taken: the processor would have started
    /// and been reset at once. One that is sent after it stays.
    void post_init() noexcept {
        uint32_t now = requests_.load(std::memory_order_seq_cst);
        while (!requests_.compare_exchange_weak(now, (now & ~uint32_t{kRequestSipi}) | kRequestInit,
                                                std::memory_order_seq_cst)) {
        }
    }

    void post_sipi(uint8_t vector) noexcept {
        sipi_vector_.store(vector, std::memory_order_relaxed);
        post(kRequestSipi);
    }

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

    uint32_t pending() const noexcept { return requests_.load(std::memory_order_seq_cst); }
    /// The cheap look of the fast path; the kick's order makes a miss harmless.
    uint32_t peek() const noexcept { return requests_.load(std::memory_order_acquire); }
    /// Takes the given requests; returns which of them were there.
    uint32_t take(uint32_t requests) noexcept {
        return requests_.fetch_and(~requests, std::memory_order_seq_cst) & requests;
    }

    /// Takes a SIPI, but not before the INIT that it came with: between a look at INIT and one at SIPI both
    /// may be posted, and a processor started by the second would be reset by the first and wait for ever.
    bool take_sipi_unless_init() noexcept {
        uint32_t now = requests_.load(std::memory_order_seq_cst);
        while ((now & kRequestSipi) && !(now & kRequestInit)) {
            if (requests_.compare_exchange_weak(now, now & ~uint32_t{kRequestSipi},
                                                std::memory_order_seq_cst)) {
                return true;
            }
        }
        return false;
    }

    /// Drops a SIPI that finds the vCPU running; one that follows an INIT stays.
    void drop_sipi_unless_init() noexcept { take_sipi_unless_init(); }

    uint8_t sipi_vector() const noexcept { return sipi_vector_.load(std::memory_order_relaxed); }
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
    /// place and not filled it yet. Behind it there may be entries of others, who posted, kicked and let
    /// their writes go on; they cannot be read, and may not be waited for: the producer may have lost the
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

    alignas(64) std::atomic<uint32_t> requests_{0};
    std::atomic<uint8_t> sipi_vector_{0};
    std::atomic<bool> overflow_{false};
    alignas(64) std::atomic<uint64_t> tail_{0};
    alignas(64) uint64_t head_ = 0;
    std::array<Slot, kSlots> slots_;
};

}  // namespace coremesh
