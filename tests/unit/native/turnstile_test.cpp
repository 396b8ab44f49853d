// SPDX-License-Identifier: GPL-2.0-or-later
// Threads at a turnstile: few are inside at once, each has its turn, and one that is stuck keeps no other
// out.
#include "base/turnstile.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.hpp"

using coremesh::Turnstile;
using Clock = std::chrono::steady_clock;

namespace {

void spin(std::chrono::microseconds span) {
    for (const auto end = Clock::now() + span; Clock::now() < end;) {
    }
}

}  // namespace

STORY("given many threads that come again and again, then few are inside at once and each has its turn") {
    Turnstile turnstile;
    constexpr size_t kThreads = 40;
    std::array<std::atomic<uint64_t>, kThreads> turns{};
    std::atomic<uint64_t> passed{0}, crowded{0};
    std::atomic<size_t> inside{0}, served{0};
    std::vector<std::thread> threads;
    const auto end = Clock::now() + std::chrono::seconds(60);
    for (size_t index = 0; index < kThreads; ++index) {
        threads.emplace_back([&, index] {
            while (served < kThreads && Clock::now() < end) {
                const Turnstile::Inside here(turnstile);
                if (inside.fetch_add(1) >= kThreads / 4) ++crowded;
                spin(std::chrono::microseconds(2));
                inside.fetch_sub(1);
                ++passed;
                if (turns[index].fetch_add(1) == 3) ++served;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    CHECK_EQ(served.load(), kThreads);
    // One that the host keeps from running is taken for stuck, so there may be several. Without the turnstile
    // all are inside nearly always.
    CHECK(crowded < passed / 2);
}

STORY(
    "given threads that come again at once, when others wait, then a thread is woken each turn, not each "
    "visit") {
    Turnstile turnstile;
    std::vector<std::thread> threads;
    constexpr uint64_t kVisits = 20'000, kThreads = 8;
    for (uint64_t index = 0; index < kThreads; ++index) {
        threads.emplace_back([&] {
            for (uint64_t visit = 0; visit < kVisits; ++visit) const Turnstile::Inside here(turnstile);
        });
    }
    for (auto& thread : threads) thread.join();
    CHECK(turnstile.wakes() < kThreads * kVisits / 20);
}

STORY(
    "given threads that wait inside for something, then the others pass all the same, after a moment at "
    "most") {
    Turnstile turnstile;
    std::atomic<bool> over{false};
    std::atomic<size_t> stuck{0};
    std::vector<std::thread> threads;
    for (size_t place = 0; place < Turnstile::kPlaces; ++place) {
        threads.emplace_back([&] {
            const Turnstile::Inside here(turnstile);
            ++stuck;
            while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        });
    }
    while (stuck < Turnstile::kPlaces) std::this_thread::yield();
    std::vector<std::thread> others;
    for (int index = 0; index < 8; ++index) {
        others.emplace_back([&] {
            for (int round = 0; round < 1000; ++round) const Turnstile::Inside here(turnstile);
        });
    }
    for (auto& thread : others) thread.join();  // else the test's time limit ends this
    over = true;
    for (auto& thread : threads) thread.join();
    // Those that were given up have taken no place with them.
    for (int round = 0; round < 1000; ++round) const Turnstile::Inside here(turnstile);
}

STORY("given a thread that steps out to wait, then another is inside at once, and only one") {
    Turnstile turnstile;
    std::atomic<bool> inside{false}, go_on{false};
    const auto begin = Clock::now();
    int passed = 0;
    while (Clock::now() - begin < std::chrono::seconds(60) && passed < 200) {
        inside = go_on = false;
        std::thread first([&] {
            const Turnstile::Inside here(turnstile);
            Turnstile::step_out();
            inside = true;
            while (!go_on) std::this_thread::yield();
            Turnstile::step_out();  // it has no place any more: of no effect
        });
        while (!inside) std::this_thread::yield();
        const auto entered = Clock::now();
        {
            const Turnstile::Inside here(turnstile);
            if (Clock::now() - entered < std::chrono::nanoseconds(Turnstile::kStuckNs)) ++passed;
        }
        go_on = true;
        first.join();
    }
    CHECK_EQ(passed, 200);
    Turnstile::step_out();  // not inside at all
}

STORY("given threads that pause between, then none is forgotten outside while there is a place") {
    Turnstile turnstile;
    std::vector<std::thread> threads;
    for (int index = 0; index < 6; ++index) {
        threads.emplace_back([&, index] {
            for (int round = 0; round < 300; ++round) {
                {
                    const Turnstile::Inside here(turnstile);
                    spin(std::chrono::microseconds(1 + (round + index) % 7));
                }
                std::this_thread::sleep_for(std::chrono::microseconds((round * (index + 3)) % 90));
            }
        });
    }
    for (auto& thread : threads) thread.join();
}

RUN_STORIES()
