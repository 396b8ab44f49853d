// SPDX-License-Identifier: GPL-2.0-or-later
// Deadlines in guest time, kept by one native thread a host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/clock.hpp"

namespace coremesh {

/// Calls back when the machine's clock reaches a deadline. Made for one timer a vCPU that is armed anew at
/// every tick: `arm` takes no lock, and enters the kernel only when the new deadline comes before everything
/// that the thread sleeps for.
///
/// ## More timers than the host can serve
///
/// A guest does not know that its cores share a few of the host's. Until Linux has found a clock that it
/// trusts, each of 255 takes 250 timer interrupts a second, idle or not: more work than two cores can do, so
/// that nothing else gets done and each interrupt is late anyway. A late one does not come back, since the
/// guest asks for the next one from the time that it then sees. So the queue serves in order of deadline and
/// at no more than a given rate, with a burst for those that meet by chance; a timer is then late by at most
/// (timers armed / rate), and the guest's cores are left time for their work.
///
/// ## State that two threads touch
///
///  - `Timer::deadline_`: owner and thread, seq_cst. The thread fires only after its own CAS deadline -> 0.
///  - `Timer::held_for_`: thread, seq_cst. The deadline that the heap knows; never = not in the heap.
///  - `Timer::posted_`: the owner sets it, the thread clears it. True while the timer is in `inbox_`.
///  - `Timer::cancelling_`: owner, read by the thread, seq_cst. True while the owner waits in `cancel`.
///  - `Timer::next_`: belongs to the thread that set `posted_`; published by the push on `inbox_`.
///  - `Timer::retiring_`, `Timer::gone_`, `retired_`: the end of a timer's life, see `let_go` and `retire`.
///  - `inbox_`: any thread. A stack, pushed one by one and taken whole, so there is no ABA.
///  - `sleeping_until_`: thread; a waker sets 0. seq_cst. 0 = awake, or a wake-up is on its way.
///  - `firing_`: thread, seq_cst. Whose callback runs now.
///
/// Four places are of the form "each side writes its own word and then reads the other's", which only
/// sequential consistency makes safe (one of the two must see the other):
///  1. arm: deadline_, then held_for_.       Thread: held_for_ = never, then deadline_ (in `take`).
///  2. arm: push inbox_, then sleeping_until_. Thread: sleeping_until_, then inbox_ (before it sleeps).
///  3. cancel: cancelling_, then firing_.    Thread: firing_, then cancelling_ (in `take`).
///  4. settle: deadline_ (read 0), then firing_. Thread: firing_, then CAS on deadline_ (in `take`).
///
/// A clock that is slewed or jumps wakes the thread by `wake_word_`, which it has read before it asks the
/// clock how long to sleep.
class TimerQueue final : private Clock::Observer {
  public:
    class Timer;

    /// What is called. `on_timer` runs on the queue's thread, one at a time for the whole queue: it must be
    /// short, must not block, and may arm its own timer again.
    class Client {
      public:
        /// @param deadline what had been armed; `clock().tsc()` has reached it.
        virtual void on_timer(uint64_t deadline) noexcept = 0;

      protected:
        ~Client() = default;
    };

    /// @param clock must outlive the queue.
    /// @param most_per_second callbacks; 0: any number.
    explicit TimerQueue(const Clock& clock, uint64_t most_per_second = 0);

    /// Stops the thread. Timers must be gone, or not be armed any more.
    ~TimerQueue();

    TimerQueue(const TimerQueue&) = delete;
    TimerQueue& operator=(const TimerQueue&) = delete;

    /// Ends the thread; no callback runs after it returns. Idempotent, not from a callback.
    void stop() noexcept;

    const Clock& clock() const noexcept { return clock_; }

    /// How often the thread was woken by an `arm` (any thread; for statistics and tests).
    uint64_t wakeups() const noexcept { return wakeups_.load(std::memory_order_relaxed); }

  private:
    static constexpr uint64_t kNever = ~uint64_t{0};
    static constexpr uint64_t kBurst = 32;  // callbacks that may come at once

    void clock_changed() noexcept override;

    void run() noexcept;
    void drain_inbox();
    void let_go(Timer& timer) noexcept;
    void place(Timer& timer);
    bool take(Timer& timer);
    void fire_due();
    uint64_t next_turn() const noexcept;
    void sleep() noexcept;
    void post(Timer& timer, uint64_t deadline) noexcept;
    void wake_before(uint64_t deadline) noexcept;
    void settle(const Timer& timer) noexcept;
    void retire(Timer& timer) noexcept;

    void heap_up(size_t slot) noexcept;
    void heap_down(size_t slot) noexcept;
    void heap_remove(Timer& timer) noexcept;

    const Clock& clock_;
    const uint64_t gap_;         // TSC ticks between callbacks in the long run; 0: none
    std::vector<Timer*> heap_;   // queue thread only; least held_for_ first
    uint64_t served_until_ = 0;  // queue thread only: the turns up to here have been used, or are gone

    alignas(64) std::atomic<Timer*> inbox_{nullptr};
    std::atomic<uint64_t> sleeping_until_{0};
    std::atomic<uint32_t> wake_word_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> stopped_{false};
    std::atomic<uint64_t> wakeups_{0};
    alignas(64) std::atomic<const Timer*> firing_{nullptr};
    std::atomic<uint32_t> retired_{0};  // counts timers let go; their destructors sleep on it

    std::thread thread_;  // last: everything above is ready when it starts
};

/// One deadline. `arm`, `disarm` and `cancel` belong to one owner thread and to the timer's own callback.
class TimerQueue::Timer {
  public:
    Timer(TimerQueue& queue, Client& client) noexcept : queue_(queue), client_(client) {}
    ~Timer() { queue_.retire(*this); }

    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    /// Calls back once when the clock reaches `deadline` (TSC ticks, not 0), instead of any earlier deadline.
    /// A callback for the deadline before may be under way and is not undone.
    void arm(uint64_t deadline) noexcept;

    /// Forgets the deadline. A callback that has begun may still be running when this returns.
    void disarm() noexcept { deadline_.store(0, std::memory_order_seq_cst); }

    /// Forgets the deadline and waits for a callback that has begun, even if it arms again. Returns the
    /// deadline that will now not be called for, 0 if there was none. Not from a callback.
    uint64_t cancel() noexcept;

    /// Waits for a callback that has begun, and leaves the deadline alone. Only a deadline that was seen to
    /// be 0, or replaced, before the call can no longer begin one after it. Not from a callback.
    void settle() noexcept { queue_.settle(*this); }

    /// The deadline, or 0 when it has been reached or none is armed. Any thread.
    uint64_t deadline() const noexcept { return deadline_.load(std::memory_order_seq_cst); }

  private:
    friend class TimerQueue;
    static constexpr size_t kNowhere = ~size_t{0};

    TimerQueue& queue_;
    Client& client_;
    std::atomic<uint64_t> deadline_{0};
    std::atomic<uint64_t> held_for_{kNever};
    std::atomic<bool> posted_{false};
    std::atomic<bool> cancelling_{false};
    std::atomic<bool> retiring_{false};
    std::atomic<bool> gone_{false};
    Timer* next_ = nullptr;
    size_t slot_ = kNowhere;  // place in the heap; queue thread only
};

}  // namespace coremesh
