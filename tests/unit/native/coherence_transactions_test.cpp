// SPDX-License-Identifier: GPL-2.0-or-later
// Memory transactions: what an operation does to memory, who executes it, and when the page moves instead.
#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "coherence/contention.hpp"
#include "coherence_network.hpp"

using namespace coherence_network;

namespace {

using Does = Thread::Does;
using Kind = Message::Kind;
using Op = Operation::Kind;

Wide low_bytes(Wide value, unsigned size) {
    return size == 16 ? value : value & ((Wide{1} << (8 * size)) - 1);
}

__int128 signed_of(Wide value, unsigned size) {
    const unsigned shift = 128 - 8 * size;
    return static_cast<__int128>(value << shift) >> shift;
}

/// What an operation leaves, by the plainest arithmetic.
Wide expected_after(const Operation& operation, Wide old) {
    const Wide operand = low_bytes(operation.operand, operation.size);
    const bool below = signed_of(operand, operation.size) < signed_of(old, operation.size);
    switch (operation.kind) {
        case Op::kLoad:
            return old;
        case Op::kStore:
        case Op::kExchange:
            return operand;
        case Op::kCompareSwap:
            return old == low_bytes(operation.expected, operation.size) ? operand : old;
        case Op::kAdd:
            return low_bytes(old + operand, operation.size);
        case Op::kAnd:
            return old & operand;
        case Op::kOr:
            return old | operand;
        case Op::kXor:
            return old ^ operand;
        case Op::kMinSigned:
            return below ? operand : old;
        case Op::kMaxSigned:
            return below ? old : operand;
        case Op::kMinUnsigned:
            return operand < old ? operand : old;
        case Op::kMaxUnsigned:
            return operand < old ? old : operand;
    }
    return old;
}

}  // namespace

STORY(
    "given any operation of any size and place, when executed, then memory and the answer are as arithmetic "
    "says") {
    std::mt19937_64 random(1);
    alignas(4096) std::array<uint8_t, 4096> page{};
    for (unsigned round = 0; round < 200'000; ++round) {
        Operation operation;
        operation.kind = static_cast<Op>(random() % Operation::kKinds);
        operation.size = static_cast<uint8_t>(1u << random() % 5);
        operation.offset = static_cast<uint16_t>(random() % (4096 - operation.size + 1));
        if (operation.size == 16) operation.offset &= 0xff0;
        operation.operand = Wide{random()} << 64 | random();
        operation.expected = Wide{random()} << 64 | random();
        CHECK(valid(operation));
        Wide old = 0;
        std::memcpy(&old, &page[operation.offset], operation.size);
        if (random() % 2 == 0) operation.expected = old | (operation.size == 16 ? 0 : Wide{1} << 127);
        const std::array<uint8_t, 4096> before = page;
        const Wide answer = execute(operation, page.data());
        CHECK(answer == (operation.kind == Op::kStore ? 0 : old));
        std::array<uint8_t, 4096> after = before;
        const Wide wanted = expected_after(operation, old);
        std::memcpy(&after[operation.offset], &wanted, operation.size);
        CHECK(page == after);
    }
}

STORY("given operations that leave the page or have no size, when judged, then they are not valid") {
    CHECK(valid({.kind = Op::kAdd, .size = 8, .offset = 4088}));
    CHECK(!valid({.kind = Op::kAdd, .size = 8, .offset = 4089}));
    CHECK(!valid({.kind = Op::kAdd, .size = 1, .offset = 4096}));
    CHECK(!valid({.kind = Op::kAdd, .size = 3}));
    CHECK(!valid({.kind = Op::kAdd, .size = 0}));
    CHECK(!valid({.kind = Op::kAdd, .size = 16, .offset = 8}));
    CHECK(!valid({.kind = Op::kAdd, .size = 16, .offset = 4096}));
    CHECK(!valid({.kind = Op::kAdd, .size = 16, .offset = 65520}));
    CHECK(!valid({.kind = static_cast<Op>(Operation::kKinds), .size = 8}));
}

STORY(
    "given threads that add at the same place in every size, when all have ended, then no addition is lost") {
    alignas(4096) static std::array<uint8_t, 4096> page;
    for (const uint8_t size : {1, 2, 4, 8, 16}) {
        page.fill(0);
        // Misaligned, but within what a LOCK-prefixed instruction takes without crossing a cache line.
        const auto offset = static_cast<uint16_t>(size == 16 ? 48 : 65);
        std::vector<std::thread> threads;
        for (unsigned n = 0; n < 3; ++n) {
            threads.emplace_back([&] {
                for (unsigned round = 0; round < 20'000; ++round) {
                    execute({.kind = Op::kAdd, .size = size, .offset = offset, .operand = 1}, page.data());
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        const Wide sum = execute({.kind = Op::kLoad, .size = size, .offset = offset}, page.data());
        CHECK(sum == low_bytes(60'000, size));
    }
}

STORY(
    "given an owner and policy always, when another host adds, then the operation travels and the page "
    "stays") {
    Network network(3, 1, homed_on_0(1, Policy::kAlways));
    const unsigned owner = network.add_thread(1);
    const unsigned other = network.add_thread(2);
    network.begin(owner, Does::kWrite, 0);
    let_holds_end(network);
    network.begin(other, Does::kAdd, 0);
    network.deliver(2, 0);
    CHECK((on_the_way(network, 0, 1) == std::vector{Kind::kExec}));
    network.deliver(0, 1);
    CHECK((on_the_way(network, 1, 2) == std::vector{Kind::kResult}));
    CHECK(!network.node(0).holders(0).busy);  // the next need not wait for the answer
    network.deliver(1, 2);
    CHECK(is_idle(network, other));
    CHECK_EQ(network.truth(0), 2u);
    CHECK(network.mapped(1, 0) == Access::kWrite);
    CHECK_EQ(network.node(2).counters().atomics_remote, 1u);
    CHECK_EQ(network.node(1).counters().atomics_executed, 1u);
    const auto fought = network.node(2).contended(5);
    CHECK_EQ(fought.size(), 1u);
    CHECK_EQ(fought[0].remote, 1u);
    let_holds_end(network);
}

STORY("given a page that is fought for, when many places need it, then those that do so often are told") {
    Network network(3, 2, homed_on_0(2, Policy::kAlways));
    const unsigned owner = network.add_thread(1);
    const unsigned other = network.add_thread(2);
    network.begin(owner, Does::kWrite, 0);
    let_holds_end(network);
    network.begin(other, Does::kAdd, 0);
    let_holds_end(network);
    for (uint64_t round = 1; round <= 100; ++round) {
        network.node(2).used(0, 0x1000);
        network.node(2).used(0, 0x2000 + round);  // comes by once
        network.node(2).used(0, 0x1001);
        network.node(2).used(1, 0x3000);  // of a page that nobody fights for
    }
    const auto fought = network.node(2).contended(5);
    CHECK_EQ(fought.size(), 1u);
    uint64_t often = 0;
    for (const auto& user : fought[0].users) {
        CHECK(user.place != 0x3000);
        if (user.place == 0x1000 || user.place == 0x1001) often += user.times >= 100;
    }
    CHECK_EQ(often, 2u);
}

STORY("given policy never, when another host adds, then the page comes and the thread does it itself") {
    Network network(2, 1, homed_on_0(1, Policy::kNever));
    const unsigned adder = network.add_thread(1);
    network.begin(adder, Does::kAdd, 0);
    let_holds_end(network);
    CHECK(network.mapped(1, 0) == Access::kWrite);
    CHECK_EQ(network.truth(0), 1u);
    CHECK_EQ(network.node(1).counters().atomics_retried, 1u);
    CHECK_EQ(network.node(0).counters().atomics_forwarded, 0u);
}

STORY(
    "given two additions of one host, when one is executed far away and one brings the page, then each is "
    "once") {
    // The answer that brings the page names the addition it is for: the other may be at the owner already.
    Network network(3, 1, homed_on_0(1, Policy::kAlways));
    const unsigned first = network.add_thread(2);
    const unsigned second = network.add_thread(2);
    const unsigned reader = network.add_thread(0);
    network.begin(network.add_thread(1), Does::kWrite, 0);
    let_holds_end(network);
    network.begin(first, Does::kAdd, 0);
    network.deliver(2, 0);  // executed at host 1, when the order arrives
    network.begin(reader, Does::kRead, 0);
    network.deliver(0, 1);
    network.deliver(0, 1);
    network.deliver(1, 0);  // the reader's copy: now nobody owns the page
    network.begin(second, Does::kAdd, 0);
    network.deliver(2, 0);  // so this one moves it
    network.deliver(0, 2);
    let_holds_end(network);
    CHECK_EQ(network.threads()[first].done, 1u);
    CHECK_EQ(network.threads()[second].done, 1u);
    CHECK_EQ(network.truth(0), 3u);
}

STORY(
    "given a page that two hosts add to, when it has moved a few times, then the operations travel instead") {
    Network network(3, 1, homed_on_0(1));
    const unsigned one = network.add_thread(1);
    const unsigned two = network.add_thread(2);
    for (unsigned round = 0; round < 10; ++round) {
        network.begin(one, Does::kAdd, 0);
        network.finish();
        network.begin(two, Does::kAdd, 0);
        network.finish();
    }
    CHECK_EQ(network.node(0).counters().contended_marks, 1u);
    CHECK(network.node(0).counters().owner_moves < 8);
    CHECK(network.node(0).counters().atomics_forwarded > 4);
    let_holds_end(network);
}

STORY("given a contended page, when only one host still uses it, then it moves there and stays") {
    Network network(3, 1, homed_on_0(1));
    const unsigned one = network.add_thread(1);
    const unsigned two = network.add_thread(2);
    for (unsigned round = 0; round < 10; ++round) {
        network.begin(one, Does::kAdd, 0);
        network.finish();
        network.begin(two, Does::kAdd, 0);
        network.finish();
    }
    const unsigned left = network.mapped(1, 0) == Access::kWrite ? two : one;  // the one without the page
    const uint64_t before = network.node(0).counters().returned_moves;
    unsigned remote = 0;
    while (network.mapped(left + 1, 0) != Access::kWrite && remote < 100) {
        network.begin(left, Does::kAdd, 0);
        network.finish();
        ++remote;
    }
    CHECK(remote > 2);
    CHECK(remote <= 4 * Contention::kRow);
    CHECK_EQ(network.node(0).counters().returned_moves, before + 1);
    let_holds_end(network);
}

STORY("given two hosts that never stop, when the page is tried on each, then the tries become rare") {
    Heat heat;
    unsigned returned = 0;
    unsigned operations = 0;
    bool marked = false;
    for (unsigned n = 0; n < 5; ++n) Contention::moved(heat, 1);
    for (unsigned row = 0; row < 10; ++row) {  // whoever has no page asks until it has it
        for (bool returns = false; !returns; ++operations) {
            Contention::asked(heat, row % 2, 1);
            Contention::remote(heat, row % 2, false, 1, marked, returns);
            returned += returns;
        }
    }
    CHECK(marked);
    CHECK_EQ(returned, 10u);
    CHECK(operations > 10 * 40);
}

STORY("given an owner that never stops, when three others ask in turn, then each of them gets the page") {
    Heat heat;
    std::array<unsigned, 3> returned{};
    bool marked = false;
    for (unsigned n = 0; n < 5; ++n) Contention::moved(heat, 1);
    for (unsigned n = 0; n < 20 * Contention::kTurn; ++n) {
        bool returns = false;
        Contention::asked(heat, static_cast<HostId>(n % 3), 1);
        Contention::remote(heat, static_cast<HostId>(n % 3), false, 1, marked, returns);
        returned[n % 3] += returns;
    }
    for (const unsigned turns : returned) CHECK(turns >= 6 && turns <= 7);
}

STORY(
    "given a contended page, when nobody asks for a quarter of a second, then it is a page like any other") {
    Heat heat;
    bool marked = false;
    bool returns = false;
    for (unsigned n = 0; n < 5; ++n) Contention::moved(heat, 1000);
    Contention::asked(heat, 1, 1000);
    CHECK(Contention::remote(heat, 1, false, 1000, marked, returns));
    Contention::asked(heat, 2, 1300);
    CHECK(!Contention::remote(heat, 2, false, 1300, marked, returns));
    CHECK(!returns);
}

RUN_STORIES()
