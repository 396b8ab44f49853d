// SPDX-License-Identifier: GPL-2.0-or-later
// Doorbells of devices elsewhere, while work of theirs is done on this host: a ring has that work done at
// once or wakes it, and no message is sent.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <thread>

#include "base/futex.hpp"

namespace coremesh {

/// ## State that two threads touch
///
///  - `Bell::address`, `Bell::word`: seq_cst. A vCPU sets the word and then looks at the address again; the
///    work clears the address and then looks at the word. So each ring is seen by the work or sent to the
///    device, or both, which is no harm.
///  - `Bell::ringing`: vCPUs that may use `Bell::work`. A vCPU counts itself and then looks at the address;
///    the work clears the address and then waits for the count to be 0. seq_cst.
class LocalDoorbells {
  public:
    class Work {
      public:
        virtual ~Work() = default;
        /// On the thread of the vCPU that rings, several at a time. False: not now, wake the work's thread.
        virtual bool rung() noexcept = 0;
    };

  private:
    struct Bell {
        std::atomic<uint64_t> address{0};  // 0: free
        std::atomic<uint32_t> word{0};
        std::atomic<uint32_t> ringing{0};
        Work* work = nullptr;
    };

  public:
    static constexpr size_t kMost = 8;  ///< at once; the others' rings go to the device

    /// The doorbell at `address` rings here until `close`. One thread.
    class Here {
      public:
        Here(LocalDoorbells& bells, uint64_t address, Work& work) noexcept {
            for (Bell& bell : bells.bells_) {
                uint64_t expected = 0;
                if (address == 0 || !bell.address.compare_exchange_strong(expected, kOpening)) continue;
                bell.word.store(0);
                bell.work = &work;
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
        /// From now on rings go to the device, and no vCPU is at the work. True: a ring came here since the
        /// last `wait`. Idempotent.
        bool close() noexcept {
            if (bell_ == nullptr) return false;
            bell_->address.store(kOpening);
            while (bell_->ringing.load() != 0) std::this_thread::yield();
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
            bell.ringing.fetch_add(1);
            const bool open = bell.address.load() == address;
            if (open && !bell.work->rung() && bell.word.exchange(1) == 0) futex_wake(bell.word);
            const bool here = open && bell.address.load() == address;
            bell.ringing.fetch_sub(1);
            return here;
        }
        return false;
    }

  private:
    static constexpr uint64_t kOpening = ~uint64_t{0};  // no doorbell's address
    std::array<Bell, kMost> bells_;
};

}  // namespace coremesh
