// SPDX-License-Identifier: GPL-2.0-or-later
// Pages that mix code and hot data: how they become mixed, and what a checked store does then.
#include "ram/code_pages.hpp"

#include <chrono>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "code_pages_fixture.hpp"

using namespace coremesh;

STORY(
    "given a page written again and again, then all engines are asked, twice if slow, and it is guarded "
    "until all "
    "answered") {
    with_both([](Protection protection) {
        Machine machine(protection, 3, {.mixed_after = 8, .decay_ms = 60000});
        for (int i = 0; i < 20; i++) {
            CHECK(machine.code.begin_translation(0, 6));
            machine.store(6, 1);
        }
        CHECK_EQ(machine.diary.becoming_mixed.size(), 2u);  // after 8 and 16 of the 20
        CHECK_EQ(machine.diary.becoming_mixed.at(0), 6u);
        CHECK_EQ(machine.faults(), 20u);
        CHECK(machine.code.checks_stores(6));
        machine.code.acknowledge_mixed(0, 6);
        machine.code.acknowledge_mixed(0, 6);
        machine.code.acknowledge_mixed(2, 6);
        CHECK(!machine.code.is_mixed(6));
        CHECK(machine.code.begin_translation(1, 6));
        machine.diary.posts.clear();
        machine.code.acknowledge_mixed(1, 6);
        CHECK(machine.code.is_mixed(6));
        CHECK_EQ(machine.diary.posts.size(), 1u);  // translated under protection: no map of its bytes
        CHECK_EQ(machine.code.counters().mixed_pages, 1u);
        CHECK(machine.code.begin_translation(1, 6));
        machine.store(6, 2);
        CHECK_EQ(machine.faults(), 20u);  // never protected again
    });
}

STORY("given a page written now and then, then it does not become mixed") {
    with_both([](Protection protection) {
        Machine machine(protection, 1, {.mixed_after = 4, .decay_ms = 1});
        for (int i = 0; i < 12; i++) {
            CHECK(machine.code.begin_translation(0, 6));
            machine.store(6, 1);
            std::this_thread::sleep_for(
                std::chrono::milliseconds(12));  // the coarse clock ticks every 4 to 10 ms
        }
        CHECK(machine.diary.becoming_mixed.empty());
        CHECK(!machine.code.checks_stores(6));
    });
}

STORY(
    "given a mixed page, then a checked store to data tells nobody, and one to code tells its owners first") {
    with_both([](Protection protection) {
        Machine machine(protection, 2, {.mixed_after = 1, .decay_ms = 60000});
        CHECK(machine.code.begin_translation(0, 1));
        machine.store(1, 1);
        for (unsigned engine = 0; engine < 2; engine++) machine.code.acknowledge_mixed(engine, 1);
        CHECK(machine.code.is_mixed(1));
        machine.diary.posts.clear();

        CHECK(machine.code.begin_translation(1, 1));
        CHECK(machine.code.touches_code(1, 4000, 4000));  // being translated: all of it may be code
        machine.code.note_code_bytes(1, 1, 100, 163);
        CHECK(!machine.code.touches_code(1, 0, 99));
        CHECK(machine.code.touches_code(1, 96, 103));
        CHECK(machine.code.touches_code(1, 163, 163));
        CHECK(!machine.code.touches_code(1, 164, 4095));
        CHECK_EQ(machine.code.owners(1)[0], 0b10u);

        { CHECK(!CheckedStore(machine.code, kPage + 164, 8).hit()); }
        CHECK(machine.diary.posts.empty());
        machine.diary.watched = machine.ram.protocol_base() + kPage + 160;
        {
            const CheckedStore store(machine.code, kPage + 160, 8);
            CHECK(store.hit());
            std::memset(store.host(), 0x55, 8);
        }
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK_EQ(machine.diary.posts.at(0).engine, 1u);
        CHECK_EQ(int{machine.diary.posts.at(0).byte}, 0);
        CHECK_EQ(int{machine.ram.guest_base()[kPage + 160]}, 0x55);
        CHECK(!machine.code.touches_code(1, 0, 4095));

        CHECK(machine.code.begin_translation(0, 1));
        machine.code.note_code_bytes(0, 1, 0, 15);
        CHECK(!machine.ram.code_written_by_host(kPage + 16, 100));
        CHECK(machine.ram.write(kPage + 8, "12345678", 8));
        CHECK_EQ(machine.diary.posts.size(), 2u);
    });
}

RUN_STORIES()
