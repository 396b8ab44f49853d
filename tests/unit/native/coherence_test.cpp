// SPDX-License-Identifier: GPL-2.0-or-later
// The page protocol as stories: hosts on a scripted network, and what each race ends in.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "check.hpp"
#include "coherence_network.hpp"

using namespace coherence_network;

namespace {

using Does = Thread::Does;
using Kind = Message::Kind;

uint64_t allocations = 0;

}  // namespace

// Not inlined: the compiler would see memory of malloc given to delete.
[[gnu::noinline]] void* operator new(size_t size) {
    ++allocations;
    if (void* at = std::malloc(size)) return at;
    throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, size_t) noexcept { std::free(at); }

STORY(
    "given a page at its home, when another host reads it, then two messages bring a copy and both may "
    "read") {
    Network network(2, 1, homed_on_0(1));
    const unsigned reader = network.add_thread(1);
    network.begin(reader, Does::kRead, 0);
    CHECK((on_the_way(network, 1, 0) == std::vector{Kind::kGetS}));
    network.deliver(1, 0);
    CHECK((on_the_way(network, 0, 1) == std::vector{Kind::kDataS}));
    CHECK(network.mapped(0, 0) == Access::kRead);  // before the bytes are read
    network.deliver(0, 1);
    network.run(reader);
    CHECK(is_idle(network, reader));
    CHECK(on_the_way(network, 1, 0).empty());  // the home knows what it has sent
    CHECK_EQ(network.node(0).holders(0).hosts, 0b11u);
    let_holds_end(network);
    CHECK(network.mapped(1, 0) == Access::kRead);
}

STORY("given a page that was never written, when another host gets it, then no bytes travel") {
    Network network(2, 1, homed_on_0(1));
    network.begin(network.add_thread(1), Does::kRead, 0);
    network.deliver(1, 0);
    CHECK_EQ(network.channel(0, 1).front().bytes.size(), kWireHead + 1);
}

STORY("given an owner that is neither home nor requester, when a page is read, then it comes in three hops") {
    Network network(3, 1, homed_on_0(1));
    const unsigned owner = network.add_thread(1);
    const unsigned reader = network.add_thread(2);
    network.begin(owner, Does::kWrite, 0);
    let_holds_end(network);
    CHECK(network.mapped(1, 0) == Access::kWrite);
    CHECK(network.mapped(0, 0) == Access::kNone);
    network.begin(reader, Does::kRead, 0);
    network.deliver(2, 0);
    CHECK((on_the_way(network, 0, 1) == std::vector{Kind::kFwdS}));
    network.deliver(0, 1);
    CHECK((on_the_way(network, 1, 2) == std::vector{Kind::kDataS}));
    network.deliver(1, 2);
    network.run(reader);
    CHECK(is_idle(network, reader));
    let_holds_end(network);
    CHECK_EQ(network.node(0).holders(0).hosts, 0b110u);
}

STORY(
    "given a reader of a page that its home reads too, when it writes, then two messages make it the owner") {
    Network network(2, 1, homed_on_0(1));
    const unsigned user = network.add_thread(1);
    network.begin(user, Does::kRead, 0);
    let_holds_end(network);
    const uint64_t before = network.sent();
    network.begin(user, Does::kWrite, 0);
    network.deliver(1, 0);
    CHECK(network.mapped(0, 0) == Access::kNone);  // before the grant
    CHECK((on_the_way(network, 0, 1) == std::vector{Kind::kGrant}));
    let_holds_end(network);
    CHECK(is_idle(network, user));
    CHECK_EQ(network.sent(), before + 2);
}

STORY("given many readers, when one of them writes, then it may only after the last has acknowledged") {
    Network network(4, 1, homed_on_0(1));
    for (unsigned host = 1; host < 4; ++host) network.begin(network.add_thread(host), Does::kRead, 0);
    let_holds_end(network);
    const unsigned writer = 0;  // on host 1
    network.begin(writer, Does::kWrite, 0);
    network.deliver(1, 0);  // kGetM; host 0 was a reader too and has acknowledged
    network.deliver(0, 2);
    network.deliver(2, 1);  // an acknowledgement before the grant
    while (network.deliver(0, 1)) {
    }
    CHECK(network.mapped(1, 0) == Access::kRead);
    network.deliver(0, 3);
    CHECK(network.mapped(1, 0) == Access::kRead);
    network.deliver(3, 1);
    CHECK(network.mapped(1, 0) == Access::kWrite);
    CHECK_EQ(network.pages_on_wire(), 3u);  // the writer had the bytes
    let_holds_end(network);
}

STORY(
    "given a copy on its way and an operation behind it, when its acknowledgement overtakes the copy, then "
    "both end") {
    Network network(3, 1, homed_on_0(1));
    network.begin(network.add_thread(2), Does::kRead, 0);
    let_holds_end(network);
    const unsigned reader = network.add_thread(1);
    const unsigned adder = network.add_thread(1);
    network.begin(reader, Does::kRead, 0);
    network.begin(adder, Does::kAdd, 0);
    network.deliver(1, 0);
    network.deliver(1, 0);
    CHECK((on_the_way(network, 0, 1) == std::vector{Kind::kDataS, Kind::kGrant}));
    network.deliver(0, 2);
    CHECK((on_the_way(network, 2, 1) == std::vector{Kind::kInvAck}));
    network.deliver(2, 1);
    let_holds_end(network);
    CHECK(is_idle(network, reader) && is_idle(network, adder));
    CHECK_EQ(network.truth(0), 1u);
}

STORY(
    "given two readers that write at the same moment, when one loses, then it gets the page with its data") {
    Network network(3, 1, homed_on_0(1));
    const unsigned one = network.add_thread(1);
    const unsigned two = network.add_thread(2);
    network.begin(one, Does::kRead, 0);
    network.begin(two, Does::kRead, 0);
    let_holds_end(network);
    network.begin(one, Does::kWrite, 0);
    network.begin(two, Does::kWrite, 0);
    network.deliver(1, 0);  // host 1 asked first
    network.deliver(2, 0);
    network.deliver(0, 2);  // kInv, while host 2 waits for its own upgrade
    CHECK(network.mapped(2, 0) == Access::kNone);
    let_holds_end(network);
    CHECK_EQ(network.truth(0), 2u);
    CHECK(network.mapped(2, 0) == Access::kWrite);
    CHECK_EQ(network.node(1).counters().upgrades, 1u);
    CHECK_EQ(network.node(2).counters().write_fetches, 1u);
}

STORY("given five hosts that want one page, when they have asked, then they get it in the order of asking") {
    Network network(6, 1, homed_on_0(1));
    for (unsigned host = 1; host < 6; ++host) network.add_thread(host);
    const std::vector<unsigned> order{3, 1, 5, 2, 4};
    for (unsigned host : order) {
        network.begin(host - 1, Does::kWrite, 0);
        network.deliver(host, 0);
    }
    std::vector<unsigned> served;
    for (unsigned step = 0; step < 100; ++step) {
        network.settle();
        for (unsigned host : order) {
            const bool first = std::find(served.begin(), served.end(), host) == served.end();
            if (is_idle(network, host - 1) && first) served.push_back(host);
        }
        if (const auto next = network.next_timer()) network.advance(*next - network.now());
    }
    CHECK(served == order);
    let_holds_end(network);
}

STORY("given a page just granted, when another wants it, then it stays until its thread has had 50 us") {
    Network network(2, 1, homed_on_0(1));
    const unsigned remote = network.add_thread(1);
    const unsigned local = network.add_thread(0);
    network.begin(remote, Does::kWrite, 0);
    network.deliver(1, 0);
    network.begin(local, Does::kWrite, 0);
    network.deliver(0, 1);  // the bytes
    network.deliver(0, 1);  // kFwdM
    CHECK(network.mapped(1, 0) == Access::kWrite);
    CHECK_EQ(network.node(1).counters().deferred, 1u);
    network.advance(200);  // the woken thread was slow
    network.fire();
    CHECK(network.mapped(1, 0) == Access::kWrite);
    network.run(remote);
    CHECK(is_idle(network, remote));
    network.advance(49);
    while (network.fire()) {
    }
    CHECK(network.mapped(1, 0) == Access::kWrite);
    network.advance(1);
    CHECK(network.fire());
    CHECK(network.mapped(1, 0) == Access::kNone);
    let_holds_end(network);
    CHECK(is_idle(network, local));
}

STORY("given a thread that never runs again, when another host wants its page, then it goes after the cap") {
    Network network(2, 1, homed_on_0(1));
    network.begin(network.add_thread(1), Does::kWrite, 0);
    network.deliver(1, 0);
    network.deliver(0, 1);
    const unsigned local = network.add_thread(0);
    network.begin(local, Does::kWrite, 0);
    network.deliver(0, 1);
    network.advance(499);
    CHECK(!network.fire());
    network.advance(1);
    CHECK(network.fire());
    network.deliver(1, 0);
    network.run(local);
    CHECK(is_idle(network, local));
}

STORY(
    "given instructions that write two pages each, when two hosts want both in opposite order, then both "
    "end") {
    Options options = homed_on_0(2);
    Network network(3, 2, options);
    const unsigned one = network.add_thread(1);
    const unsigned two = network.add_thread(2);
    // In step, and 300 us for a message: a page is gone before the other has come.
    for (uint64_t rounds = 0; rounds < 20'000; ++rounds) {
        network.begin(one, Does::kBoth, 0, 1);
        network.begin(two, Does::kBoth, 1, 0);
        if (rounds % 30 == 0) {
            std::array<std::array<size_t, 3>, 3> there{};  // what has arrived; not the answers to it
            for (unsigned link = 0; link < 9; ++link)
                there[link / 3][link % 3] = network.channel(link / 3, link % 3).size();
            for (unsigned link = 0; link < 9; ++link) {
                for (size_t left = there[link / 3][link % 3]; left > 0; --left)
                    network.deliver(link / 3, link % 3);
            }
        }
        network.run(one);
        network.run(two);
        network.advance(10);
        while (network.fire()) {
        }
    }
    CHECK(network.threads()[one].done > 500);
    CHECK(network.threads()[two].done > 500);
    let_holds_end(network);
}

STORY("given a machine that has warmed up, when pages move and operations travel, then none is allocated") {
    Options options = homed_on_0(4);
    options.hosts = 2;
    options.pages = 4;
    Node home(options);
    options.self = 1;
    Node other(options);
    Actions out;
    std::vector<std::pair<HostId, Message>> wire;  // to whom, and what: two hosts need no more
    wire.reserve(64);
    uint64_t now = 0;
    uint64_t sent = 0;
    const auto perform = [&] {
        for (const Action& action : out) {
            if (action.kind != Action::Kind::kSend && action.kind != Action::Kind::kSendPage &&
                action.kind != Action::Kind::kExecute) {
                continue;
            }
            wire.emplace_back(action.to, action.message);
        }
        out.clear();
    };
    const auto deliver_all = [&] {
        for (size_t next = 0; next < wire.size(); ++next, ++sent) {
            const auto [to, message] = wire[next];
            (to == 0 ? home : other).receive(to == 0 ? 1 : 0, message, now, out);
            perform();
        }
        wire.clear();
    };
    const auto rounds = [&](unsigned count) {
        for (unsigned n = 0; n < count; ++n) {
            for (Node* node : {&other, &home}) {
                now += 1000;  // every hold is over
                node->need(1, n % 2 == 0 ? Access::kWrite : Access::kRead, false, now, out);
                perform();
                deliver_all();
                node->rmw(2, Operation{.kind = Operation::Kind::kAdd, .size = 4}, now, now, out);
                perform();
                deliver_all();
            }
        }
    };
    rounds(20);
    const uint64_t before = allocations;
    const uint64_t sent_before = sent;
    rounds(500);
    CHECK_EQ(allocations, before);
    CHECK(sent > sent_before + 1000);
}

STORY("given homes that leave a gap, overlap or name no host, when a node is made, then it says so") {
    const auto refused = [](std::vector<HomeRange> homes) {
        Options options;
        options.hosts = 2;
        options.pages = 8;
        options.homes = std::move(homes);
        try {
            Node node(options);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    };
    CHECK(!refused({{4, 8, 1}, {0, 4, 0}}));
    CHECK(refused({{0, 4, 0}, {5, 8, 1}}));
    CHECK(refused({{0, 5, 0}, {4, 8, 1}}));
    CHECK(refused({{0, 8, 2}}));
    CHECK(refused({{0, 7, 0}}));
}

RUN_STORIES()
