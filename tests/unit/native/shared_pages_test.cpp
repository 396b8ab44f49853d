// SPDX-License-Identifier: GPL-2.0-or-later
// Pages that several hosts share: what a grant allows, what a revocation leaves, one rule a story, on each
// way of guarding that this host has.
#include <sys/mman.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "child_process.hpp"
#include "shared_ram_fixture.hpp"

using namespace coremesh;

STORY("given a RAM of several hosts, then nothing is granted at first, and an access asks for the page") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        CHECK(machine.table.access(3) == Access::kNone);
        machine.home.bytes(3)[5] = 0x5a;  // what the home has of it
        CHECK_EQ(int{machine.load(3, 5)}, 0x5a);
        CHECK_EQ(machine.home.asked.size(), 1u);
        CHECK(machine.home.asked[0].want == Access::kRead);
        CHECK_EQ(machine.home.asked[0].page, 3u);
        CHECK(machine.table.access(3) == Access::kRead);
        machine.store(3, 0x11);
        CHECK_EQ(machine.home.asked.size(), 2u);
        CHECK(machine.home.asked[1].want == Access::kWrite);
        machine.store(3, 0x22);
        CHECK_EQ(int{machine.load(3)}, 0x22);
        CHECK_EQ(machine.home.asked.size(), 2u);
        CHECK_EQ(int{machine.ram.protocol_base()[3 * kPage]}, 0x22);
    });
}

STORY("given a page that is written at once, then it is asked for once, for writing") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.add(7, 1);  // reads and writes in one instruction
        CHECK_EQ(machine.home.asked.size(), 1u);
        CHECK(machine.home.asked[0].want == Access::kWrite);
        CHECK_EQ(machine.table.counters().pages_needed, 1u);
    });
}

STORY("given every step between the three states, then each allows and refuses what it should") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        const auto asks = [&](bool write) {
            const auto before = machine.home.asked.size();
            machine.home.answer = false;  // look, and leave by the back door
            const bool asked = machine.refused(4, write);
            machine.home.answer = true;
            CHECK_EQ(machine.home.asked.size() - before, asked ? 1u : 0u);
            return asked;
        };
        using enum Access;
        const Access steps[] = {kNone, kRead, kNone, kWrite, kNone,  kRead, kWrite, kRead,
                                kRead, kNone, kNone, kWrite, kWrite, kRead, kNone};
        for (const Access to : steps) {
            machine.table.set_access(4, to);
            CHECK(machine.table.access(4) == to);
            for (int twice = 0; twice < 2; twice++) {
                CHECK_EQ(asks(false), to < kRead);
                CHECK_EQ(asks(true), to < kWrite);
            }
            CHECK_EQ(int{machine.ram.protocol_base()[4 * kPage + kPage - 1]}, 0);
        }
    });
}

STORY("given a page whose bytes lie in the file, then each step keeps them") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        uint8_t* const bytes = machine.ram.protocol_base() + 6 * kPage;
        for (unsigned i = 0; i < kPage; i++) bytes[i] = static_cast<uint8_t>(i * 7);
        using enum Access;
        for (const Access to : {kRead, kWrite, kRead, kNone, kWrite, kNone, kRead, kNone, kRead}) {
            machine.table.set_access(6, to);
            for (unsigned i = 0; i < kPage; i++) CHECK_EQ(int{bytes[i]}, int{static_cast<uint8_t>(i * 7)});
            if (to == kNone) continue;
            CHECK(std::memcmp(machine.ram.guest_base() + 6 * kPage, bytes, kPage) == 0);
        }
        CHECK(machine.home.asked.empty());
    });
}

STORY("given a RAM of one host, then a grant means nothing and everything is allowed") {
    with_both([](Protection protection) {
        Machine machine(protection);
        machine.code.set_access(0, 16, Access::kNone);
        CHECK(machine.code.access(3) == Access::kWrite);
        machine.store(3, 1);
        CHECK_EQ(machine.faults() + machine.code.counters().spurious, 0u);
        CHECK(!machine.ram.coherent());
    });
}

STORY("given a home that holds all pages from the start, then memory is committed where it is touched") {
    with_all([](Protection protection) {
        SharedMachine machine(protection, 1, {}, 64 * kMiB);
        machine.table.set_access(0, machine.ram.pages(), Access::kWrite);
        machine.store(5, 1);
        machine.load(9);
        CHECK(machine.home.asked.empty());
        CHECK(!machine.ram.untouched(5));
        CHECK(!machine.ram.untouched(9));
        for (const uint64_t page : {4, 6, 10, 100, 16383}) CHECK(machine.ram.untouched(page));
        CHECK_EQ(machine.table.counters().pages_granted, machine.ram.pages());
    });
}

STORY("given a guest that goes through memory held from the start, then it faults now and then only") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.table.set_access(0, 200, Access::kWrite);
        machine.table.set_access(150, Access::kRead);
        for (uint64_t page = 1; page < 200; page++) {
            CHECK_EQ(int{machine.load(page)}, 0);
            if (page != 150) machine.store(page, 1);
        }
        CHECK(machine.home.asked.empty());
        CHECK(machine.table.counters().pages_mapped_late < 30);
        machine.home.answer = false;
        CHECK(machine.refused(150, true));
        CHECK(machine.refused(200, false));
    });
}

STORY("given pages mapped in all ways, when a run of them changes, then every page of it does and no other") {
    with_all([](Protection protection) {
        using enum Access;
        for (const Access to : {kNone, kRead, kWrite}) {
            SharedMachine machine(protection);
            const auto kind = [](uint64_t page) { return static_cast<Access>(page % 3); };
            for (uint64_t page = 0; page < 400; page++) {
                machine.ram.protocol_base()[page * kPage + 8] = static_cast<uint8_t>(page);
                machine.table.set_access(page, kind(page));
            }
            machine.table.set_access(100, 150, to);
            machine.home.answer = false;
            for (uint64_t page = 0; page < 400; page++) {
                const Access now = page >= 100 && page < 250 ? to : kind(page);
                CHECK(machine.table.access(page) == now);
                CHECK_EQ(machine.refused(page, false), now < kRead);
                CHECK_EQ(machine.refused(page, true), now < kWrite);
                if (now >= kRead) CHECK_EQ(int{machine.load(page, 8)}, int{static_cast<uint8_t>(page)});
            }
        }
    });
}

STORY("given a page that was never touched, taken, or given back, then it says so and reads as zeros") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        CHECK(machine.ram.untouched(2));
        machine.store(2, 7);
        CHECK(!machine.ram.untouched(2));
        CHECK(machine.ram.untouched(1) && machine.ram.untouched(3));
        machine.table.set_access(2, Access::kNone);
        CHECK(!machine.ram.untouched(2));
        CHECK(machine.ram.discard(2));
        CHECK(machine.ram.untouched(2));
        CHECK(machine.ram.discard(2));
        machine.table.set_access(2, Access::kRead);
        CHECK_EQ(int{machine.load(2)}, 0);
        CHECK(machine.ram.untouched(machine.ram.pages() - 1));
    });
}

STORY("given a page asked for by a thread that gives up, a thousand times, then the next one gets it") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.home.answer = false;
        for (int i = 0; i < 1000; i++) CHECK(machine.refused(2, i % 2));
        machine.home.answer = true;
        machine.add(2, 5);
        CHECK_EQ(int{machine.load(2)}, 5);
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        CHECK(!sigismember(&blocked, SIGSEGV) && !sigismember(&blocked, SIGBUS));
    });
}

STORY("given a protocol that answers late, then the instruction asks again until it may run") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.home.answer = false;
        std::thread later([&] {
            while (machine.home.asks < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::memset(machine.ram.protocol_base() + 8 * kPage, 0x3c, kPage);
            machine.table.set_access(8, Access::kRead);
        });
        machine.home.pause_us = 1000;
        CHECK_EQ(int{machine.load(8)}, 0x3c);
        later.join();
        CHECK(machine.home.asked.size() >= 3);
    });
}

STORY(
    "given pages that the kernel unmapped by itself, as it does to swap them out, then they are mapped "
    "again") {
    with_all([](Protection protection) {
        if (protection == Protection::mprotect) return;  // the kernel maps such pages again by itself
        SharedMachine machine(protection);
        const auto unmapped = [&](uint64_t page) {
            CHECK(madvise(machine.ram.guest_base() + page * kPage, kPage, MADV_DONTNEED) == 0);
        };
        for (const uint64_t page : {10, 11, 12, 13, 14}) machine.ram.protocol_base()[page * kPage] = 9;
        machine.table.set_access(10, Access::kRead);
        machine.table.set_access(11, Access::kWrite);
        machine.table.set_access(12, Access::kWrite);
        CHECK(machine.table.begin_translation(0, 12));
        machine.table.set_access(13, Access::kWrite);
        for (const uint64_t page : {10, 11, 12, 13}) unmapped(page);
        CHECK_EQ(int{machine.load(10)}, 9);
        machine.add(11, 1);
        CHECK_EQ(int{machine.load(12)}, 9);
        machine.store(12, 10);  // still guarded for its code, or given up already
        CHECK_EQ(machine.diary.posts.size(), 1u);
        machine.table.set_access(13, Access::kRead);
        CHECK_EQ(int{machine.load(13)}, 9);
        machine.home.answer = false;
        // By a copy it can only be mapped again for writing, and is asked for anew.
        CHECK_EQ(machine.refused(13, true), protection == Protection::userfaultfd);
        CHECK_EQ(int{machine.ram.protocol_base()[11 * kPage]}, 10);
    });
}

STORY(
    "given a process with no mapping left, when a page is taken from the middle of a run, then it is taken") {
    SharedMachine machine(Protection::mprotect, 1, {.max_runs = 1000});
    machine.table.set_access(10, 10, Access::kWrite);
    for (uint64_t page = 10; page < 20; page++) machine.store(page, 1);
    auto full = std::make_unique<NoMappingsLeft>();
    machine.table.set_access(15, Access::kNone);
    machine.table.set_access(12, Access::kRead);
    const bool taken = machine.refused(15, false);
    full.reset();
    CHECK(!taken);  // it was asked for, and answered
    CHECK_EQ(machine.home.asked.size(), 1u);
    machine.home.answer = false;
    CHECK(machine.refused(12, true));
    for (uint64_t page = 10; page < 20; page++) {
        if (page != 15) CHECK_EQ(int{machine.load(page)}, 1);
    }
}

STORY(
    "given more pieces than mprotect has mappings for, then pages are mapped with less, and again when "
    "used") {
    constexpr uint64_t kRuns = 32;
    SharedMachine machine(Protection::mprotect, 1, {.max_runs = kRuns}, 8 * kMiB);
    const uint64_t maps = map_count();
    for (uint64_t page = 0; page < 1000; page += 2) {
        machine.table.set_access(page, page % 4 ? Access::kRead : Access::kWrite);
        CHECK(machine.table.runs() <= kRuns);
    }
    CHECK(map_count() <= maps + 2 * kRuns + 8);
    for (uint64_t page = 0; page < 1000; page += 4) machine.add(page, 1);
    for (uint64_t page = 2; page < 1000; page += 4) machine.load(page);
    CHECK(machine.home.asked.empty());
    CHECK(machine.table.counters().evictions > 500);
    CHECK(map_count() <= maps + 2 * kRuns + 8);
}

#ifndef __SANITIZE_THREAD__  // it has handlers of its own in between
STORY("given a page that nobody brings, then the access ends the process as any bad one does") {
    with_all([](Protection protection) {
        const int status = in_a_child([&] {
            SharedMachine machine(protection);
            machine.ram.set_page_sink(nullptr);
            alarm(5);
            machine.load(1);
        });
        CHECK(WIFSIGNALED(status));
        CHECK_EQ(WTERMSIG(status), protection == Protection::mprotect ? SIGSEGV : SIGBUS);
    });
}
#endif

STORY("given a quiet host, then this is what the calls cost") {
    with_all([](Protection protection) {
        constexpr uint64_t kCount = 2000;
        SharedMachine machine(protection, 2, {}, 32 * kMiB);
        std::memset(machine.ram.protocol_base(), 1, 32 * kMiB);
        // Of this thread alone: the host may be busy with other things.
        const auto cpu_us = [] {
            timespec time;
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
            return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
        };
        const auto timed = [&](const std::function<void(uint64_t)>& step) {
            const double start = cpu_us();
            for (uint64_t page = 0; page < kCount; page++) step(2 * page);
            return (cpu_us() - start) / kCount;
        };
        const auto to = [&](Access access) {
            return timed([&](uint64_t page) { machine.table.set_access(page, access); });
        };
        const auto touch = [&] {
            for (uint64_t page = 0; page < kCount; page++) machine.add(2 * page, 1);
        };
        std::printf("       %-16s µs: I-S %.1f", std::string(name_of(protection)).c_str(), to(Access::kRead));
        std::printf(", S-M %.1f", to(Access::kWrite));
        touch();
        std::printf(", M-S %.1f", to(Access::kRead));
        std::printf(", S-I %.1f", to(Access::kNone));
        std::printf(", I-M %.1f", to(Access::kWrite));
        touch();
        std::printf(", M-I %.1f", to(Access::kNone));
        std::printf("; fault to resume, with the grant: read %.1f",
                    timed([&](uint64_t page) { machine.load(page); }));
        std::printf(", upgrade %.1f", timed([&](uint64_t page) { machine.add(page, 1); }));
        machine.table.set_access(0, machine.ram.pages(), Access::kNone);
        machine.table.set_access(0, machine.ram.pages(), Access::kWrite);
        std::printf(", first touch of a page held %.1f", timed([&](uint64_t page) { machine.add(page, 1); }));
        std::printf(", of the next %.1f", timed([&](uint64_t page) { machine.add(page / 2 + 4096, 1); }));
        const double start = cpu_us();
        machine.table.set_access(0, machine.ram.pages(), Access::kNone);
        std::printf("; taking %llu pages at once %.0f\n", (unsigned long long)machine.ram.pages(),
                    cpu_us() - start);
        CHECK_EQ(machine.home.asks.load(), 2 * kCount);
    });
}

RUN_STORIES()
