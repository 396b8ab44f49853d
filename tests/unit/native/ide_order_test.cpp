// SPDX-License-Identifier: GPL-2.0-or-later
// An IDE channel with its worker, accessed by several threads at once: the order in which they see the end of
// a transfer, with the wrong order as a control; stopping; and accesses of all kinds beside each other.
#include <mutex>
#include <random>

#include "check.hpp"
#include "ide_fixture.hpp"

using namespace ide;

namespace {

constexpr uint8_t kReadDma = 0xC8, kActive = 1, kInterrupt = 4, kAtWork = 0x88;
constexpr unsigned kRounds = 60, kWatchers = 3, kCount = 4;

struct Seen {
    unsigned early_data = 0, early_active = 0, early_busy = 0;
};

/// Threads look at everything as soon as they see the line high, in each of kRounds transfers.
Seen watched(Rig& rig) {
    std::atomic<unsigned> round{0}, looked{0}, early_data{0}, early_active{0}, early_busy{0};
    std::atomic<bool> over{false};
    std::vector<std::thread> watchers;
    for (unsigned i = 0; i < kWatchers; ++i) {
        watchers.emplace_back([&] {
            for (unsigned next = 1; next <= kRounds; ++next) {
                while (round < next || !rig.line) {
                    if (over) return;
                    std::this_thread::yield();
                }
                bool there = true;
                for (unsigned s = 0; s < kCount; ++s) {
                    there &= rig.memory->at(kBuffer + 512 * s + 511) == static_cast<uint8_t>(next + s);
                }
                const uint8_t bus_master = rig.bus_status(), drive = rig.status();
                early_data += !there;
                early_active += (bus_master & kActive) || !(bus_master & kInterrupt);
                early_busy += (drive & kAtWork) != 0;
                ++looked;
            }
        });
    }
    rig.channel->start("ide");
    for (unsigned next = 1; next <= kRounds; ++next) {
        for (unsigned s = 0; s < kCount; ++s) rig.memory->put(kBuffer + 512 * s + 508, 0xFFFF'FFFF);
        rig.memory->region(kBuffer, 512 * kCount);
        rig.dma(kReadDma, next, kCount);
        round = next;
        while (looked < next * kWatchers) std::this_thread::yield();
        while (rig.status() & kAtWork) std::this_thread::yield();
        rig.out(16, 0);
        rig.in(7);
        rig.out(18, kInterrupt);
        rig.line = false;
    }
    over = true;
    for (std::thread& watcher : watchers) watcher.join();
    rig.channel->stop();
    return {early_data, early_active, early_busy};
}

}  // namespace

STORY("given threads that spin on the line, when it rises, then data and registers are final") {
    Rig rig;
    const Seen seen = watched(rig);
    CHECK_EQ(seen.early_data, 0u);
    CHECK_EQ(seen.early_active, 0u);
    CHECK_EQ(seen.early_busy, 0u);
    CHECK_EQ(rig.rises.load(), kRounds);
}

STORY("control: given a line that rises before the data, then the same threads see it") {
    Rig rig;
    rig.memory->before = [&] {
        rig.line = true;
        pause(500);
    };
    const Seen seen = watched(rig);
    CHECK(seen.early_data > 0);
    CHECK(seen.early_active > 0);
    CHECK(seen.early_busy > 0);
}

STORY(
    "control: given a line that rises after the data but before the registers, then the same threads see "
    "it") {
    Rig rig;
    rig.memory->after = [&] {
        rig.line = true;
        pause(500);
    };
    const Seen seen = watched(rig);
    CHECK_EQ(seen.early_data, 0u);
    CHECK(seen.early_active > 0);
    CHECK(seen.early_busy > 0);
}

STORY("given a transfer under way, when it is stopped in any way, then that waits for its end") {
    for (const char how : {'s', 'r', 'b'}) {
        Rig rig;
        std::atomic<bool> reached{false}, open{false}, stopped{false};
        rig.store->reading = [&] {
            reached = true;
            while (!open) pause(100);
        };
        rig.channel->start("ide");
        rig.memory->region(kBuffer, 512);
        rig.dma(kReadDma, 9, 1);
        while (!reached) pause(100);
        CHECK(rig.status() & kAtWork);  // other vCPUs are answered meanwhile
        std::thread stopper([&] {
            if (how == 's') rig.out(16, 0);
            if (how == 'r') rig.out(8, 4);
            if (how == 'b') rig.channel->allow(false);
            stopped = true;
        });
        pause(20'000);
        CHECK(!stopped);
        open = true;
        stopper.join();
        CHECK_EQ(rig.memory->at(kBuffer + 100), 9);
        rig.channel->stop();
    }
}

STORY(
    "given threads that write garbage to every register, then all come to an end and the drive is found "
    "again") {
    Rig rig;
    rig.channel->start("ide");
    std::vector<std::thread> vcpus;
    for (unsigned seed = 0; seed < 4; ++seed) {
        vcpus.emplace_back([&, seed] {
            std::mt19937 random(seed);
            for (unsigned i = 0; i < 4000; ++i) {
                static constexpr unsigned kRegisters[] = {0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 16, 16, 18, 20, 22};
                const unsigned at = kRegisters[random() % std::size(kRegisters)];
                const unsigned size = at == 0 || at >= 16 ? 1u << random() % 3 : 1;
                if (random() % 3) {
                    rig.out(at, static_cast<uint32_t>(random()), size);
                } else {
                    rig.channel->read(at, size);
                }
                if (i % 512 == 0) rig.channel->allow(random() % 2);
                if (i % 700 == 0) rig.channel->reset();
            }
        });
    }
    for (std::thread& vcpu : vcpus) vcpu.join();
    rig.channel->allow(true);
    rig.out(16, 0);
    rig.out(8, 4);
    rig.out(8, 0);
    CHECK_EQ(rig.status(), 0x50);
    rig.out(18, kInterrupt | 2);
    rig.memory->region(kBuffer, 512);
    rig.dma(kReadDma, 77, 1);
    while (!rig.line) std::this_thread::yield();
    CHECK_EQ(rig.memory->at(kBuffer), 77);
    rig.channel->stop();
}

RUN_STORIES()
