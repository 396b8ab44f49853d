// SPDX-License-Identifier: GPL-2.0-or-later
// The locks of per-page state: a small set of priority-inheriting mutexes, chosen by page number.
//
// Priority inheritance because threads of different priority meet here (vCPUs, devices, later the page
// agent): a spinlock or a plain mutex lets a low thread hold up a high one for as long as it is preempted.
//
// Rule: a thread that holds one never touches the guest view. A write fault is handled in the faulting thread
// and takes these locks; with the rule it can never meet itself.
#pragma once

#include <pthread.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace coremesh {

class PiMutex {
  public:
    PiMutex() {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
        pthread_mutex_init(&mutex_, &attributes);
        pthread_mutexattr_destroy(&attributes);
    }
    ~PiMutex() { pthread_mutex_destroy(&mutex_); }
    PiMutex(const PiMutex&) = delete;
    PiMutex& operator=(const PiMutex&) = delete;

    void lock() noexcept { pthread_mutex_lock(&mutex_); }
    void unlock() noexcept { pthread_mutex_unlock(&mutex_); }

  private:
    pthread_mutex_t mutex_;
};

class PageLocks {
  public:
    static constexpr size_t kLocks = 64;

    /// Neighbours differ: code that runs from page to page on several engines does not queue on one lock.
    PiMutex& of(uint64_t page) noexcept { return locks_[page % kLocks].mutex; }

    /// For the rare work on a run of pages. Never with one of them held.
    void lock_all() noexcept {
        for (auto& slot : locks_) slot.mutex.lock();
    }
    void unlock_all() noexcept {
        for (auto& slot : locks_) slot.mutex.unlock();
    }

  private:
    struct alignas(64) Slot {
        PiMutex mutex;
    };
    std::array<Slot, kLocks> locks_;
};

}  // namespace coremesh
