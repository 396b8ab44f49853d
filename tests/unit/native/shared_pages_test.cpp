// SPDX-License-Identifier: GPL-2.0-or-later
// Pages that several hosts share: what a grant allows, what a revocation leaves, one rule a story, on each
// way of guarding that this host has.
#include <sys/mman.h>

#include <chrono>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "page_table_fixture.hpp"
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
        CHECK_EQ(machine.table.counters().needed, 1u);
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

RUN_STORIES()
