// SPDX-License-Identifier: GPL-2.0-or-later
// Deadlines: never early, never lost, cheap to move, safe to take away.
#include "base/timer_queue.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "stepped.hpp"

using coremesh::Clock;
using coremesh::TimerQueue;

namespace {

template <typename Condition>
bool eventually(Condition&& condition) {
    for (int waited = 0; waited < 100'000; ++waited) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return false;
}

/// Notes each call, how late it came, and calls that came before their deadline.
struct Witness final : TimerQueue::Client {
    explicit Witness(TimerQueue& queue) : clock(queue.clock()), timer(queue, *this) {}

    void on_timer(uint64_t deadline) noexcept override {
        const uint64_t now = clock.tsc();
        if (now < deadline) early.fetch_add(1);
        last.store(deadline);
        lateness.store(now - deadline);
        calls.fetch_add(1);
    }
    uint64_t in(uint64_t microseconds) const { return clock.tsc() + clock.ticks(microseconds * 1000); }

    const Clock& clock;
    std::atomic<uint64_t> last{0}, lateness{0};
    std::atomic<int> calls{0}, early{0};
    TimerQueue::Timer timer;
};

}  // namespace

STORY("given one deadline, then the call comes once, not before it, and the timer is unarmed by then") {
    const Clock clock;
    TimerQueue queue(clock);
    Witness witness(queue);
    const uint64_t deadline = witness.in(3000);
    witness.timer.arm(deadline);
    CHECK_EQ(witness.timer.deadline(), deadline);
    CHECK(eventually([&] { return witness.calls == 1; }));
    CHECK_EQ(witness.early, 0);
    CHECK_EQ(witness.last, deadline);
    CHECK_EQ(witness.timer.deadline(), 0u);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK_EQ(witness.calls, 1);
}

STORY("given a deadline in the past, then the call comes at once") {
    const Clock clock;
    TimerQueue queue(clock);
    Witness witness(queue);
    witness.timer.arm(1);
    CHECK(eventually([&] { return witness.calls == 1; }));
    CHECK_EQ(witness.last, 1u);
}

STORY(
    "given two hundred timers armed in random order, then all are called, in the order of their deadlines") {
    const Clock clock;
    TimerQueue queue(clock);
    struct Listed final : TimerQueue::Client {
        Listed(TimerQueue& in, std::vector<uint64_t>& calls) : order(calls), timer(in, *this) {}
        void on_timer(uint64_t deadline) noexcept override { order.push_back(deadline); }
        std::vector<uint64_t>& order;
        TimerQueue::Timer timer;
    };
    std::vector<uint64_t> order;
    order.reserve(200);
    std::vector<std::unique_ptr<Listed>> timers;
    std::vector<uint64_t> deadlines;
    std::minstd_rand random(7);
    const uint64_t start = clock.tsc() + clock.ticks(20'000'000);
    for (int index = 0; index < 200; ++index) {
        timers.push_back(std::make_unique<Listed>(queue, order));
        deadlines.push_back(start + random() % clock.ticks(10'000'000));
        timers.back()->timer.arm(deadlines.back());
    }
    CHECK(eventually([&] {
        return std::all_of(timers.begin(), timers.end(),
                           [](const auto& one) { return one->timer.deadline() == 0; });
    }));
    for (const auto& one : timers) one->timer.settle();
    CHECK_EQ(order.size(), 200u);
    CHECK(std::is_sorted(order.begin(), order.end()));
    std::sort(deadlines.begin(), deadlines.end());
    CHECK(order == deadlines);
}

STORY(
    "given an armed timer, when it is moved later, earlier, and disarmed, then only what holds at last is "
    "called") {
    const Clock clock;
    TimerQueue queue(clock);
    Witness later(queue), earlier(queue), never(queue);
    later.timer.arm(later.in(2000));
    const uint64_t moved = later.in(20'000);
    later.timer.arm(moved);
    earlier.timer.arm(earlier.in(10'000'000));
    const uint64_t soon = earlier.in(1000);
    earlier.timer.arm(soon);
    never.timer.arm(never.in(3000));
    never.timer.disarm();
    CHECK(eventually([&] { return later.calls == 1 && earlier.calls == 1; }));
    CHECK_EQ(later.last, moved);
    CHECK_EQ(earlier.last, soon);
    CHECK_EQ(later.early + earlier.early, 0);
    CHECK_EQ(never.calls, 0);
}

STORY(
    "given more timers than a queue may serve, then it keeps its rate and none is passed over, and "
    "without a rate they take all they can") {
    const Clock clock;
    /// Wants to be called 5000 times a second.
    struct Greedy final : TimerQueue::Client {
        explicit Greedy(TimerQueue& in) : clock(in.clock()), timer(in, *this) {}
        void on_timer(uint64_t) noexcept override {
            calls.fetch_add(1);
            timer.arm(clock.tsc() + clock.ticks(200'000));
        }
        const Clock& clock;
        std::atomic<int> calls{0};
        TimerQueue::Timer timer;
    };
    constexpr int kTimers = 100;
    constexpr uint64_t kRate = 2000, kBurst = 40;
    const auto served = [&](uint64_t rate) {
        TimerQueue queue(clock, rate);
        const uint64_t start = clock.tsc() + clock.ticks(20'000'000);  // all are armed by then
        std::vector<std::unique_ptr<Greedy>> timers;
        for (int index = 0; index < kTimers; ++index) timers.push_back(std::make_unique<Greedy>(queue));
        for (const auto& one : timers) one->timer.arm(start);
        const auto calls = [](const auto& one) { return one->calls.load(); };
        CHECK(eventually([&] {
            return std::all_of(timers.begin(), timers.end(),
                               [&](const auto& one) { return calls(one) >= 4; });
        }));
        queue.stop();
        const uint64_t allowed = kRate * (clock.tsc() - start) / clock.hz() + kBurst;
        const auto [least, most] = std::minmax_element(
            timers.begin(), timers.end(), [&](const auto& a, const auto& b) { return calls(a) < calls(b); });
        CHECK(calls(*most) <= 2 * calls(*least));
        uint64_t sum = 0;
        for (const auto& one : timers) sum += static_cast<uint64_t>(calls(one));
        return std::pair<uint64_t, uint64_t>(sum, allowed);
    };
    const auto [kept, allowed] = served(kRate);
    CHECK(kept <= allowed);
    const auto [taken, would_be_allowed] = served(0);
    CHECK(taken > would_be_allowed);
}

STORY(
    "given a thread that sleeps until soon, when later deadlines are armed, then it is not woken for them") {
    const Clock clock;
    TimerQueue queue(clock);
    Witness soon(queue), later(queue);
    soon.timer.arm(soon.in(200'000));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const uint64_t before = queue.wakeups();
    for (uint64_t step = 0; step < 1000; ++step) later.timer.arm(later.in(500'000 + step));
    CHECK_EQ(queue.wakeups(), before);
    CHECK(eventually([&] { return soon.calls == 1 && later.calls == 1; }));
    CHECK_EQ(later.early, 0);
}

STORY(
    "given a callback under way that arms again, when the owner cancels, then it has ended and nothing comes "
    "after") {
    const Clock clock;
    TimerQueue queue(clock);
    struct Restless final : TimerQueue::Client {
        explicit Restless(TimerQueue& in) : timer(in, *this) {}
        void on_timer(uint64_t deadline) noexcept override {
            inside.store(true);
            timer.arm(deadline + 1);
            unprotected = unprotected + 1;  // ThreadSanitizer objects if `cancel` does not order it
            calls.fetch_add(1);
            inside.store(false);
        }
        std::atomic<bool> inside{false};
        std::atomic<int> calls{0};
        int unprotected = 0;
        TimerQueue::Timer timer;
    } restless(queue);
    for (int round = 0; round < 300; ++round) {
        const int before = restless.calls;
        restless.timer.arm(1);
        CHECK(eventually([&] { return restless.calls > before + 2; }));
        restless.timer.cancel();
        CHECK(!restless.inside);
        restless.unprotected = 0;
        const int after = restless.calls;
        std::this_thread::yield();
        CHECK_EQ(restless.calls, after);
        CHECK_EQ(restless.timer.deadline(), 0u);
    }
}

#ifdef HAS_STEPPED
STORY(
    "given a callback that arms again at once, when the thread overtakes the owner anywhere in its cancel, "
    "then "
    "none runs when that returns") {
    const Clock clock;
    TimerQueue queue(clock);
    struct Restless final : TimerQueue::Client {
        explicit Restless(TimerQueue& in) : timer_clock(in.clock()), timer(in, *this) {}
        void on_timer(uint64_t) noexcept override {
            begun.fetch_add(1);
            const uint64_t until = timer_clock.tsc() + timer_clock.hz() / 200'000;
            while (timer_clock.tsc() < until)
                ;
            timer.arm(1);
            ended.fetch_add(1);
        }
        const Clock& timer_clock;
        std::atomic<unsigned> begun{0}, ended{0};
        TimerQueue::Timer timer;
    } restless(queue);
    std::minstd_rand random(1);
    // Until the next callback is under way, or will not come.
    const std::function<void()> overtake = [&] {
        if (random() % 8 != 0) return;
        const unsigned seen = restless.begun;
        for (int look = 0; look < 2000 && restless.begun == seen; ++look) {
        }
    };
    for (int round = 0; round < 500; ++round) {
        const unsigned seen = restless.ended;
        restless.timer.arm(1);
        CHECK(eventually([&] { return restless.ended != seen; }));
        check::stepped(overtake, [&] { restless.timer.cancel(); });
        CHECK_EQ(restless.begun, restless.ended.load());
        CHECK_EQ(restless.timer.deadline(), 0u);
    }
}
#endif

STORY("given a deadline that is taken back in time, then cancel tells which one, else zero") {
    const Clock clock;
    TimerQueue queue(clock);
    Witness witness(queue);
    const uint64_t far = witness.in(60'000'000);
    witness.timer.arm(far);
    CHECK_EQ(witness.timer.cancel(), far);
    CHECK_EQ(witness.timer.cancel(), 0u);
}

STORY("given timers that are made, armed and destroyed at random, then none is touched afterwards") {
    const Clock clock;
    TimerQueue queue(clock);
    std::vector<std::thread> owners;
    std::atomic<int> early{0};
    for (unsigned owner = 0; owner < 3; ++owner) {
        owners.emplace_back([&, owner] {
            std::minstd_rand random(owner + 1);
            for (int round = 0; round < 2000; ++round) {
                auto witness = std::make_unique<Witness>(queue);
                for (unsigned arms = static_cast<unsigned>(random()) % 4; arms > 0; --arms) {
                    witness->timer.arm(witness->in(random() % 100));
                }
                if (random() % 4 == 0) std::this_thread::yield();
                early += witness->early.load();
            }
        });
    }
    for (std::thread& owner : owners) owner.join();
    CHECK_EQ(early, 0);
}

STORY("given a queue that has stopped, then timers may still be armed and destroyed") {
    const Clock clock;
    auto queue = std::make_unique<TimerQueue>(clock);
    auto witness = std::make_unique<Witness>(*queue);
    witness->timer.arm(witness->in(1'000'000));
    queue->stop();
    witness->timer.arm(1);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    CHECK_EQ(witness->calls, 0);
    witness.reset();
}

STORY(
    "given owners that arm for each next tick from their own threads, then every tick is called for, none "
    "early") {
    const Clock clock;
    TimerQueue queue(clock);
    constexpr int kTicks = 1500;
    std::atomic<int> early{0};
    std::vector<std::thread> owners;
    std::mutex all_lock;
    std::vector<uint64_t> all;
    for (unsigned owner = 0; owner < 4; ++owner) {
        owners.emplace_back([&, owner] {
            std::minstd_rand random(owner + 1);
            Witness witness(queue);
            std::vector<uint64_t> lateness;
            for (int tick = 1; tick <= kTicks; ++tick) {
                witness.timer.arm(witness.in(1 + random() % 400));
                if (random() % 3 == 0)
                    witness.timer.arm(witness.in(1 + random() % 400));  // moved before it came
                while (witness.timer.deadline() != 0)
                    std::this_thread::sleep_for(std::chrono::microseconds(20));
                witness.timer.settle();
                lateness.push_back(witness.lateness);
            }
            CHECK(witness.calls >= kTicks);
            early += witness.early.load();
            const std::lock_guard lock(all_lock);
            all.insert(all.end(), lateness.begin(), lateness.end());
        });
    }
    for (std::thread& owner : owners) owner.join();
    CHECK_EQ(early, 0);
    std::sort(all.begin(), all.end());
    const auto microseconds = [&](size_t index) {
        return static_cast<double>(all[index]) * 1e6 / static_cast<double>(clock.hz());
    };
    std::cout << "  lateness: median " << microseconds(all.size() / 2) << " us, 99 % below "
              << microseconds(all.size() * 99 / 100) << " us\n";
}

RUN_STORIES()
