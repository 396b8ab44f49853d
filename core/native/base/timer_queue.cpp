// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/timer_queue.hpp"

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/futex.hpp"
#include "base/masked_signals.hpp"

namespace coremesh {
namespace {

/// sched_setattr(2)'s argument, which this C library does not declare.
struct SchedulingAttributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

/// The thread is awake for microseconds and a whole machine's time hangs on it: it should not wait behind
/// vCPUs that compute. Each request may be refused, by an old kernel or for want of privileges; then it does
/// without.
void prepare_thread() noexcept {
    pthread_setname_np(pthread_self(), "coremesh-timer");
    prctl(PR_SET_TIMERSLACK, 1000UL);  // the default of 50 us would be added to every sleep

    const auto thread = static_cast<id_t>(syscall(SYS_gettid));
    SchedulingAttributes attributes{};
    attributes.size = sizeof attributes;
    attributes.nice = getpriority(PRIO_PROCESS, thread);
    // A short time slice makes an early virtual deadline, and so an early turn (EEVDF, Linux 6.12 on). It
    // takes no privilege: what is short comes sooner, and is shorter.
    attributes.runtime_ns = 100'000;
    syscall(SYS_sched_setattr, 0, &attributes, 0);
    setpriority(PRIO_PROCESS, thread, -10);
}

}  // namespace

TimerQueue::TimerQueue(const Clock& clock, uint64_t most_per_second)
    : clock_(clock), gap_(most_per_second ? clock.ticks(1'000'000'000 / most_per_second) : 0) {
    {
        const MaskedSignals masked;
        thread_ = std::thread([this] { run(); });
    }
    if (clock_.following()) clock_.observe(*this);
}

TimerQueue::~TimerQueue() { stop(); }

void TimerQueue::stop() noexcept {
    if (!thread_.joinable()) return;
    if (clock_.following()) clock_.forget(*this);
    stopping_.store(true, std::memory_order_seq_cst);
    wake_word_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(wake_word_);
    thread_.join();
    stopped_.store(true, std::memory_order_release);
    retired_.fetch_add(1, std::memory_order_release);
    retired_.notify_all();
}

// ---- owners' side
// -------------------------------------------------------------------------------------------

void TimerQueue::Timer::arm(uint64_t deadline) noexcept {
    deadline_.store(deadline, std::memory_order_seq_cst);
    // Pairing 1. If the heap holds this timer for an earlier moment, the thread will look at deadline_ then.
    if (held_for_.load(std::memory_order_seq_cst) <= deadline) return;
    queue_.post(*this, deadline);
}

uint64_t TimerQueue::Timer::cancel() noexcept {
    // Pairing 3. A callback that arms again may be followed by the next one at once. No look at firing_ and
    // deadline_ in turn can tell that none runs; so the thread is told to begin none.
    cancelling_.store(true, std::memory_order_seq_cst);
    const uint64_t before = deadline_.exchange(0, std::memory_order_seq_cst);
    settle();
    const uint64_t armed_again = deadline_.exchange(0, std::memory_order_seq_cst);
    cancelling_.store(false, std::memory_order_seq_cst);
    return armed_again != 0 ? armed_again : before;
}

void TimerQueue::post(Timer& timer, uint64_t deadline) noexcept {
    // The flag is cleared by the thread before it reads deadline_: a deadline stored while it is set is read.
    if (!timer.posted_.exchange(true, std::memory_order_seq_cst)) {
        Timer* head = inbox_.load(std::memory_order_relaxed);
        do {
            timer.next_ = head;
        } while (!inbox_.compare_exchange_weak(head, &timer, std::memory_order_seq_cst));
    }
    wake_before(deadline);
}

void TimerQueue::wake_before(uint64_t deadline) noexcept {
    // Pairing 2. The loop ends after one round unless the thread itself goes to sleep at this moment.
    uint64_t until = sleeping_until_.load(std::memory_order_seq_cst);
    while (deadline < until) {
        if (sleeping_until_.compare_exchange_weak(until, 0, std::memory_order_seq_cst)) {
            wakeups_.fetch_add(1, std::memory_order_relaxed);
            wake_word_.fetch_add(1, std::memory_order_seq_cst);
            futex_wake(wake_word_);
            return;
        }
    }
}

void TimerQueue::settle(const Timer& timer) noexcept {
    // Pairings 3 and 4.
    while (firing_.load(std::memory_order_seq_cst) == &timer) firing_.wait(&timer, std::memory_order_seq_cst);
}

void TimerQueue::retire(Timer& timer) noexcept {
    timer.cancel();
    timer.retiring_.store(true, std::memory_order_seq_cst);
    post(timer, 0);
    // After the thread has set gone_ it touches only the queue, so that the timer's memory may go at once.
    while (!timer.gone_.load(std::memory_order_acquire)) {
        const uint32_t seen = retired_.load(std::memory_order_acquire);
        if (timer.gone_.load(std::memory_order_acquire)) return;
        if (stopped_.load(std::memory_order_acquire))
            return;  // no thread looks at the inbox or the heap again
        retired_.wait(seen, std::memory_order_acquire);
    }
}

/// Not counted among the wake-ups by `arm`.
void TimerQueue::clock_changed() noexcept {
    wake_word_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(wake_word_);
}

// ---- the thread's side
// --------------------------------------------------------------------------------------

void TimerQueue::run() noexcept {
    prepare_thread();
    while (!stopping_.load(std::memory_order_seq_cst)) {
        drain_inbox();
        fire_due();
        sleep();
    }
}

void TimerQueue::drain_inbox() {
    Timer* timer = inbox_.exchange(nullptr, std::memory_order_seq_cst);
    while (timer != nullptr) {
        Timer* const next = timer->next_;
        // Before deadline_ and retiring_ are read: an owner that changes them later posts anew.
        timer->posted_.store(false, std::memory_order_seq_cst);
        if (timer->retiring_.load(std::memory_order_seq_cst)) {
            let_go(*timer);
        } else {
            place(*timer);
        }
        timer = next;
    }
}

/// The owner has set retiring_ and then posts; this may be an earlier post of the same timer. The first to
/// set posted_ decides: the thread, then the owner will not push; or the owner, then the timer comes by once
/// more.
void TimerQueue::let_go(Timer& timer) noexcept {
    heap_remove(timer);
    if (timer.posted_.exchange(true, std::memory_order_seq_cst)) return;
    timer.gone_.store(true, std::memory_order_release);
    retired_.fetch_add(1, std::memory_order_release);
    retired_.notify_all();
}

/// Brings the timer's place in the heap up to date with its deadline.
void TimerQueue::place(Timer& timer) {
    const uint64_t deadline = timer.deadline_.load(std::memory_order_seq_cst);
    if (deadline == 0) return;  // if it is in the heap, it falls out when its old moment comes
    if (timer.held_for_.load(std::memory_order_relaxed) <= deadline) return;
    timer.held_for_.store(deadline, std::memory_order_seq_cst);
    if (timer.slot_ == Timer::kNowhere) {
        timer.slot_ = heap_.size();
        heap_.push_back(&timer);
    }
    heap_up(timer.slot_);
}

void TimerQueue::fire_due() {
    while (!heap_.empty() && !stopping_.load(std::memory_order_relaxed)) {
        const uint64_t now = clock_.tsc();
        if (std::max(heap_.front()->held_for_.load(std::memory_order_relaxed), next_turn()) > now) return;
        if (take(*heap_.front())) served_until_ = std::max(served_until_, now) + gap_;
    }
}

/// When the next callback may come, whatever its deadline.
uint64_t TimerQueue::next_turn() const noexcept {
    const uint64_t burst = kBurst * gap_;
    return served_until_ > burst ? served_until_ - burst : 0;
}

/// The moment has come for which the heap holds this timer: fire, or put it where it belongs now. True when
/// it fired.
bool TimerQueue::take(Timer& timer) {
    bool fired = false;
    heap_remove(timer);
    firing_.store(&timer, std::memory_order_seq_cst);
    // Its place in the heap is gone then: what the owner arms after `cancel` is posted.
    const bool cancelled = timer.cancelling_.load(std::memory_order_seq_cst);
    uint64_t deadline = cancelled ? 0 : timer.deadline_.load(std::memory_order_seq_cst);
    if (deadline != 0 && deadline <= clock_.tsc() &&
        timer.deadline_.compare_exchange_strong(deadline, 0, std::memory_order_seq_cst)) {
        timer.client_.on_timer(deadline);
        fired = true;
    }
    // Armed again, meanwhile or since long: by pairing 1 either the owner posts, or this look sees it. It
    // comes before firing_ is given up, because until then the owner does not let the timer go.
    if (!cancelled) place(timer);
    firing_.store(nullptr, std::memory_order_seq_cst);
    firing_.notify_all();
    return fired;
}

void TimerQueue::sleep() noexcept {
    const uint32_t word = wake_word_.load(std::memory_order_seq_cst);
    const uint64_t until =
        heap_.empty() ? kNever
                      : std::max(heap_.front()->held_for_.load(std::memory_order_relaxed), next_turn());
    sleeping_until_.store(until, std::memory_order_seq_cst);
    // Pairing 2: a thread that posted before this store may have seen an older value and left the rest to us.
    if (inbox_.load(std::memory_order_seq_cst) == nullptr && !stopping_.load(std::memory_order_seq_cst)) {
        futex_wait_until(wake_word_, word, until == kNever ? -1 : clock_.monotonic_at(until));
    }
    sleeping_until_.store(0, std::memory_order_seq_cst);
}

// ---- binary heap with known places
// --------------------------------------------------------------------------

void TimerQueue::heap_up(size_t slot) noexcept {
    Timer* const timer = heap_[slot];
    const uint64_t key = timer->held_for_.load(std::memory_order_relaxed);
    while (slot > 0) {
        const size_t parent = (slot - 1) / 2;
        if (heap_[parent]->held_for_.load(std::memory_order_relaxed) <= key) break;
        heap_[slot] = heap_[parent];
        heap_[slot]->slot_ = slot;
        slot = parent;
    }
    heap_[slot] = timer;
    timer->slot_ = slot;
}

void TimerQueue::heap_down(size_t slot) noexcept {
    Timer* const timer = heap_[slot];
    const uint64_t key = timer->held_for_.load(std::memory_order_relaxed);
    for (;;) {
        size_t child = 2 * slot + 1;
        if (child >= heap_.size()) break;
        const auto key_of = [this](size_t at) {
            return heap_[at]->held_for_.load(std::memory_order_relaxed);
        };
        if (child + 1 < heap_.size() && key_of(child + 1) < key_of(child)) ++child;
        if (key <= key_of(child)) break;
        heap_[slot] = heap_[child];
        heap_[slot]->slot_ = slot;
        slot = child;
    }
    heap_[slot] = timer;
    timer->slot_ = slot;
}

void TimerQueue::heap_remove(Timer& timer) noexcept {
    if (timer.slot_ == Timer::kNowhere) return;
    const size_t slot = std::exchange(timer.slot_, Timer::kNowhere);
    timer.held_for_.store(kNever, std::memory_order_seq_cst);
    Timer* const last = heap_.back();
    heap_.pop_back();
    if (last == &timer) return;
    heap_[slot] = last;
    last->slot_ = slot;
    heap_up(slot);
    heap_down(last->slot_);
}

}  // namespace coremesh
