// SPDX-License-Identifier: GPL-2.0-or-later
// The gate: while it is closed no vCPU is inside or in the midst of an instruction, and no thread waits for
// ever.
#include "vcpu/gate.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"

using coremesh::Gate;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

/// The mistake that the gate is made to avoid: to look first and to say «inside» second.
class LooksFirst {
  public:
    using Inside = std::atomic<bool>;
    void enter(Inside& inside) {
        while (closed_) std::this_thread::yield();
        // The window of the mistake, held open so that it is found at once.
        if (++entries_ % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
        inside = true;
    }
    void leave(Inside& inside) { inside = false; }
    template <typename Kick, typename Anybody>
    void pause(Kick&& kick_insiders, Anybody&& anybody_inside) {
        for (bool open = false; !closed_.compare_exchange_strong(open, true); open = false) {
            std::this_thread::yield();
        }
        kick_insiders();
        while (anybody_inside()) std::this_thread::yield();
    }
    void end_pause() { closed_ = false; }
    template <typename Kick, typename Anybody>
    void begin_exclusive(Inside& inside, Kick&& kick_insiders, Anybody&& anybody_inside) {
        leave(inside);
        pause(kick_insiders, anybody_inside);
    }
    bool end_exclusive(Inside& inside) {
        end_pause();
        enter(inside);
        return false;
    }

  private:
    std::atomic<bool> closed_{false};
    std::atomic<unsigned> entries_{0};
};

constexpr unsigned kVcpus = 4, kClosers = 2;

struct Outcome {
    uint64_t intrusions = 0;  ///< somebody was inside while the gate was closed
    uint64_t entered_least = 0, closed_least = 0, bus_locks = 0;
};

/// vCPUs go in and out; each stays inside until it is kicked or has had enough, and sometimes closes the gate
/// itself, as for a locked access over two pages. Others close it for a pause. `Plain` is what only the gate
/// protects: a plain word under the real gate, for ThreadSanitizer to watch.
template <typename G, typename Plain>
Outcome run(milliseconds time, bool until_intrusion) {
    struct Vcpu {
        Gate::Inside inside{false};
        std::atomic<bool> kicked{false};
        std::atomic<bool> midway{false};  // in an instruction that has begun and not ended
        std::atomic<uint64_t> entered{0};
    };
    G gate;
    std::array<Vcpu, kVcpus> vcpus;
    Plain secret{0};
    std::atomic<uint64_t> intrusions{0}, bus_locks{0};
    std::array<std::atomic<uint64_t>, kClosers> closed{};
    std::atomic<bool> stop{false};

    auto kick = [&](Vcpu* except) {
        return [&, except] {
            for (Vcpu& vcpu : vcpus) {
                if (&vcpu != except && vcpu.inside) vcpu.kicked = true;
            }
        };
    };
    auto anybody = [&](Vcpu* except) {
        return [&, except] {
            for (Vcpu& vcpu : vcpus) {
                if (&vcpu != except && vcpu.inside) return true;
            }
            return false;
        };
    };
    // The word goes odd and even again, and no vCPU may see it odd.
    auto alone = [&] {
        secret = secret + 1;
        for (int i = 0; i < 100; i++) asm volatile("");
        secret = secret + 1;
    };

    std::vector<std::thread> threads;
    for (unsigned index = 0; index < kVcpus; ++index) {
        threads.emplace_back([&, index] {
            Vcpu& self = vcpus[index];
            std::minstd_rand random(index + 1);
            while (!stop) {
                gate.enter(self.inside);
                self.entered++;
                for (unsigned left = random() % 4000; left && !self.kicked; --left) {
                    if (secret & 1) intrusions++;
                }
                self.kicked = false;
                if (random() % 16 == 0) {
                    self.midway = true;
                    gate.begin_exclusive(self.inside, kick(&self), anybody(&self));
                    alone();
                    bus_locks++;
                    gate.end_exclusive(self.inside);
                    if (secret & 1) intrusions++;
                    self.midway = false;
                }
                gate.leave(self.inside);
            }
        });
    }
    for (unsigned index = 0; index < kClosers; ++index) {
        threads.emplace_back([&, index] {
            std::minstd_rand random(index + 100);
            while (!stop) {
                gate.pause(kick(nullptr), anybody(nullptr));
                alone();
                for (Vcpu& vcpu : vcpus) {
                    if (vcpu.midway) intrusions++;
                }
                closed[index]++;
                gate.end_pause();
                std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
            }
        });
    }
    const auto end = steady_clock::now() + time;
    while (steady_clock::now() < end && !(until_intrusion && intrusions)) {
        std::this_thread::sleep_for(milliseconds(1));
    }
    stop = true;
    for (auto& thread : threads) thread.join();

    Outcome outcome{intrusions, ~uint64_t{0}, ~uint64_t{0}, bus_locks};
    for (Vcpu& vcpu : vcpus) outcome.entered_least = std::min<uint64_t>(outcome.entered_least, vcpu.entered);
    for (auto& count : closed) outcome.closed_least = std::min<uint64_t>(outcome.closed_least, count);
    return outcome;
}

}  // namespace

STORY("given vCPUs that come and go, when others close the gate, then nobody is inside while it is closed") {
    const Outcome outcome = run<Gate, uint64_t>(milliseconds(700), false);
    CHECK_EQ(outcome.intrusions, 0u);
    // Everybody had a turn: nobody waits for ever.
    CHECK(outcome.entered_least > 10);
    CHECK(outcome.closed_least > 10);
    CHECK(outcome.bus_locks > 10);
}

STORY(
    "given a gate that looks before it says inside, when others close it, then the test sees the intruder") {
    const Outcome outcome = run<LooksFirst, std::atomic<uint64_t>>(milliseconds(20'000), true);
    CHECK(outcome.intrusions > 0);
}

STORY("given a closed gate, when a vCPU wants in, then it waits until the gate opens") {
    Gate gate;
    Gate::Inside inside{false};
    std::atomic<bool> entered{false};
    gate.pause([] {}, [] { return false; });
    CHECK(gate.closed());
    std::thread vcpu([&] {
        gate.enter(inside);
        entered = true;
        gate.leave(inside);
    });
    std::this_thread::sleep_for(milliseconds(20));
    CHECK(!entered);
    CHECK(!inside);
    gate.end_pause();
    vcpu.join();
    CHECK(entered);
}

STORY("given a closed gate, when a second pause comes, then it has its turn after the first") {
    Gate gate;
    std::atomic<int> turn{0};
    gate.pause([] {}, [] { return false; });
    std::thread second([&] {
        gate.pause([] {}, [] { return false; });
        CHECK_EQ(turn, 1);
        gate.end_pause();
    });
    std::this_thread::sleep_for(milliseconds(10));
    turn = 1;
    gate.end_pause();
    second.join();
    CHECK(!gate.closed());
}

STORY(
    "given a vCPU in an exclusive section, when a pause comes, then it waits until the instruction has "
    "ended") {
    Gate gate;
    Gate::Inside inside{false};
    std::atomic<bool> paused{false};
    gate.enter(inside);
    gate.begin_exclusive(
        inside, [] {}, [] { return false; });
    std::thread pauser([&] {
        gate.pause([] {}, [&] { return inside.load(); });
        paused = true;
    });
    std::this_thread::sleep_for(milliseconds(20));
    CHECK(!paused);
    CHECK(gate.end_exclusive(inside));  // back inside, though the gate is closed, and told to come out
    CHECK(inside);
    std::this_thread::sleep_for(milliseconds(20));
    CHECK(!paused);
    gate.leave(inside);
    pauser.join();
    CHECK(paused);
    gate.end_pause();
}

STORY("given a pause that waits, when a vCPU begins an exclusive section, then both come to their end") {
    Gate gate;
    Gate::Inside first{false}, second{false};
    std::atomic<bool> paused{false};
    gate.enter(first);
    gate.enter(second);
    std::thread pauser([&] {
        gate.pause([] {}, [&] { return first || second; });
        paused = true;
    });
    while (!gate.closed()) std::this_thread::yield();
    std::thread locker([&] {
        gate.begin_exclusive(
            second, [] {}, [&] { return first.load(); });
        gate.end_exclusive(second);
        gate.leave(second);
    });
    std::this_thread::sleep_for(milliseconds(10));
    CHECK(!paused);
    gate.leave(first);
    locker.join();
    pauser.join();
    CHECK(paused);
    gate.end_pause();
}

RUN_STORIES()
