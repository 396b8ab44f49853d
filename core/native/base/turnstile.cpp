// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/turnstile.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "base/futex.hpp"

namespace coremesh {
namespace {

// A waiter that is not the first has nothing to look at: it is woken when it is, and this is to be sure.
constexpr int64_t kLookNs = 1'000'000'000;
// How long turns are kept to after one was used up. Else the thread that waits is woken by the first that
// leaves: where accesses are few, that one does not come back soon.
constexpr int64_t kCrowdedNs = 10'000'000;
constexpr int64_t kSpinNs = 5'000;

void spin(const std::atomic<uint32_t>& word, int64_t until) noexcept {
    while (word.load(std::memory_order_seq_cst) == 0 && Clock::monotonic_ns() < until) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

}  // namespace

uint64_t Turnstile::enter() noexcept {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = ++last_ticket_;
    const bool may = first_ == nullptr || !first_->claims;
    if (!may || !take_free(ticket)) wait(lock, ticket);
    return ticket;
}

void Turnstile::leave(uint64_t ticket) noexcept {
    const std::lock_guard lock(mutex_);
    const auto place = std::find(places_.begin(), places_.end(), ticket);
    if (place == places_.end()) return;  // it took too long, and another thread has the place
    *place = 0;
    if (first_ == nullptr) return;
    const int64_t now = Clock::monotonic_ns();
    const bool over = now - turn_began_ns_ >= turn_ns();
    if (first_->claims) {
        crowded_until_ns_ = now + kCrowdedNs;
        *place = first_->ticket;
        take_first();
    } else if (!first_->woken && (!first_->armed || over || now >= crowded_until_ns_)) {
        // Once: until it runs, which takes a while, this thread may come back many times.
        wake_to_look(*first_);
    }
}

/// Where many wait, each waits long in any case, and a thread that has just come has cold caches.
int64_t Turnstile::turn_ns() const noexcept {
    return std::min(kTurnNs * (1 + int64_t{waiting_} / 8), kLongestTurnNs);
}

bool Turnstile::take_free(uint64_t ticket) noexcept {
    const auto place = std::find(places_.begin(), places_.end(), uint64_t{0});
    if (place == places_.end()) return false;
    *place = ticket;
    return true;
}

/// The first waiter has its place: a turn begins.
void Turnstile::take_first() noexcept {
    Waiter& waiter = *first_;
    first_ = waiter.next;
    if (first_ == nullptr) last_ = nullptr;
    turn_began_ns_ = Clock::monotonic_ns();
    waiter.inside = true;
    --waiting_;
    wake(waiter);
}

void Turnstile::wake_to_look(Waiter& waiter) noexcept {
    waiter.woken = true;
    wake(waiter);
}

void Turnstile::wake(Waiter& waiter) noexcept {
    // With the lock: the waiter's word is on its stack, and it cannot return meanwhile.
    waiter.word.store(1, std::memory_order_seq_cst);
    if (waiter.awake) return;
    ++wakes_;
    futex_wake(waiter.word);
}

void Turnstile::wait(std::unique_lock<std::mutex>& lock, uint64_t ticket) noexcept {
    Waiter self;
    self.ticket = ticket;
    int64_t now = Clock::monotonic_ns();
    if (first_ == nullptr) turn_began_ns_ = now;
    (first_ == nullptr ? first_ : last_->next) = &self;
    last_ = &self;
    ++waiting_;
    Places seen = places_;
    int64_t seen_ns = now;
    bool spun = false;
    while (!self.inside) {
        int64_t until = now + kLookNs;
        if (first_ == &self) {
            self.armed = true;
            // The place may be free by then, without a thread that has left since.
            const int64_t over = turn_began_ns_ + turn_ns();
            until = over > now ? over : seen_ns + kStuckNs;
        }
        // The thread inside leaves within an access, mostly: sooner than a sleeper wakes.
        self.awake = self.claims && !spun;
        spun = self.claims;
        lock.unlock();
        if (self.awake) {
            spin(self.word, now + kSpinNs);
        } else {
            futex_wait_until(self.word, 0, until);
        }
        lock.lock();
        self.awake = false;
        self.word.store(0, std::memory_order_seq_cst);
        now = Clock::monotonic_ns();
        if (self.inside || first_ != &self) continue;
        if (places_ != seen) {
            seen = places_;
            seen_ns = now;
        }
        // Before the turn is over the thread that has it may be back at once.
        const bool over = now >= turn_began_ns_ + turn_ns();
        if ((over || now >= crowded_until_ns_) && take_free(ticket)) {
            if (over) crowded_until_ns_ = now + kCrowdedNs;
            take_first();
        } else if (now - seen_ns >= kStuckNs) {
            *std::min_element(places_.begin(), places_.end()) = ticket;
            take_first();
        } else if (over) {
            self.claims = true;
        }
    }
    // The waiter that is the first now went to sleep behind another, without a time to look again.
    if (first_ != nullptr && !first_->woken) wake_to_look(*first_);
}

}  // namespace coremesh
