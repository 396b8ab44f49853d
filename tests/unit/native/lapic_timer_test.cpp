// SPDX-License-Identifier: GPL-2.0-or-later
// The local APIC's timer (SDM vol. 3A, 11.5.4 and 11.5.4.1).
#include <chrono>
#include <functional>
#include <optional>
#include <random>
#include <utility>

#include "check.hpp"
#include "lapic_fixture.hpp"
#include "stepped.hpp"

using namespace fixture;

namespace {

constexpr uint32_t kByOne = 0xB;

/// Counts per millisecond of the default clock, 1 GHz, divided by one.
constexpr uint32_t kMillisecond = 1'000'000;

bool pending(Apic& apic) { return apic.lapic.highest_pending() >= 0; }

}  // namespace

STORY(
    "11.5.4: given one-shot mode, when the count has run down, then one interrupt, not early, and the count "
    "stays zero") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, 0x40);
    const uint64_t start = apic.clock.tsc();
    apic.lapic.write(kInitial, 5 * kMillisecond);
    CHECK_EQ(apic.lapic.read(kInitial), 5 * kMillisecond);
    CHECK(eventually([&] { return pending(apic); }));
    CHECK(apic.clock.tsc() - start >= apic.clock.hz() / 200);
    CHECK_EQ(apic.lapic.acknowledge(), 0x40);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.read(kCurrent), 0u);
    sleep_ms(12);
    CHECK(!pending(apic));
}

STORY("11.5.4: given each divide configuration, then the current count falls at that rate") {
    // Coding of figure 11-10: bits 3, 1, 0.
    const std::pair<uint32_t, uint32_t> divisors[] = {{0x0, 2},  {0x1, 4},  {0x2, 8},   {0x3, 16},
                                                      {0x8, 32}, {0x9, 64}, {0xA, 128}, {0xB, 1}};
    Apic apic;
    for (const auto& [code, divisor] : divisors) {
        apic.lapic.write(kDivide, code);
        CHECK_EQ(apic.lapic.read(kDivide), code);
        const uint64_t before = apic.clock.tsc();
        apic.lapic.write(kInitial, 0xFFFF'FFFF);
        const uint64_t started = apic.clock.tsc();
        sleep_ms(3);
        const uint64_t asked = apic.clock.tsc();
        const uint64_t passed = 0xFFFF'FFFF - apic.lapic.read(kCurrent);
        const uint64_t answered = apic.clock.tsc();
        const auto counts = [&](uint64_t ticks) {
            return ticks * (1'000 * kMillisecond) / apic.clock.hz() / divisor;
        };
        CHECK(passed + 2 >= counts(asked - started));
        CHECK(passed <= counts(answered - before) + 2);
    }
}

STORY("given another input clock, then the count falls at its rate") {
    Apic apic({.timer_hz = 25'000'000});
    apic.lapic.write(kDivide, kByOne);
    const uint64_t start = apic.clock.tsc();
    apic.lapic.write(kInitial, 0xFFFF'FFFF);
    sleep_ms(3);
    const uint64_t passed = 0xFFFF'FFFF - apic.lapic.read(kCurrent);
    const uint64_t counts = (apic.clock.tsc() - start) * 25'000 / (apic.clock.hz() / 1000);
    CHECK(passed >= 75'000 - 250 && passed <= counts + 2);
}

STORY("11.5.4: given a running count, when zero is written, then it stops without an interrupt") {
    Apic apic;
    apic.lapic.write(kLvtTimer, 0x40);
    apic.lapic.write(kInitial, 2 * kMillisecond);
    apic.lapic.write(kInitial, 0);
    sleep_ms(10);
    CHECK(!pending(apic));
    CHECK_EQ(apic.lapic.read(kCurrent), 0u);
}

STORY(
    "11.5.4: given a masked timer, when it expires, then there is no interrupt, also not when it is unmasked "
    "later") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    for (int round = 0; round < 20; ++round) {  // the thread of the timers is late in some of them
        apic.lapic.write(kLvtTimer, kMasked | 0x40);
        apic.lapic.write(kInitial, kMillisecond);
        while (apic.lapic.read(kCurrent) != 0) {
        }
        apic.lapic.write(kLvtTimer, 0x40);
        sleep_ms(2);
        CHECK(!pending(apic));
    }
}

STORY(
    "11.5.4: given a timer that has expired while its thread was late, when it is masked or the APIC turned "
    "off, then the interrupt is there") {
    for (const bool off : {false, true}) {
        Apic apic;
        apic.queue.stop();  // as late as can be
        apic.lapic.write(kLvtTimer, 0x40);
        apic.lapic.write(kInitial, 1);
        while (apic.lapic.read(kCurrent) != 0) {
        }
        apic.lapic.write(off ? kSvr : kLvtTimer, off ? 0xFF : kMasked | 0x40);
        CHECK_EQ(apic.lapic.acknowledge(), 0x40);
    }
}

STORY("11.5.4: given periodic mode, then interrupts keep to the multiples of the period: no drift") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, kPeriodic | 0x40);
    const uint64_t start = apic.clock.tsc();
    apic.lapic.write(kInitial, kMillisecond);
    uint64_t taken = 0, last = 0;
    while (apic.clock.tsc() - start < apic.clock.hz() / 4) {
        if (apic.lapic.acknowledge() < 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            continue;
        }
        last = apic.clock.tsc() - start;
        ++taken;
        CHECK(last >=
              taken * (apic.clock.hz() / 1000));  // the n-th is never before n periods: none is made up
        apic.lapic.write(kEoi, 0);
    }
    std::cout << "  " << taken << " of 250 ticks\n";
    CHECK(taken >= 10);
    const uint32_t current = apic.lapic.read(kCurrent);
    CHECK(current > 0 && current <= kMillisecond);
    apic.lapic.write(kInitial, 0);
    while (apic.lapic.acknowledge() >= 0) apic.lapic.write(kEoi, 0);
    sleep_ms(5);
    CHECK(!pending(apic));
}

STORY(
    "given a vCPU that sleeps through many periods, then one interrupt stands for them and no burst "
    "follows") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, kPeriodic | 0x40);
    apic.lapic.write(kInitial, kMillisecond);
    sleep_ms(30);
    apic.lapic.write(kInitial, 0);
    CHECK_EQ(apic.lapic.acknowledge(), 0x40);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
    CHECK_EQ(apic.port.kicks, 1);
}

STORY("given an absurd period of one count, then the host is not flooded") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, kPeriodic | 0x40);
    const uint64_t start = apic.clock.tsc();
    apic.lapic.write(kInitial, 1);
    uint64_t taken = 0;
    while (apic.clock.tsc() - start < apic.clock.hz() / 50) {
        if (apic.lapic.acknowledge() >= 0) {
            ++taken;
            apic.lapic.write(kEoi, 0);
        }
    }
    apic.lapic.write(kInitial, 0);
    const uint64_t elapsed_us = (apic.clock.tsc() - start) / (apic.clock.hz() / 1'000'000);
    CHECK(taken > 0);
    CHECK(taken <= elapsed_us / 50 + 2);
}

STORY(
    "11.5.4.1: given TSC-deadline mode, then the MSR reads back until it fires, then zero; not before the "
    "deadline") {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    const uint64_t deadline = apic.clock.tsc() + apic.clock.hz() / 200;
    CHECK(apic.wrmsr(kMsrDeadline, deadline));
    CHECK_EQ(apic.rdmsr(kMsrDeadline), deadline);
    CHECK(eventually([&] { return pending(apic); }));
    CHECK(apic.clock.tsc() >= deadline);
    CHECK_EQ(apic.rdmsr(kMsrDeadline), 0u);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
}

STORY("11.5.4.1: given a deadline already past, then the interrupt is there when the write returns") {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    CHECK(apic.wrmsr(kMsrDeadline, apic.clock.tsc()));
    CHECK_EQ(apic.lapic.highest_pending(), 0x41);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK_EQ(apic.rdmsr(kMsrDeadline), 0u);
}

STORY("11.5.4.1: given zero written, then the timer is disarmed; given all ones, then it never comes") {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    CHECK(apic.wrmsr(kMsrDeadline, apic.clock.tsc() + apic.clock.hz() / 500));
    CHECK(apic.wrmsr(kMsrDeadline, 0));
    sleep_ms(8);
    CHECK(!pending(apic));
    CHECK(apic.wrmsr(kMsrDeadline, ~uint64_t{0}));
    CHECK_EQ(apic.rdmsr(kMsrDeadline), ~uint64_t{0});
    sleep_ms(5);
    CHECK(!pending(apic));
}

STORY(
    "11.5.4.1: given another mode, then the deadline MSR reads zero and ignores writes, and the other way "
    "round") {
    Apic apic;
    CHECK(apic.wrmsr(kMsrDeadline, 1));
    CHECK_EQ(apic.rdmsr(kMsrDeadline), 0u);
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    apic.lapic.write(kInitial, 100);
    CHECK_EQ(apic.lapic.read(kCurrent), 0u);
    sleep_ms(3);
    CHECK(!pending(apic));
}

STORY("11.5.4.1: given an armed deadline, when the mode changes, then it is disarmed") {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    CHECK(apic.wrmsr(kMsrDeadline, apic.clock.tsc() + apic.clock.hz() / 500));
    apic.lapic.write(kLvtTimer, 0x41);
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    CHECK_EQ(apic.rdmsr(kMsrDeadline), 0u);
    sleep_ms(8);
    CHECK(!pending(apic));
}

STORY("given a vCPU whose TSC was moved, then deadlines are in its own TSC and keep their value") {
    Apic apic;
    const uint64_t ahead = apic.clock.hz() * 1000;
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x41);
    apic.lapic.set_tsc_offset(ahead);
    const uint64_t deadline = apic.clock.tsc() + ahead + apic.clock.hz() / 200;
    CHECK(apic.wrmsr(kMsrDeadline, deadline));
    CHECK_EQ(apic.rdmsr(kMsrDeadline), deadline);
    CHECK(eventually([&] { return pending(apic); }));
    CHECK(apic.clock.tsc() + ahead >= deadline);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
    apic.lapic.write(kEoi, 0);

    CHECK(apic.wrmsr(kMsrDeadline, deadline + ahead));
    CHECK(!pending(apic));
    apic.lapic.set_tsc_offset(2 * ahead);  // the guest sets its TSC forward past the deadline
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
    CHECK(apic.wrmsr(kMsrDeadline, 1));  // long ago, before the machine existed
    CHECK_EQ(apic.rdmsr(kMsrDeadline), 0u);
}

STORY("given a one-shot count under way, when it becomes periodic, then it goes on and repeats") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, 0x40);
    apic.lapic.write(kInitial, 2 * kMillisecond);
    apic.lapic.write(kLvtTimer, kPeriodic | 0x40);
    for (int tick = 0; tick < 3; ++tick) {
        CHECK(eventually([&] { return pending(apic); }));
        apic.lapic.acknowledge();
        apic.lapic.write(kEoi, 0);
    }
    apic.lapic.write(kLvtTimer, 0x40);  // and back: once more, then silence
    CHECK(eventually([&] { return apic.lapic.read(kCurrent) == 0; }));
    sleep_ms(3);
    while (apic.lapic.acknowledge() >= 0) apic.lapic.write(kEoi, 0);
    sleep_ms(6);
    CHECK(!pending(apic));
}

STORY("given a count under way, when the divisor changes, then what is left is counted at the new rate") {
    Apic apic;
    apic.lapic.write(kDivide, kByOne);
    apic.lapic.write(kLvtTimer, 0x40);
    apic.lapic.write(kInitial, 1000 * kMillisecond);
    const uint32_t before = apic.lapic.read(kCurrent);
    apic.lapic.write(kDivide, 0xA);  // by 128
    const uint32_t after = apic.lapic.read(kCurrent);
    CHECK(after <= before && before - after < 100 * kMillisecond);
    sleep_ms(3);
    CHECK(after - apic.lapic.read(kCurrent) < 100 * kMillisecond / 128 + 3 * kMillisecond);
    CHECK(!pending(apic));
}

STORY("11.4.7.3: given armed timers of each mode, when INIT resets, then none fires") {
    for (const uint32_t mode : {uint32_t{0}, kPeriodic, kTscDeadline}) {
        Apic apic;
        apic.lapic.write(kLvtTimer, mode | 0x40);
        apic.lapic.write(kInitial, kMillisecond);
        apic.wrmsr(kMsrDeadline, apic.clock.tsc() + apic.clock.hz() / 500);
        apic.lapic.reset(true);
        apic.lapic.write(kSvr, 0x1FF);
        sleep_ms(6);
        CHECK(!pending(apic));
        CHECK_EQ(apic.lapic.read(kInitial), 0u);
    }
}

STORY("given a guest that re-programs the timer at random while it fires, then it survives and still ticks") {
    Apic apic;
    std::minstd_rand random(5);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
    while (std::chrono::steady_clock::now() < end) {
        switch (random() % 7) {
            case 0:
                apic.lapic.write(kLvtTimer, 0x40);
                break;
            case 1:
                apic.lapic.write(kLvtTimer, kPeriodic | 0x41);
                break;
            case 2:
                apic.lapic.write(kLvtTimer, kTscDeadline | 0x42);
                break;
            case 3:
                apic.lapic.write(kInitial, static_cast<uint32_t>(random() % 5000));
                break;
            case 4:
                apic.lapic.write(kDivide, static_cast<uint32_t>(random()));
                break;
            case 5:
                apic.wrmsr(kMsrDeadline, apic.clock.tsc() + random() % 400'000);
                break;
            default:
                apic.lapic.read(kCurrent);
                break;
        }
        while (apic.lapic.acknowledge() >= 0) apic.lapic.write(kEoi, 0);
    }
    apic.lapic.write(kLvtTimer, kTscDeadline | 0x44);
    apic.wrmsr(kMsrDeadline, apic.clock.tsc() + 100'000);
    CHECK(eventually([&] { return apic.lapic.highest_pending() == 0x44; }));
}

RUN_STORIES()

#ifdef HAS_STEPPED
STORY(
    "11.5.4.1: given a deadline that is reached while the vCPU reads it, when zero is read, then the "
    "interrupt "
    "is there") {
    const coremesh::Clock clock;
    coremesh::TimerQueue queue(clock);
    const auto spin = [&](uint64_t ns) {
        const uint64_t until = clock.tsc() + clock.ticks(ns);
        while (clock.tsc() < until)
            ;
    };
    struct SlowListener final : LapicTimer::Listener {
        void on_timer_expiry() noexcept override {
            wait();
            ++raised;
        }
        std::function<void()> wait;
        std::atomic<unsigned> raised{0};
    } listener;
    listener.wait = [&] { spin(1'000'000); };
    LapicTimer timer(queue, listener, 1'000'000'000);
    timer.set_mode(LapicTimer::Mode::kTscDeadline);
    std::minstd_rand random(1);
    // Until the expiry has begun, or a little longer than it would take.
    const std::function<void()> overtake = [&] {
        if (random() % 8 == 0) spin(50'000);
    };
    for (unsigned round = 0; round < 300; ++round) {
        timer.write_tsc_deadline(clock.tsc() + clock.ticks(random() % 400'000));
        for (uint64_t read = 1; read != 0;) {
            check::stepped(overtake, [&] { read = timer.tsc_deadline(); });
            CHECK(read != 0 || listener.raised == round + 1);
        }
    }
}

namespace {

/// Has the queue's thread stepped from just before a deadline until just behind it.
struct SteppedQueue final : coremesh::TimerQueue::Client {
    SteppedQueue(coremesh::TimerQueue& queue, const std::function<void()>& on_pause)
        : pause(on_pause), timer(queue, *this) {}

    void around(uint64_t deadline) { timer.arm(deadline - 1); }

    void on_timer(uint64_t deadline) noexcept override {
        if (check::overtaken_by == nullptr) {
            timer.arm(deadline + 2);
            check::begin_steps(pause);
        } else {
            check::end_steps();
            over = true;
        }
    }

    const std::function<void()> pause;
    std::atomic<bool> over{false};
    coremesh::TimerQueue::Timer timer;
};

constexpr uint8_t kOldVector = 0x40;

/// The instruction of the vCPU's thread that stores the new entry.
uintptr_t find_store(const std::function<void(Apic&)>& change) {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | kOldVector);
    uintptr_t before = 0, found = 0;
    const std::function<void()> look = [&] {
        if (found == 0 && apic.lapic.read(kLvtTimer) != (kTscDeadline | kOldVector)) found = before;
        before = check::next_instruction;
    };
    check::stepped(look, [&] { change(apic); });
    return found;
}

/// The instruction of the queue's thread that makes an expiry's interrupt pending.
uintptr_t find_delivery() {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | kOldVector);
    std::atomic<uintptr_t> before{0}, found{0};
    SteppedQueue queue(apic.queue, [&] {
        if (found == 0 && apic.bit(kIrr, kOldVector)) found = before.load();
        before = check::next_instruction;
    });
    const uint64_t deadline = apic.clock.tsc() + apic.clock.hz() / 100;
    queue.around(deadline);
    CHECK(apic.wrmsr(kMsrDeadline, deadline));
    CHECK(eventually([&] { return queue.over.load(); }));
    return found;
}

/// Whether the interrupt of an expiry that has met the old entry was pending when the vCPU's write returned,
/// and whether it came later.
struct Met {
    bool at_return, later;
};

/// The expiry begins just before the new entry is stored, and stops just before it delivers. `lead` is how
/// long before the expiry the write begins; nothing when that was too late.
std::optional<Met> change_during_expiry(const std::function<void(Apic&)>& change, uintptr_t store,
                                        uintptr_t delivery, std::chrono::milliseconds lead) {
    Apic apic;
    apic.lapic.write(kLvtTimer, kTscDeadline | kOldVector);
    const uint64_t deadline =
        apic.clock.tsc() + apic.clock.ticks(static_cast<uint64_t>(lead.count()) * 1'000'000);
    std::atomic<bool> at_store{false}, under_way{false}, returned{false};
    SteppedQueue queue(apic.queue, [&] {
        if (check::next_instruction != delivery || !at_store) return;
        under_way = true;
        // A write that waits for the expiry does not return. Asleep, since this thread comes before others.
        for (int waited = 0; waited < 200 && !returned; ++waited) sleep_ms(1);
    });
    const std::function<void()> let_expire = [&] {
        if (check::next_instruction != store) return;
        at_store = true;
        while (!under_way && !queue.over) sleep_ms(1);
    };
    queue.around(deadline);
    CHECK(apic.wrmsr(kMsrDeadline, deadline));
    check::stepped(let_expire, [&] { change(apic); });
    const bool at_return = apic.bit(kIrr, kOldVector);
    returned = true;
    CHECK(eventually([&] { return queue.over.load(); }));
    if (!under_way) return std::nullopt;
    return Met{at_return, !at_return && apic.bit(kIrr, kOldVector)};
}

}  // namespace

STORY(
    "11.5.1: given an expiry that has met the timer's entry, when the vCPU masks it, gives it another vector "
    "or turns the APIC off, then the write returns after the interrupt: none of the old entry comes later") {
    const uintptr_t delivery = find_delivery();
    CHECK(delivery != 0);
    const std::pair<const char*, std::function<void(Apic&)>> changes[] = {
        {"mask", [](Apic& apic) { apic.lapic.write(kLvtTimer, kTscDeadline | kMasked | kOldVector); }},
        {"vector", [](Apic& apic) { apic.lapic.write(kLvtTimer, kTscDeadline | 0x41); }},
        {"off", [](Apic& apic) { apic.lapic.write(kSvr, 0xFF); }},
    };
    for (const auto& [name, change] : changes) {
        std::cout << "  " << name << std::endl;
        const uintptr_t store = find_store(change);
        CHECK(store != 0);
        std::optional<Met> met;
        for (std::chrono::milliseconds lead{20}; !met; lead *= 2) {
            CHECK(lead.count() < 10'000);
            met = change_during_expiry(change, store, delivery, lead);
        }
        CHECK(!met->later);
        CHECK(met->at_return);
    }
}
#endif
