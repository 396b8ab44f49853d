// SPDX-License-Identifier: GPL-2.0-or-later
// Interrupts from several threads to a vCPU that sleeps whenever it may: none may wait while it sleeps.
#include <random>

#include "base/futex.hpp"
#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

namespace {

/// A vCPU's notification as simple as it can be: a flag that is also the word it sleeps on.
class SleepingPort final : public VcpuPort {
  public:
    void kick() noexcept override {
        if (flag.exchange(1, std::memory_order_seq_cst) == 0) coremesh::futex_wake(flag);
    }
    void post_nmi() noexcept override {}
    void post_init() noexcept override {}
    void post_sipi(uint8_t) noexcept override {}

    std::atomic<uint32_t> flag{0};
};

enum class Order {
    kClearThenLook,  ///< right: a kick during the look is kept
    kLookThenClear,  ///< wrong: it is cleared with the kick that was served
};

struct Outcome {
    uint64_t accepted = 0;
    bool lost = false;
};

/// Senders give bursts of vectors of their own and wait until the vCPU has served each; the vCPU also masks
/// itself by its task priority now and then. Lost = not served within `patience`.
Outcome exchange(Order order, std::chrono::milliseconds budget, std::chrono::milliseconds patience,
                 unsigned sender_count, unsigned most) {
    coremesh::Clock clock;
    coremesh::TimerQueue queue(clock);
    SleepingPort port;
    RememberingBus bus;
    Lapic lapic({}, port, bus, queue);
    lapic.write(kSvr, 0x1FF);

    std::array<std::atomic<uint32_t>, 256> published{}, seen{};
    std::atomic<bool> over{false}, lost{false};
    std::atomic<uint64_t> accepted{0};

    std::thread vcpu([&] {
        std::minstd_rand random(99);
        while (!over.load(std::memory_order_relaxed)) {
            if (order == Order::kClearThenLook) port.flag.store(0, std::memory_order_seq_cst);
            if (random() % 8 == 0) {  // a critical section of the guest
                lapic.write_cr8(15);
                CHECK_EQ(lapic.acknowledge(), -1);
                lapic.write_cr8(0);
            }
            for (int vector; (vector = lapic.acknowledge()) >= 0;) {
                const auto at = static_cast<unsigned>(vector);
                seen[at].store(published[at].load(std::memory_order_relaxed), std::memory_order_relaxed);
                lapic.write(kEoi, 0);
            }
            if (order == Order::kLookThenClear && random() % 8 == 0) std::this_thread::yield();
            if (order == Order::kLookThenClear) port.flag.store(0, std::memory_order_seq_cst);
            coremesh::futex_wait_until(port.flag, 0, -1);
        }
    });
    std::vector<std::thread> senders;
    const auto end = std::chrono::steady_clock::now() + budget;
    for (unsigned sender = 0; sender < sender_count; ++sender) {
        senders.emplace_back([&, sender] {
            std::minstd_rand random(sender + 1);
            while (std::chrono::steady_clock::now() < end && !lost.load()) {
                const unsigned burst = 1 + static_cast<unsigned>(random()) % most;
                for (unsigned count = 0; count < burst; ++count) {
                    const unsigned vector =
                        16 + sender + sender_count * (static_cast<unsigned>(random()) % 80);
                    published[vector].fetch_add(1, std::memory_order_relaxed);
                    lapic.accept(DeliveryMode::kFixed, static_cast<uint8_t>(vector), Trigger::kEdge);
                }
                accepted.fetch_add(burst, std::memory_order_relaxed);
                const auto late = std::chrono::steady_clock::now() + patience;
                for (unsigned vector = 16 + sender; vector < 256; vector += sender_count) {
                    while (seen[vector].load(std::memory_order_relaxed) !=
                           published[vector].load(std::memory_order_relaxed)) {
                        if (std::chrono::steady_clock::now() > late) {
                            lost.store(true);
                            return;
                        }
                        std::this_thread::yield();
                    }
                }
            }
        });
    }
    for (std::thread& sender : senders) sender.join();
    over.store(true);
    port.kick();
    port.flag.store(1);
    coremesh::futex_wake(port.flag);
    vcpu.join();
    return {accepted.load(), lost.load()};
}

}  // namespace

STORY("given long bursts from three threads, when the vCPU sleeps in between, then every vector is served") {
    const Outcome outcome =
        exchange(Order::kClearThenLook, std::chrono::milliseconds(1500), std::chrono::seconds(20), 3, 256);
    std::cout << "  " << outcome.accepted << " interrupts\n";
    CHECK(!outcome.lost);
}

STORY(
    "given one thread that sends and waits, so that no other kick can help, then no interrupt finds the vCPU "
    "asleep for good") {
    const Outcome outcome =
        exchange(Order::kClearThenLook, std::chrono::milliseconds(1500), std::chrono::seconds(20), 1, 2);
    std::cout << "  " << outcome.accepted << " interrupts\n";
    CHECK(!outcome.lost);
}

STORY(
    "control: given a vCPU that clears its flag after the look, then the same exchange does lose an "
    "interrupt") {
    const Outcome outcome =
        exchange(Order::kLookThenClear, std::chrono::seconds(20), std::chrono::milliseconds(500), 1, 2);
    std::cout << "  lost after " << outcome.accepted << " interrupts\n";
    CHECK(outcome.lost);
}

STORY("given a pin that moves while LINT0 is masked and unmasked, then a high pin is never left unseen") {
    Apic apic;
    std::atomic<bool> over{false};
    std::atomic<int> high{0};
    std::thread device([&] {
        for (int round = 0; round < 4000 && !over.load(); ++round) {
            apic.lapic.set_pin(0, true);
            high.store(1);
            while (high.load() == 1) std::this_thread::yield();
            apic.lapic.set_pin(0, false);
            high.store(3);
            while (high.load() == 3) std::this_thread::yield();
        }
        high.store(-1);
    });
    // The vCPU masks and unmasks at its own pace; it looks only when it was kicked.
    int kicks_before = 0;
    uint64_t served = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (high.load() >= 0) {
        apic.lapic.write(kLvtLint0, kMasked | 0x700);
        apic.lapic.write(kLvtLint0, 0x700);
        if (high.load() == 1) {
            CHECK(apic.port.kicks.load() != kicks_before);
            CHECK(apic.lapic.extint_pending());
            ++served;
            high.store(2);
            while (high.load() == 2) std::this_thread::yield();
            kicks_before = apic.port.kicks.load();
            high.store(4);
        }
        if (std::chrono::steady_clock::now() > end) over.store(true);
    }
    device.join();
    std::cout << "  " << served << " times\n";
    CHECK(served > 100);
}

RUN_STORIES()
