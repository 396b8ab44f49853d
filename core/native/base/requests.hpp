// SPDX-License-Identifier: GPL-2.0-or-later
// What is asked of a vCPU, as bits of one word that any thread may set.
#pragma once

#include <atomic>
#include <cstdint>

namespace coremesh {

/// All are posted by any thread and taken by the vCPU's thread.
enum Request : uint32_t {
    kRequestPages = 1 << 0,  ///< code pages were written: the mailbox's queue has them
    kRequestPark = 1 << 1,   ///< the gate is closed
    kRequestStop = 1 << 2,
    kRequestSteer = 1 << 3,   ///< addresses lead elsewhere now: RamLayout::steering has it
    kRequestReset = 1 << 4,   ///< the vCPU was reset while its thread waited: what it was about to do is void
    kRequestOfCore = 1 << 8,  ///< this and the higher bits mean what the guest's architecture says
};

/// The word that a vCPU looks at when nothing is up. A thread that posts stores its data first and sets its
/// bit second; one that takes, takes the bit first and the data second. A post in between sets the bit again,
/// so nothing stays behind.
class Requests {
  public:
    void post(uint32_t request) noexcept { word_.fetch_or(request, std::memory_order_seq_cst); }

    /// Posts one and takes back another that was posted before it, in one step.
    void post_instead(uint32_t request, uint32_t of) noexcept {
        uint32_t now = word_.load(std::memory_order_seq_cst);
        while (!word_.compare_exchange_weak(now, (now & ~of) | request, std::memory_order_seq_cst)) {
        }
    }

    uint32_t pending() const noexcept { return word_.load(std::memory_order_seq_cst); }
    /// The cheap look of the fast path; the kick's order makes a miss harmless.
    uint32_t peek() const noexcept { return word_.load(std::memory_order_acquire); }

    /// Takes the given requests; returns which of them were there.
    uint32_t take(uint32_t requests) noexcept {
        return word_.fetch_and(~requests, std::memory_order_seq_cst) & requests;
    }

    /// Takes a request that is there while another is not, in one step.
    bool take_unless(uint32_t request, uint32_t other) noexcept {
        uint32_t now = word_.load(std::memory_order_seq_cst);
        while ((now & request) && !(now & other)) {
            if (word_.compare_exchange_weak(now, now & ~request, std::memory_order_seq_cst)) return true;
        }
        return false;
    }

  private:
    alignas(64) std::atomic<uint32_t> word_{0};
};

}  // namespace coremesh
