// SPDX-License-Identifier: GPL-2.0-or-later
// The budget of mappings that mprotect has.
#include "ram/protected_pages.hpp"

#include <sys/mman.h>

#include "check.hpp"
#include "code_pages_fixture.hpp"

using namespace coremesh;

STORY(
    "given more scattered code than mprotect has mappings for, then old pages are given up and their owners "
    "told") {
    constexpr uint64_t kRuns = 32;
    Machine machine(Protection::mprotect, 2, {.max_runs = kRuns}, 8 * kMiB);
    const uint64_t maps = map_count();
    for (uint64_t page = 0; page < 1000; page += 2) {
        CHECK(machine.code.begin_translation(0, page));
        CHECK(machine.code.runs() <= kRuns);
        CHECK(machine.code.owners(page)[0] == 1);
    }
    CHECK(map_count() <= maps + 2 * kRuns + 8);
    CHECK(machine.code.counters().evictions >= 500 - kRuns);
    CHECK_EQ(machine.diary.posts.size(), machine.code.counters().evictions);
    // A page that still has an owner is still guarded, and no other.
    uint64_t owned = 0;
    for (uint64_t page = 0; page < 1000; page += 2) owned += machine.code.owners(page)[0];
    for (uint64_t page = 0; page < 1000; page++) machine.store(page, 1);
    CHECK_EQ(machine.faults(), owned);
    CHECK_EQ(machine.diary.posts.size(), 500u);
    CHECK_EQ(machine.code.runs(), 0u);
}

STORY("given contiguous code, then it is one run whatever its size, and a write in its middle splits it") {
    Machine machine(Protection::mprotect, 1, {.max_runs = 4});
    for (uint64_t page = 100; page < 300; page++) CHECK(machine.code.begin_translation(0, page));
    CHECK_EQ(machine.code.runs(), 1u);
    CHECK_EQ(machine.code.counters().evictions, 0u);
    machine.store(200, 1);
    CHECK_EQ(machine.code.runs(), 2u);
    machine.store(100, 1);
    CHECK_EQ(machine.code.runs(), 2u);
    CHECK(machine.code.begin_translation(0, 200));
    CHECK_EQ(machine.code.runs(), 1u);
}

STORY(
    "given a process with no mapping left, when code in a run is written, then the whole run is given up at "
    "once") {
    Machine machine(Protection::mprotect, 1, {.max_runs = 1000});
    for (uint64_t page = 10; page < 20; page++) CHECK(machine.code.begin_translation(0, page));
    // Every second page read-only: the rest of what vm.max_map_count allows.
    const size_t length = (map_count_limit() + 1000) * kPage;
    void* const filler =
        mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(filler != MAP_FAILED);
    bool full = false;
    for (size_t at = kPage; at < length && !full; at += 2 * kPage) {
        full = mprotect(static_cast<uint8_t*>(filler) + at, kPage, PROT_READ) != 0;
    }
    // A split in two may still fit where one in three does not.
    full = full && mprotect(static_cast<uint8_t*>(filler) + length - kPage, kPage, PROT_READ) != 0;
    machine.store(15, 1);
    const auto posts = machine.diary.posts.size();
    const auto byte = machine.ram.protocol_base()[15 * kPage];
    munmap(filler, length);
    CHECK_EQ(posts, 10u);
    CHECK_EQ(int{byte}, 1);
    CHECK_EQ(machine.code.runs(), 0u);
    for (uint64_t page = 10; page < 20; page++) machine.store(page, 2);
    CHECK_EQ(machine.faults(), 1u);
    CHECK(machine.code.begin_translation(0, 15));
}

RUN_STORIES()
