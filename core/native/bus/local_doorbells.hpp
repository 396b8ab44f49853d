// SPDX-License-Identifier: GPL-2.0-or-later
// Doorbells of devices elsewhere, while work of theirs is done on this host: a ring wakes that work, and no
// message is sent.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/futex.hpp"

namespace coremesh {

/// ## State that two threads touch
///
///  - `Bell::address`, `Bell::word`: seq_cst. A vCPU sets the word and then looks at the address again; the
///    work clears the address and then looks at the word. So each ring is seen by the work or sent to the
///    device, or both, which is no harm.
class LocalDoorbells {
    struct Bell {
        std::atomic<uint64_t> address{0};  // 0: free
        std::atomic<uint32_t> word{0};
    };

  public:
    static constexpr size_t kMost = 8;  ///< at once; the others' rings go to the device

    /// The doorbell at `address` rings here until `close`. One thread.
    class Here {
      public:
        Here(LocalDoorbells& bells, uint64_t address) noexcept {
            for (Bell& bell : bells.bells_) {
                uint64_t expected = 0;
                if (address == 0 || !bell.address.compare_exchange_strong(expected, kOpening)) continue;
                bell.word.store(0);
                bell.address.store(address);
                bell_ = &bell;
                return;
            }
        }
        ~Here() { close(); }
        Here(const Here&) = delete;
        Here& operator=(const Here&) = delete;

        bool open() const noexcept { return bell_ != nullptr; }
        /// Sleeps until it rings or `deadline_ns` (CLOCK_MONOTONIC).
        void wait(int64_t deadline_ns) noexcept {
            if (bell_->word.load() == 0) futex_wait_until(bell_->word, 0, deadline_ns);
            bell_->word.store(0);
        }
        /// From now on rings go to the device. True: one came here since the last `wait`. Idempotent.
        bool close() noexcept {
            if (bell_ == nullptr) return false;
            bell_->address.store(0);
            const bool rung = bell_->word.load() != 0;
            bell_ = nullptr;
            return rung;
        }

      private:
        Bell* bell_ = nullptr;
    };

    /// A vCPU. False: it is for the device.
    bool ring(uint64_t address) noexcept {
        for (Bell& bell : bells_) {
            if (bell.address.load() != address) continue;
            if (bell.word.exchange(1) == 0) futex_wake(bell.word);
            return bell.address.load() == address;
        }
        return false;
    }

  private:
    static constexpr uint64_t kOpening = ~uint64_t{0};  // no doorbell's address
    std::array<Bell, kMost> bells_;
};

}  // namespace coremesh
