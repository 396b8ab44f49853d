// SPDX-License-Identifier: GPL-2.0-or-later
// The budget of mappings that mprotect has.
#include "ram/mapped_pages.hpp"

#include <memory>

#include "check.hpp"
#include "page_table_fixture.hpp"

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
    auto full = std::make_unique<NoMappingsLeft>();
    machine.store(15, 1);
    const auto posts = machine.diary.posts.size();
    const auto byte = machine.ram.protocol_base()[15 * kPage];
    full.reset();
    CHECK_EQ(posts, 10u);
    CHECK_EQ(int{byte}, 1);
    CHECK_EQ(machine.code.runs(), 0u);
    for (uint64_t page = 10; page < 20; page++) machine.store(page, 2);
    CHECK_EQ(machine.faults(), 1u);
    CHECK(machine.code.begin_translation(0, 15));
}

RUN_STORIES()
