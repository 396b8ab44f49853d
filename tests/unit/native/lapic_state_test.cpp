// SPDX-License-Identifier: GPL-2.0-or-later
// A local APIC saved and loaded: the second goes on as the first, and nothing of the first is forgotten.
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string_view>

#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

namespace {

/// Two local APICs of one clock, each in memory that was zero before: what their bytes differ in before
/// anything happened is wiring, and the timer queue's own words.
struct Pair {
    explicit Pair(LapicOptions options = {.apic_id = 5, .bootstrap = true})
        : first(*new (first_bytes) Lapic(options, port, bus, queue)),
          second(*new (second_bytes) Lapic(options, other_port, bus, queue)) {
        // A local APIC ends with a timer, which begins with its queue and belongs to the queue's thread.
        const coremesh::TimerQueue* const timers = &queue;
        for (size_t at = 0; at < sizeof(Lapic); at += sizeof timers) {
            if (!std::memcmp(first_bytes + at, &timers, sizeof timers)) compared = at;
        }
        CHECK(compared > sizeof(Lapic) / 2);
        for (size_t i = 0; i < compared; ++i) wiring[i] = first_bytes[i] != second_bytes[i];
    }
    ~Pair() {
        first.~Lapic();
        second.~Lapic();
    }

    /// The offset of the first byte of data that differs, or -1.
    long difference() const {
        for (size_t i = 0; i < compared; ++i) {
            if (!wiring[i] && first_bytes[i] != second_bytes[i]) return static_cast<long>(i);
        }
        return -1;
    }

    coremesh::Clock clock;
    coremesh::TimerQueue queue{clock};
    CountingPort port, other_port;
    RememberingBus bus;
    alignas(64) unsigned char first_bytes[sizeof(Lapic)] = {};
    alignas(64) unsigned char second_bytes[sizeof(Lapic)] = {};
    bool wiring[sizeof(Lapic)] = {};
    size_t compared = 0;
    Lapic& first;
    Lapic& second;
};

/// The count of messages sent is of this run of the emulator, not of the machine: made equal before a load.
void send_as_many(Lapic& lapic, const Lapic& other) {
    while (lapic.ipis_sent() < other.ipis_sent()) lapic.write(kIcrLow, 0x40);
}

/// A guest that programs everything at random, with interrupts coming and going.
void program(Lapic& lapic, std::minstd_rand& random) {
    static constexpr uint32_t registers[] = {
        kTpr,        kEoi,     kLdr,      kDfr,      kSvr,      kEsr,     kIcrLow, kIcrHigh, kLvtTimer,
        kLvtThermal, kLvtPerf, kLvtLint0, kLvtLint1, kLvtError, kInitial, kDivide, 0x40};
    if (random() % 3 == 0) lapic.write_msr(kMsrBase, 0xFEE0'0D00);
    for (unsigned step = 0; step < 200; ++step) {
        const auto value = static_cast<uint32_t>(random() << 16 ^ random());
        switch (random() % 8) {
            case 0:
                lapic.accept(static_cast<DeliveryMode>(random() % 8), static_cast<uint8_t>(value),
                             random() % 2 ? Trigger::kLevel : Trigger::kEdge);
                break;
            case 1:
                lapic.set_pin(random() % 2, random() % 2);
                break;
            case 2:
                lapic.acknowledge();
                break;
            case 3:
                lapic.write_msr(kMsrDeadline, random() % 4 ? ~uint64_t{0} >> 8 : 0);  // in some centuries
                break;
            default: {
                const uint32_t reg = registers[random() % std::size(registers)];
                // A count whose end the test does not see; all accept, or little would be pending.
                const uint32_t what = reg == kInitial            ? value | 0x4000'0000
                                      : reg == kSvr && value % 4 ? 0x1FF
                                      : reg == kTpr              ? value % 64
                                                                 : value;
                lapic.write(reg, what);
                lapic.write_msr(0x800 + (reg >> 4), what & (reg == kDivide ? 0xB : ~0u));
            }
        }
    }
}

bool operator==(const LapicState& a, const LapicState& b) { return !std::memcmp(&a, &b, sizeof a); }

}  // namespace

STORY("given a local APIC in a random state, when another takes it, then none of its bytes of data differs") {
    std::minstd_rand random(1);
    unsigned in_service = 0, due = 0, levels = 0;
    for (unsigned round = 0; round < 300; ++round) {
        auto pair = std::make_unique<Pair>();
        program(pair->first, random);
        LapicState saved;
        pair->first.save(saved);
        send_as_many(pair->second, pair->first);
        CHECK(pair->second.load(saved, 0) == nullptr);
        CHECK_EQ(pair->difference(), -1);
        LapicState again;
        pair->second.save(again);
        CHECK(again == saved);
        in_service += saved.isr[3] != 0;
        due += saved.timer_due != 0;
        levels += saved.tmr[1] != 0;
    }
    CHECK(in_service > 20);
    CHECK(due > 20);
    CHECK(levels > 20);
}

STORY("given a word of the state that is dropped, when it is loaded, then the comparison finds that") {
    std::minstd_rand random(2);
    for (size_t index = 0; LapicState::entry(index); ++index) {
        const std::string_view name = LapicState::entry(index)->name;
        // The name itself; and what has a meaning only while a deadline is armed or a pin asserted.
        if (name == "apic_id" || name == "apic_base" || name == "timer_due") continue;
        bool found = false;
        for (unsigned round = 0; round < 200 && !found; ++round) {
            auto pair = std::make_unique<Pair>();
            program(pair->first, random);
            LapicState saved, reset, mixed;
            pair->second.save(reset);
            send_as_many(pair->second, pair->first);
            pair->first.save(saved);
            // The word of this name is that of a local APIC just reset.
            size_t at = 0;
            for (size_t i = 0; i < index; ++i) at += cm_state_words(LapicState::entry(i));
            mixed = saved;
            std::memcpy(reinterpret_cast<uint64_t*>(&mixed) + at, reinterpret_cast<uint64_t*>(&reset) + at,
                        cm_state_words(LapicState::entry(index)) * sizeof(uint64_t));
            found = pair->second.load(mixed, 0) != nullptr || pair->difference() >= 0;
        }
        if (!found) std::cout << "\n  not missed: " << name << std::endl;
        CHECK(found);
    }
}

STORY("given a one-shot count under way, when it is saved and loaded, then the interrupt comes, once") {
    Pair pair;
    pair.first.write(kSvr, 0x1FF);
    pair.first.write(kDivide, 0xB);
    pair.first.write(kLvtTimer, 0x40);
    pair.first.write(kInitial, 30'000'000);  // 30 ms
    LapicState saved;
    pair.first.save(saved);
    CHECK(saved.timer_due != 0);
    CHECK(pair.second.load(saved, 0) == nullptr);
    const uint32_t left = pair.second.read(kCurrent);
    CHECK(left > 0 && left <= 30'000'000);
    CHECK(eventually([&] { return pair.second.highest_pending() == 0x40; }));
    CHECK(
        eventually([&] { return pair.first.highest_pending() == 0x40; }));  // to be saved takes nothing away
    CHECK_EQ(pair.second.acknowledge(), 0x40);
    pair.second.write(kEoi, 0);
    sleep_ms(50);
    CHECK_EQ(pair.second.highest_pending(), -1);
    CHECK_EQ(pair.second.read(kCurrent), 0u);
}

STORY("given a periodic timer, when it is saved and loaded, then it goes on in step") {
    Pair pair;
    pair.first.write(kSvr, 0x1FF);
    pair.first.write(kDivide, 0xB);
    pair.first.write(kLvtTimer, 0x40 | kPeriodic);
    pair.first.write(kInitial, 10'000'000);
    sleep_ms(12);
    LapicState saved;
    pair.first.save(saved);
    pair.first.write(kInitial, 0);
    CHECK(pair.second.load(saved, 0) == nullptr);
    for (unsigned period = 0; period < 4; ++period) {
        CHECK(eventually([&] { return pair.second.acknowledge() == 0x40; }));
        pair.second.write(kEoi, 0);
    }
}

STORY(
    "given a TSC deadline and an adjusted TSC, when it is saved and loaded, then it is the vCPU's own TSC") {
    Pair pair;
    const uint64_t offset = 1'000'000'000'000;
    pair.first.write(kSvr, 0x1FF);
    pair.first.set_tsc_offset(offset);
    pair.first.write(kLvtTimer, 0x41 | kTscDeadline);
    const uint64_t deadline = pair.clock.tsc() + offset + pair.clock.ticks(20'000'000);
    CHECK(pair.first.write_msr(kMsrDeadline, deadline));
    LapicState saved;
    pair.first.save(saved);
    CHECK(pair.second.load(saved, offset) == nullptr);
    uint64_t value = 0;
    CHECK(pair.second.read_msr(kMsrDeadline, value));
    CHECK(value == deadline || value == 0);
    CHECK(eventually([&] { return pair.second.highest_pending() == 0x41; }));
    CHECK(pair.clock.tsc() + offset >= deadline);
}

STORY("given a state that no local APIC has, when it is loaded, then its word is named and nothing changes") {
    Pair pair;
    LapicState good, before, after;
    pair.first.save(good);
    pair.second.save(before);
    const struct {
        std::string_view name;
        void (*damage)(LapicState&);
    } cases[] = {
        {"apic_id", [](LapicState& s) { s.apic_id = 6; }},
        {"apic_base", [](LapicState& s) { s.apic_base = 0x400; }},  // x2APIC without the enable
        {"apic_base", [](LapicState& s) { s.apic_base &= ~uint64_t{0x100}; }},
        {"task_priority", [](LapicState& s) { s.task_priority = 0x100; }},
        {"lvt", [](LapicState& s) { s.lvt[2] = 1u << 20; }},
        {"lvt", [](LapicState& s) { s.lvt[0] = 3u << 17; }},
        {"lint0", [](LapicState& s) { s.lint0 = 2; }},
        {"timer_initial", [](LapicState& s) { s.timer_running = 1; }},
        {"timer_divide", [](LapicState& s) { s.timer_divide = 4; }},
        {"timer_due", [](LapicState& s) { s.timer_due = 1; }},
    };
    for (const auto& c : cases) {
        LapicState bad = good;
        c.damage(bad);
        const char* name = pair.second.load(bad, 0);
        CHECK(name != nullptr);
        CHECK_EQ(std::string_view(name), c.name);
        pair.second.save(after);
        CHECK(after == before);
    }
}

RUN_STORIES()
