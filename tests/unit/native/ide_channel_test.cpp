// SPDX-License-Identifier: GPL-2.0-or-later
// An IDE channel at its registers, without a thread of its own: the bus master's status, nIEN, PIO, errors,
// state.
#include <cerrno>
#include <chrono>
#include <future>

#include "check.hpp"
#include "ide_fixture.hpp"

using namespace ide;

namespace {

constexpr uint8_t kReadDma = 0xC8, kWriteDma = 0xCA, kReadSectors = 0x20, kIdentify = 0xEC;
constexpr uint8_t kActive = 1, kError = 2, kInterrupt = 4;
constexpr uint8_t kReady = 0x50, kErr = 0x01, kDrq = 0x08, kBsy = 0x80, kDf = 0x20;

}  // namespace

STORY("given a table smaller, equal or larger than a transfer, then the bus master's status says so") {
    struct Case {
        uint32_t length;
        uint8_t at_the_end, after_stop;
    };
    for (const Case& c :
         {Case{512, 0, 0}, Case{1024, kInterrupt, kInterrupt}, Case{2048, kInterrupt | kActive, kInterrupt},
          Case{0, kInterrupt | kActive, kInterrupt}}) {
        Rig rig;
        rig.memory->region(c.length ? kBuffer : 0, c.length);
        rig.dma(kReadDma, 3, 2);
        if (!c.length) rig.memory->region(0, 0);  // 64 KiB, over the table itself
        rig.channel->serve();
        CHECK_EQ(rig.bus_status(), c.at_the_end);
        CHECK_EQ(rig.line.load(), bool(c.at_the_end & kInterrupt));
        CHECK_EQ(rig.status(), kReady);
        rig.out(16, 0);
        CHECK_EQ(rig.bus_status(), c.after_stop);
    }
}

STORY("given a transfer to no RAM, then the bus master reports an error and no interrupt comes") {
    Rig rig;
    rig.memory->region(0x8000'0000, 512);
    rig.dma(kReadDma, 0, 1);
    rig.channel->serve();
    CHECK_EQ(rig.bus_status(), kError);
    CHECK_EQ(rig.bus_errors.load(), 1u);
    CHECK(!rig.line);
}

STORY("given a medium that fails, then the drive says so by DMA and by PIO") {
    Rig rig;
    rig.store->error = -EIO;
    rig.memory->region(kBuffer, 512);
    rig.dma(kWriteDma, 9, 1, false);
    rig.channel->serve();
    CHECK_EQ(rig.bus_status(), kInterrupt);
    CHECK_EQ(rig.in(7), kReady | kErr | kDf);
    rig.command(kReadSectors, 9);
    CHECK(rig.status() & kBsy);
    rig.channel->serve();
    CHECK_EQ(rig.in(7), kReady | kErr);
    CHECK_EQ(rig.in(3), 9);
}

STORY("given nIEN, when a command ends, then its interrupt is held and comes when it is let") {
    Rig rig;
    rig.out(8, 2);
    rig.command(kReadSectors, 5);
    rig.channel->serve();
    CHECK(!rig.line);
    rig.out(8, 0);
    CHECK(rig.line);
    CHECK_EQ(rig.in(7), kReady | kDrq);
    CHECK(!rig.line);
    for (unsigned i = 0; i < 256; ++i) CHECK_EQ(rig.channel->read(0, 2), 0x0505u);
    CHECK_EQ(rig.status(), kReady);
}

STORY("given an identification, then it is asked for once, away from the access") {
    Rig rig;
    rig.command(kIdentify, 0);
    CHECK(rig.status() & kBsy);
    rig.channel->serve();
    CHECK_EQ(rig.channel->read(0, 4), 0x5A5A5A5Au);
}

STORY(
    "given a line that is going up, when another vCPU polls the alternate status, then it need not wait for "
    "it") {
    Rig rig;
    uint8_t seen = kBsy;
    rig.rising = [&] {
        // What takes the channel's lock here waits for this very function.
        auto poll = std::async(std::launch::async, [&] { return rig.status(); });
        CHECK(poll.wait_for(std::chrono::seconds(5)) == std::future_status::ready);
        seen = poll.get();
    };
    rig.memory->region(kBuffer, 512);
    rig.dma(kReadDma, 3, 1);
    rig.channel->serve();
    CHECK(rig.line);
    CHECK_EQ(seen, kReady);
    CHECK_EQ(rig.in(7), kReady);
}

STORY("given a saved channel, when another loads it, then it goes on; what cannot be a state is refused") {
    Rig first, second, third;
    first.command(kReadSectors, 7, 3);
    first.channel->serve();
    for (unsigned i = 0; i < 100; ++i) first.channel->read(0, 2);
    IdeChannel::Saved saved = first.channel->save();
    CHECK(second.channel->load(saved, first.line));
    for (unsigned i = 0; i < 156; ++i) CHECK_EQ(second.channel->read(0, 2), 0x0707u);
    second.channel->serve();
    CHECK_EQ(second.channel->read(0, 2), 0x0808u);
    for (const auto& damage : std::vector<std::function<void(IdeChannel::Saved&)>>{
             [](auto& s) { s.drives[0].burst = 513; }, [](auto& s) { s.drives[0].position = 600; },
             [](auto& s) { s.drives[0].lba = kSectors; }, [](auto& s) { s.drives[0].left = 70'000; },
             [](auto& s) { s.drives[0].block = 0; }, [](auto& s) { s.drives[0].heads = 0; },
             [](auto& s) { s.drives[0].phase = static_cast<coremesh::ata::Phase>(9); },
             [](auto& s) { s.channel.selected = 2; }, [](auto& s) { s.drives.clear(); }}) {
        IdeChannel::Saved damaged = saved;
        damage(damaged);
        CHECK(!third.channel->load(damaged, false));
    }
}

RUN_STORIES()
