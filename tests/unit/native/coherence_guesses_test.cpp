// SPDX-License-Identifier: GPL-2.0-or-later
// What the page protocol guesses, as stories: the pages behind a sequential user, readers that will write.
#include <cstdint>

#include "check.hpp"
#include "coherence_network.hpp"

using namespace coherence_network;

namespace {

using Does = Thread::Does;

}  // namespace

STORY(
    "given hosts that take turns reading and writing a page, when it has gone round, then one answer brings "
    "both") {
    Network network(3, 1, homed_on_0(1));
    for (unsigned host = 0; host < 3; ++host) network.add_thread(host);
    for (unsigned round = 0; round < 30; ++round) {
        for (const Does does : {Does::kRead, Does::kWrite}) {
            network.begin(round % 3, does, 0);
            let_holds_end(network);
        }
    }
    const Counters counters = network.node(0).counters();
    CHECK(counters.migrations > 12);
    CHECK_EQ(counters.migrations_unwritten, 0u);
    let_holds_end(network);
    CHECK_EQ(network.truth(0), 30u);
}

STORY(
    "given a host that reads what another writes after reading it, when it goes on, then only the writer has "
    "more") {
    Network network(2, 1, homed_on_0(1));
    const unsigned writer = network.add_thread(0);
    const unsigned reader = network.add_thread(1);
    for (unsigned round = 0; round < 40; ++round) {
        network.begin(writer, Does::kRead, 0);
        network.begin(writer, Does::kWrite, 0);
        let_holds_end(network);
        network.begin(reader, Does::kRead, 0);
        let_holds_end(network);
        CHECK(network.mapped(1, 0) == Access::kRead);
    }
    CHECK_EQ(network.node(0).counters().migrations, 0u);
    // Once it writes, its next read brings all; that it does not write then is seen, and no more is given.
    network.begin(reader, Does::kWrite, 0);
    let_holds_end(network);
    for (unsigned round = 0; round < 10; ++round) {
        network.begin(writer, Does::kWrite, 0);
        let_holds_end(network);
        network.begin(reader, Does::kRead, 0);
        let_holds_end(network);
    }
    CHECK_EQ(network.node(0).counters().migrations, 1u);
    CHECK_EQ(network.node(0).counters().migrations_unwritten, 1u);
}

STORY("given a page that migrated, when its users only read it, then all of them soon have a copy") {
    Network network(3, 1, homed_on_0(1));
    for (unsigned host = 0; host < 3; ++host) network.add_thread(host);
    for (unsigned round = 0; round < 60; ++round) {
        network.begin(round % 3, Does::kRead, 0);
        network.finish();
        if (round < 30) network.begin(round % 3, Does::kWrite, 0);
        let_holds_end(network);
    }
    for (unsigned host = 0; host < 3; ++host) CHECK(network.mapped(host, 0) == Access::kRead);
}

STORY("given a sequential reader, when it goes on, then pages are there before it asks") {
    Options options = homed_on_0(64);
    options.prefetch = 8;
    Network network(2, 64, options);
    const unsigned reader = network.add_thread(1);
    for (uint64_t page = 0; page < 64; ++page) {
        network.begin(reader, Does::kRead, page);
        network.finish();
    }
    const Counters counters = network.node(1).counters();
    CHECK(counters.read_fetches < 14);
    CHECK_EQ(counters.read_fetches + counters.prefetches, 64u);
    let_holds_end(network);
}

STORY(
    "given memory that was never used, when a writer goes through it, then pages are there before it asks") {
    Options options = homed_on_0(64);
    options.first_touch = 16;
    Network network(2, 64, options);
    const unsigned writer = network.add_thread(1);
    for (uint64_t page = 0; page < 64; ++page) {
        network.begin(writer, Does::kWrite, page);
        network.finish();
    }
    const Counters counters = network.node(1).counters();
    CHECK(counters.write_fetches < 9);
    CHECK_EQ(counters.write_fetches + counters.first_touches, 64u);
    let_holds_end(network);
}

STORY(
    "given memory that its home has used, when a writer goes through it, then it gets what it asks for "
    "only") {
    Options options = homed_on_0(64);
    options.first_touch = 16;
    Network network(2, 64, options);
    const unsigned user = network.add_thread(0);
    const unsigned writer = network.add_thread(1);
    for (uint64_t page = 0; page < 64; ++page) network.begin(user, Does::kWrite, page);
    for (uint64_t page = 0; page < 32; ++page) {
        network.begin(writer, Does::kWrite, page);
        network.finish();
    }
    CHECK_EQ(network.node(1).counters().first_touches, 0u);
    CHECK_EQ(network.node(1).counters().write_fetches, 32u);
    for (uint64_t page = 32; page < 64; ++page) CHECK(network.mapped(0, page) == Access::kWrite);
    let_holds_end(network);
}

STORY(
    "given a guess of a page that its home begins to use meanwhile, when it is declined, then a waiter gets "
    "it") {
    Options options = homed_on_0(8);
    options.first_touch = 2;
    Network network(2, 8, options);
    const unsigned writer = network.add_thread(1);
    const unsigned late = network.add_thread(1);
    for (const uint64_t page : {0u, 1u}) {
        network.begin(writer, Does::kWrite, page);
        if (page == 0) network.finish();
    }
    network.begin(late, Does::kWrite, 2);  // of which host 1 has asked for already
    network.begin(network.add_thread(0), Does::kWrite, 2);
    let_holds_end(network);
    CHECK_EQ(network.node(1).counters().prefetches_declined, 1u);
    CHECK_EQ(network.threads()[late].done, 1u);
    CHECK_EQ(network.truth(2), 2u);
}

STORY(
    "given an answer that waits for acknowledgements, when a guess of its page is declined, then both end") {
    Options options = homed_on_0(3);
    options.first_touch = 2;
    Network network(3, 3, options);
    const unsigned adder = network.add_thread(1);
    const unsigned writer = network.add_thread(1);
    const unsigned owner = network.add_thread(0);
    network.begin(owner, Does::kWrite, 2);
    network.begin(network.add_thread(2), Does::kRead, 2);
    network.begin(writer, Does::kWrite, 0);
    let_holds_end(network);
    network.begin(adder, Does::kAdd, 2);
    network.begin(writer, Does::kWrite, 1);  // and guesses 2
    while (network.deliver(1, 0)) {
    }
    while (network.deliver(0, 1)) {  // the page for the adder, and no to the guess; host 2 still reads
    }
    CHECK_EQ(network.node(1).counters().prefetches_declined, 1u);
    let_holds_end(network);
    CHECK(is_idle(network, adder) && is_idle(network, writer));
    CHECK_EQ(network.truth(2), 2u);
}

STORY("given a link that carries more than it can, when a reader goes on, then no guess is sent over it") {
    for (const unsigned who : {0U, 1U}) {  // the home, which would send; the reader, which would ask
        Options options = homed_on_0(64);
        options.prefetch = 8;
        Network network(2, 64, options);
        const unsigned reader = network.add_thread(1);
        const auto read = [&](uint64_t first, uint64_t end) {
            for (uint64_t page = first; page < end; ++page) {
                network.begin(reader, Does::kRead, page);
                network.finish();
            }
        };
        network.node(who).congested(uint64_t{1} << (1 - who));
        read(0, 32);
        CHECK_EQ(network.node(1).counters().prefetches, 0u);
        CHECK_EQ(network.node(1).counters().read_fetches, 32u);
        CHECK_EQ(network.node(1).counters().prefetches_declined > 0, who == 0);
        network.node(who).congested(0);
        read(32, 64);
        CHECK(network.node(1).counters().prefetches > 16);
        let_holds_end(network);
    }
}

STORY(
    "given a page that others wait for, when a reader guesses it, then the home declines; one who waits gets "
    "it") {
    Options options = homed_on_0(8);
    options.prefetch = 2;
    Network network(3, 8, options);
    const unsigned reader = network.add_thread(1);
    const unsigned late = network.add_thread(1);
    const unsigned writer = network.add_thread(2);
    network.begin(writer, Does::kWrite, 2);
    network.finish();
    network.begin(network.add_thread(0), Does::kWrite, 2);  // page 2 is busy: host 2 has to send it
    network.begin(reader, Does::kRead, 0);
    network.deliver(1, 0);
    network.deliver(0, 1);
    network.run(reader);
    network.begin(reader, Does::kRead, 1);  // guesses 2 and 3
    network.begin(late, Does::kRead, 2);    // and a CPU reads the page
    while (network.deliver(1, 0)) {
    }
    let_holds_end(network);
    CHECK_EQ(network.node(1).counters().prefetches_declined, 1u);
    CHECK_EQ(network.threads()[late].done, 1u);
}

RUN_STORIES()
