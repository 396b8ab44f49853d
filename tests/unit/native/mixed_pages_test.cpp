// SPDX-License-Identifier: GPL-2.0-or-later
// Pages that mix code and hot data: how they become mixed, and what holds from then on.
#include "ram/page_table.hpp"

#include <chrono>
#include <thread>

#include "check.hpp"
#include "page_table_fixture.hpp"

using namespace coremesh;

STORY(
    "given a page written again and again, then it is left writable, and blocks from it must check "
    "themselves") {
    with_both([](Protection protection) {
        Machine machine(protection, 3, {.mixed_after = 8, .decay_ms = 60000});
        for (int i = 0; i < 8; i++) {
            CHECK(!machine.code.is_mixed(6));
            CHECK(machine.code.begin_translation(0, 6));
            CHECK(machine.code.begin_translation(2, 6));
            machine.store(6, 1);
        }
        CHECK(machine.code.is_mixed(6));
        CHECK_EQ(machine.diary.posts.size(), 16u);  // what was translated while it was guarded is gone
        CHECK_EQ(machine.code.counters().mixed_pages, 1u);
        for (int i = 0; i < 100; i++) {
            CHECK(!machine.code.begin_translation(0, 6));
            machine.store(6, 2);
        }
        CHECK_EQ(machine.faults(), 8u);
        CHECK_EQ(machine.diary.posts.size(), 16u);
        CHECK_EQ(machine.code.owners(6)[0], 0u);
        CHECK(machine.code.begin_translation(0, 7));  // its neighbour is guarded as ever
    });
}

STORY("given a mixed page, when a disk writes it, then the bytes change and nobody is told") {
    with_both([](Protection protection) {
        Machine machine(protection, 1, {.mixed_after = 1});
        CHECK(machine.code.begin_translation(0, 1));
        machine.store(1, 1);
        CHECK(!machine.code.begin_translation(0, 1));
        CHECK(machine.ram.write(kPage, "x", 1));
        CHECK_EQ(int{machine.ram.guest_base()[kPage]}, int{'x'});
        CHECK(!machine.ram.code_written_by_host(kPage, 8));
        CHECK_EQ(machine.diary.posts.size(), 1u);
    });
}

STORY("given a page written now and then, then it does not become mixed") {
    with_both([](Protection protection) {
        Machine machine(protection, 1, {.mixed_after = 4, .decay_ms = 1});
        for (int i = 0; i < 12; i++) {
            CHECK(machine.code.begin_translation(0, 6));
            machine.store(6, 1);
            // The coarse clock ticks every 1 to 10 ms.
            std::this_thread::sleep_for(std::chrono::milliseconds(12));
        }
        CHECK(!machine.code.is_mixed(6));
    });
}

STORY("given a page that no mapping is left for, then it is not guarded, and its blocks check themselves") {
    Machine machine(Protection::mprotect, 1, {.max_runs = 1000});
    bool guarded = true;
    bool again = false;
    {
        const NoMappingsLeft full;
        guarded = machine.code.begin_translation(0, 100);
    }
    again = machine.code.begin_translation(0, 100);
    CHECK(!guarded);
    CHECK(again);
    CHECK(!machine.code.is_mixed(100));
}

RUN_STORIES()
