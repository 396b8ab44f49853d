// SPDX-License-Identifier: GPL-2.0-or-later
// A lock between threads of different priority.
#pragma once

#include <pthread.h>

namespace coremesh {

/// A mutex that lends its holder the priority of the most urgent thread that waits for it
/// (PTHREAD_PRIO_INHERIT). With any other lock a vCPU that was preempted while it holds the lock keeps the
/// protocol thread waiting for as long as the host's scheduler likes. Works with std::lock_guard. One word is
/// enough to take it when it is free, so it may be used in a synchronous fault handler, as long as the
/// interrupted code does not hold it.
class PiMutex {
  public:
    PiMutex() noexcept {
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
    bool try_lock() noexcept { return pthread_mutex_trylock(&mutex_) == 0; }
    void unlock() noexcept { pthread_mutex_unlock(&mutex_); }

  private:
    pthread_mutex_t mutex_;
};

}  // namespace coremesh
