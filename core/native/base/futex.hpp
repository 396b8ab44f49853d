// SPDX-License-Identifier: GPL-2.0-or-later
// Sleeping on a 32-bit word until another thread changes it or a moment comes (futex(2)).
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

namespace coremesh {

static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free);

/// Sleeps while `word` holds `expected`, at most until `deadline_ns` on CLOCK_MONOTONIC (negative: for ever).
/// Returns for any reason, also spuriously: the caller looks at its own condition again.
/// The kernel compares the word and queues the sleeper in one step, so a waker that changes the word first
/// and calls `futex_wake` afterwards is never missed.
inline void futex_wait_until(std::atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns) noexcept {
    timespec until{};
    timespec* timeout = nullptr;
    if (deadline_ns >= 0) {
        until.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000);
        until.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000);
        timeout = &until;
    }
    // WAIT_BITSET, because plain FUTEX_WAIT takes a relative time: a preemption before the call would add to
    // it.
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected,
            timeout, nullptr, FUTEX_BITSET_MATCH_ANY);
}

/// The same on a word that lies in memory shared between processes, without a deadline.
inline void futex_wait_shared(std::atomic<uint32_t>& word, uint32_t expected) noexcept {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, expected, nullptr, nullptr, 0);
}

/// Wakes one thread of any process that sleeps on a word in memory that they share.
inline void futex_wake_shared(std::atomic<uint32_t>& word) noexcept {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

/// Wakes up to `sleepers` threads that sleep on `word`. Any thread; touches nothing but the address.
inline void futex_wake(std::atomic<uint32_t>& word, int sleepers = 1) noexcept {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, sleepers, nullptr,
            nullptr, 0);
}

}  // namespace coremesh
