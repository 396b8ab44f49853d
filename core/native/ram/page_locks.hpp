// SPDX-License-Identifier: GPL-2.0-or-later
// The locks of per-page state: a small set of priority-inheriting mutexes, chosen by page number.
//
// Priority inheritance because threads of different priority meet here (vCPUs, devices, the thread of the
// page protocol): a spinlock or a plain mutex lets a low thread hold up a high one for as long as it is
// preempted.
//
// Rule: a thread that holds one never touches the guest view. A fault is handled in the faulting thread and
// takes these locks; with the rule it can never meet itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/pi_mutex.hpp"

namespace coremesh {

class PageLocks {
  public:
#ifdef __SANITIZE_THREAD__
    static constexpr size_t kLocks = 16;  // it follows no thread that holds more than 64 locks
#else
    static constexpr size_t kLocks = 64;
#endif

    /// Neighbours differ: code that runs from page to page on several engines does not queue on one lock.
    PiMutex& of(uint64_t page) noexcept { return locks_[page % kLocks].mutex; }

    /// All locks of a run of pages, for as long as it lives. Never with one of them held.
    class Run {
      public:
        Run(PageLocks& locks, uint64_t first, uint64_t count) noexcept
            : locks_(locks), first_(first % kLocks), count_(count < kLocks ? count : kLocks) {
            each([](PiMutex& mutex) { mutex.lock(); });
        }
        ~Run() {
            each([](PiMutex& mutex) { mutex.unlock(); });
        }
        Run(const Run&) = delete;
        Run& operator=(const Run&) = delete;

      private:
        /// By rising place, whatever the run, so that two of them cannot wait for each other.
        template <typename Call>
        void each(Call call) noexcept {
            const size_t end = first_ + count_;
            const size_t wrapped = end > kLocks ? end - kLocks : 0;
            for (size_t place = 0; place < wrapped; place++) call(locks_.locks_[place].mutex);
            for (size_t place = first_; place < end - wrapped; place++) call(locks_.locks_[place].mutex);
        }
        PageLocks& locks_;
        const size_t first_;
        const size_t count_;
    };
    Run all() noexcept { return Run(*this, 0, kLocks); }

  private:
    struct alignas(64) Slot {
        PiMutex mutex;
    };
    std::array<Slot, kLocks> locks_;
};

}  // namespace coremesh
