// SPDX-License-Identifier: GPL-2.0-or-later
// The mailbox when several writers post to one vCPU at once.
#include "vcpu/mailbox.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.hpp"

using namespace coremesh;

STORY(
    "given writers that post pages, when one loses the CPU inside its post, then the others' pages are known "
    "to be due") {
    constexpr unsigned kWriters = 4;
    Mailbox mailbox;
    // Each writer counts its posts before and after: when it is counted after, the write that it announces
    // goes on.
    std::array<std::atomic<uint64_t>, kWriters> begun{};
    std::array<std::atomic<uint64_t>, kWriters> written{};
    std::atomic<bool> stop{false};
    std::vector<std::thread> writers;
    for (unsigned id = 0; id < kWriters; id++) {
        writers.emplace_back([&, id] {
            for (uint64_t post = 1; !stop; post++) {
                begun[id] = post;
                mailbox.post_page(id);
                written[id] = post;
                for (volatile int pace = 0; pace < 20;) pace = pace + 1;
            }
        });
    }
    std::array<uint64_t, kWriters> dropped{};  // the last post that the page's code was dropped for
    uint64_t lost = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
    while (std::chrono::steady_clock::now() < end) {
        std::array<uint64_t, kWriters> seen;
        for (unsigned id = 0; id < kWriters; id++) seen[id] = written[id];
        std::array<bool, kWriters> due{};
        if (mailbox.pending() & kRequestPages) {
            mailbox.take(kRequestPages);
            for (uint64_t page; mailbox.next_page(page);) due[page] = true;
            if (mailbox.take_overflow() || mailbox.entry_under_way()) due.fill(true);
        }
        for (unsigned id = 0; id < kWriters; id++) {
            if (due[id]) dropped[id] = begun[id];
            lost += dropped[id] < seen[id];
        }
    }
    stop = true;
    for (auto& writer : writers) writer.join();
    CHECK_EQ(lost, 0u);
}

RUN_STORIES()
