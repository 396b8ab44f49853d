// SPDX-License-Identifier: GPL-2.0-or-later
// Translated code on pages that several hosts share: both facts about a page at once.
#include <cstring>

#include "check.hpp"
#include "shared_ram_fixture.hpp"

using namespace coremesh;

STORY("given code on a page, when the page is taken from this host, then the owners are told before") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.load(5);
        CHECK(machine.table.begin_translation(1, 5));
        CHECK(machine.table.begin_translation(3, 5));
        machine.diary.on_post = [&](uint64_t page) { CHECK(machine.table.access(page) == Access::kRead); };
        machine.table.set_access(5, Access::kNone);
        CHECK_EQ(machine.diary.posts.size(), 2u);
        CHECK_EQ(machine.table.owners(5)[0], 0u);
        machine.table.set_access(5, Access::kNone);
        CHECK_EQ(machine.diary.posts.size(), 2u);
    });
}

STORY("given code on a page held for writing, when others may read it too, then nobody is told") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.store(5, 1);
        CHECK(machine.table.begin_translation(1, 5));
        machine.table.set_access(5, Access::kRead);
        CHECK(machine.diary.posts.empty());
        CHECK_EQ(machine.table.owners(5)[0], 2u);
        CHECK_EQ(int{machine.load(5)}, 1);
    });
}

STORY(
    "given code on a shared page, when it is written, then the page is asked for first, the owners told "
    "next") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.load(5);
        CHECK(machine.table.begin_translation(2, 5));
        machine.diary.watched = machine.ram.protocol_base() + 5 * kPage;
        machine.diary.on_post = [&](uint64_t page) { CHECK(machine.table.access(page) == Access::kWrite); };
        machine.store(5, 0x22);
        CHECK_EQ(machine.home.asked.size(), 2u);
        CHECK(!machine.home.asked[1].had_code);
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK_EQ(int{machine.diary.posts[0].byte}, 0);
        CHECK_EQ(machine.diary.faults.size(), 1u);  // self_write, in the same fault
        CHECK(machine.diary.faults[0].had_code);
        CHECK_EQ(int{*machine.diary.watched}, 0x22);
        machine.store(5, 0x33);
        CHECK_EQ(machine.table.counters().faults, 1u);
        CHECK_EQ(machine.home.asked.size(), 2u);
    });
}

STORY(
    "given code on a shared page, when this host gets it for writing, then it stays guarded until a write") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.load(5);
        CHECK(machine.table.begin_translation(2, 5));
        machine.table.set_access(5, Access::kWrite);
        CHECK(machine.diary.posts.empty());
        CHECK(machine.table.begin_translation(2, 5));
        CHECK_EQ(machine.table.counters().protects, 0u);
        machine.store(5, 1);
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK_EQ(machine.home.asked.size(), 1u);
    });
}

STORY("given a page that is not here, when it is translated, then reading brings it, and losing it is told") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.home.bytes(9)[0] = 0x90;
        CHECK(machine.table.begin_translation(0, 9));
        CHECK(machine.home.asked.empty());
        CHECK_EQ(int{machine.load(9)}, 0x90);
        CHECK(machine.home.asked[0].want == Access::kRead);
        machine.table.set_access(9, Access::kNone);
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK(machine.table.begin_translation(0, 9));
        machine.home.bytes(9)[0] = 0xcc;  // another host wrote it
        CHECK_EQ(int{machine.load(9)}, 0xcc);
    });
}

STORY(
    "given a page that this host has held from the start, when it is translated before it was ever touched, "
    "then it is guarded") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.table.set_access(0, 100, Access::kWrite);
        CHECK(machine.ram.write(9 * kPage, "\x90", 1));
        for (const uint64_t page : {9, 10}) {
            CHECK(machine.table.begin_translation(0, page));
            CHECK_EQ(int{machine.load(page)}, page == 9 ? 0x90 : 0);
            CHECK(machine.table.begin_translation(0, page));
            machine.store(page, 1);
            CHECK_EQ(machine.diary.posts.size(), page - 8);
        }
        CHECK(machine.home.asked.empty());
    });
}

STORY(
    "given a page of code and hot data that moves between hosts, then it becomes mixed, and moves without "
    "posts") {
    with_all([](Protection protection) {
        SharedMachine machine(protection, 2, {.mixed_after = 8, .decay_ms = 60000});
        for (int i = 0; i < 8; i++) {
            CHECK(!machine.table.is_mixed(6));
            machine.load(6);
            CHECK(machine.table.begin_translation(1, 6));
            machine.table.set_access(6, Access::kNone);
        }
        CHECK(machine.table.is_mixed(6));
        CHECK_EQ(machine.diary.posts.size(), 8u);
        machine.load(6);
        CHECK(!machine.table.begin_translation(1, 6));
        machine.store(6, 1);
        machine.table.set_access(6, Access::kNone);
        CHECK_EQ(machine.diary.posts.size(), 8u);
        machine.home.answer = false;
        CHECK(machine.refused(6, false));
    });
}

STORY(
    "given a device that writes to code on a page held here, then the owners are told before the bytes "
    "change") {
    with_all([](Protection protection) {
        SharedMachine machine(protection);
        machine.store(4, 0x11);
        CHECK(machine.table.begin_translation(1, 4));
        machine.diary.watched = machine.ram.protocol_base() + 4 * kPage;
        CHECK(machine.ram.write(4 * kPage, "x", 1));
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK_EQ(int{machine.diary.posts[0].byte}, 0x11);
        CHECK_EQ(int{machine.load(4)}, int{'x'});
    });
}

RUN_STORIES()
