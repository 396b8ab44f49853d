// SPDX-License-Identifier: GPL-2.0-or-later
// Lets a few threads at a time to something that serves one at a time anyway, and the others sleep outside.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace coremesh {

/// Hundreds of threads that want one lock wake each other without end: Python's interpreter lock has each of
/// them look every few milliseconds, and passes from thread to thread with each call. Here a thread that has
/// left may come back at once while its turn lasts; then the one that has waited longest gets the place. A
/// visit wakes no thread; the end of a turn wakes one. Turns are longer where many threads wait.
///
/// A thread that waits for something itself should step out. The place of one that does not leave for
/// `kStuckNs` is given to another: this bounds how many compete, and guards nothing.
///
/// ## State that two threads touch
///
/// Everything is under `mutex_`, which is held for some instructions; a waiter sleeps on its own word.
class Turnstile {
  public:
    static constexpr size_t kPlaces = 1;
    static constexpr int64_t kTurnNs = 200'000;
    static constexpr int64_t kLongestTurnNs = 3'000'000;
    static constexpr int64_t kStuckNs = 500'000;

    /// Its thread is inside from the construction to the end of the block.
    class Inside {
      public:
        explicit Inside(Turnstile& turnstile) noexcept
            : turnstile_(turnstile), ticket_(turnstile.enter()), outer_(current) {
            current = this;
        }
        ~Inside() {
            current = outer_;
            turnstile_.leave(ticket_);
        }
        Inside(const Inside&) = delete;
        Inside& operator=(const Inside&) = delete;

      private:
        Turnstile& turnstile_;
        friend class Turnstile;
        static inline thread_local Inside* current = nullptr;
        const uint64_t ticket_;
        Inside* const outer_;
    };

    /// This thread, if it is inside, is about to wait: its place is for another. It goes on without one.
    static void step_out() noexcept {
        if (const Inside* const here = Inside::current) here->turnstile_.leave(here->ticket_);
    }

    /// How often a thread was woken. Any thread.
    uint64_t wakes() noexcept {
        const std::lock_guard lock(mutex_);
        return wakes_;
    }

  private:
    struct Waiter {
        std::atomic<uint32_t> word{0};
        Waiter* next = nullptr;
        uint64_t ticket = 0;
        bool armed = false;   // knows that it is the first, and sleeps no longer than the turn lasts
        bool woken = false;   // to see for itself whether there is a place
        bool claims = false;  // it runs, and the turn is over: no other comes in before it
        bool awake = false;   // it looks at its word: no need to wake it
        bool inside = false;
    };
    using Places = std::array<uint64_t, kPlaces>;  // tickets; 0: free

    uint64_t enter() noexcept;
    void leave(uint64_t ticket) noexcept;
    void wait(std::unique_lock<std::mutex>& lock, uint64_t ticket) noexcept;
    bool take_free(uint64_t ticket) noexcept;
    void take_first() noexcept;
    int64_t turn_ns() const noexcept;
    void wake_to_look(Waiter& waiter) noexcept;
    void wake(Waiter& waiter) noexcept;

    std::mutex mutex_;
    Places places_{};
    uint64_t last_ticket_ = 0;
    int64_t turn_began_ns_ = 0;  // while threads wait
    int64_t crowded_until_ns_ = 0;
    unsigned waiting_ = 0;
    uint64_t wakes_ = 0;
    Waiter* first_ = nullptr;
    Waiter* last_ = nullptr;
};

}  // namespace coremesh
