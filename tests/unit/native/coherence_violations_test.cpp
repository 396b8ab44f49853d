// SPDX-License-Identifier: GPL-2.0-or-later
// Garbage and messages that make no sense: refused or dropped and counted, never more than that.
#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "check.hpp"
#include "coherence_network.hpp"

using namespace coherence_network;

namespace {

using Does = Thread::Does;
using Kind = Message::Kind;

Message random_message(std::mt19937_64& random, unsigned hosts, uint64_t pages) {
    Message message;
    message.kind = static_cast<Kind>(1 + random() % Message::kKinds);
    message.requester = static_cast<HostId>(random() % (hosts + 1));
    message.flags = static_cast<uint8_t>(random());
    message.page = random() % 16 == 0 ? random() : random() % pages;
    message.serial = random() % 4 == 0 ? random() : random() % 64;
    message.ticket = random() % 4 == 0 ? random() : random() % 8;
    message.sharers = random() % 4 == 0 ? random() : random() % (uint64_t{1} << hosts);
    message.operation.kind = static_cast<Operation::Kind>(random() % (Operation::kKinds + 1));
    message.operation.size = static_cast<uint8_t>(1u << random() % 6);
    message.operation.offset = static_cast<uint16_t>(random());
    return message;
}

}  // namespace

STORY("given every kind of message, when it is encoded and decoded, then it is the same") {
    std::mt19937_64 random(3);
    for (unsigned kind = 1; kind <= Message::kKinds; ++kind) {
        Message message;
        message.kind = static_cast<Kind>(kind);
        message.requester = 63;
        message.page = random();
        message.serial = random();
        message.ticket = random();
        message.sharers = random();
        const bool operates = message.kind == Kind::kRmw || message.kind == Kind::kExec;
        if (operates) {
            message.operation = {.kind = Operation::Kind::kCompareSwap, .size = 16, .offset = 4080};
            message.operation.operand = Wide{random()} << 64 | random();
            message.operation.expected = Wide{random()} << 64 | random();
        }
        if (message.kind == Kind::kResult) message.value = Wide{random()} << 64 | random();
        std::array<uint8_t, kMaxWire> wire{};
        const size_t size = encode(message, wire);
        CHECK_EQ(size, wire_size(message.kind));
        const auto back = decode(std::span(wire.data(), size));
        CHECK(back.has_value());
        CHECK(back->kind == message.kind && back->requester == 63 && back->flags == 0);
        CHECK(back->page == message.page && back->serial == message.serial);
        CHECK(back->ticket == message.ticket && back->sharers == message.sharers);
        CHECK(back->operation == message.operation && back->value == message.value);
        for (size_t shorter = 0; shorter < size; ++shorter) CHECK(!decode(std::span(wire.data(), shorter)));
        if (!message.has_page() && size < kMaxWire) CHECK(!decode(std::span(wire.data(), size + 1)));
        for (const size_t reserved : {3u, 4u, 5u, 6u, 7u}) {
            auto bad = wire;
            bad[reserved] = 1;
            CHECK(!decode(std::span(bad.data(), size)));
        }
        auto bad = wire;
        bad[1] = 64;
        CHECK(!decode(std::span(bad.data(), size)));
        bad = wire;
        bad[2] = 8;
        CHECK(!decode(std::span(bad.data(), size)));
    }
}

STORY("given bytes of any kind, when they are decoded, then what is taken is valid") {
    std::mt19937_64 random(4);
    unsigned taken = 0;
    for (unsigned round = 0; round < 300'000; ++round) {
        std::vector<uint8_t> bytes(random() % (kMaxWire + 8));
        for (uint8_t& byte : bytes) byte = random() % 4 == 0 ? static_cast<uint8_t>(random()) : uint8_t{0};
        if (!bytes.empty()) bytes[0] = static_cast<uint8_t>(random() % 20);
        const auto message = decode(bytes);
        if (!message) continue;
        ++taken;
        CHECK(message->requester < kMaxHosts);
        CHECK(valid(message->operation));
    }
    CHECK(taken > 0);
}

STORY(
    "given a host that sends anything at all, when the others are hit, then they count it and stay "
    "consistent") {
    uint64_t dropped = 0;
    for (uint64_t seed = 0; seed < 60; ++seed) {
        std::mt19937_64 random(seed);
        Options options;
        options.hosts = 3;
        options.pages = 6;
        options.homes = {{0, 2, 0}, {2, 4, 1}, {4, 6, 2}};
        options.policy = static_cast<Policy>(seed % 3);
        Node node(options);
        Actions out;
        uint64_t now = 0;
        for (unsigned step = 0; step < 20'000; ++step) {
            const uint64_t page = random() % 7;
            switch (random() % 8) {
                case 0:
                    node.need(page, static_cast<Access>(1 + random() % 2), random() % 2 == 0, now, out);
                    break;
                case 1:
                    node.rmw(page, random_message(random, 3, 6).operation, 1 + random() % 8, now, out);
                    break;
                case 2:
                    node.resumed(page, now, out);
                    node.timer(page, now += random() % 300, out);
                    break;
                default:
                    node.receive(static_cast<HostId>(random() % 4), random_message(random, 3, 6), now, out);
            }
            for (const Action& action : out) {
                if (action.kind == Action::Kind::kSend || action.kind == Action::Kind::kSendPage ||
                    action.kind == Action::Kind::kExecute) {
                    CHECK(action.to != 0 && action.to < 3);
                    CHECK_EQ(action.kind == Action::Kind::kSendPage, action.message.has_page());
                    CHECK(action.message.page < 6);
                }
                if (action.kind == Action::Kind::kExecute) CHECK(valid(action.message.operation));
                if (action.kind != Action::Kind::kComplete) CHECK(action.page < 6);
            }
            out.clear();
        }
        dropped += node.counters().violations;
    }
    CHECK(dropped > 100'000);
}

STORY("given messages out of place, when they come to honest hosts, then each is dropped for its reason") {
    Network network(3, 3, {});
    const auto count = [&](unsigned host, ProtocolViolation why) {
        return network.node(host).counters().reasons[static_cast<size_t>(why)];
    };
    const auto refused = [&](unsigned from, unsigned to, Message message, ProtocolViolation why) {
        const uint64_t before = count(to, why);
        network.inject(from, to, message);
        network.settle();
        network.check();
        CHECK_EQ(network.broken(), std::string());
        CHECK_EQ(count(to, why), before + 1);
    };
    // Page n has its home, and its bytes, on host n.
    refused(1, 0, {.kind = Kind::kGetS, .requester = 1, .page = 99}, ProtocolViolation::kPage);
    refused(1, 0, {.kind = Kind::kGetS, .requester = 2, .page = 0}, ProtocolViolation::kHost);
    refused(1, 0, {.kind = Kind::kGetS, .requester = 3, .page = 0}, ProtocolViolation::kHost);
    refused(1, 0, {.kind = Kind::kGetM, .requester = 1, .page = 1}, ProtocolViolation::kNotHome);
    refused(1, 0, {.kind = Kind::kDone, .requester = 1, .page = 0, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kFwdM, .requester = 1, .page = 0, .serial = 1}, ProtocolViolation::kNotHome);
    refused(1, 0, {.kind = Kind::kFwdM, .requester = 2, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kInv, .requester = 2, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kDataM, .requester = 0, .page = 0, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kDataM, .requester = 0, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kGrant, .requester = 0, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kInvAck, .requester = 0, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kResult, .requester = 0, .page = 1, .ticket = 5}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kRetry, .requester = 0, .page = 1, .ticket = 5}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kHave, .requester = 0, .page = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kDecline, .requester = 0, .page = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kExec, .requester = 2, .page = 1, .serial = 1}, ProtocolViolation::kState);
    refused(1, 0, {.kind = Kind::kRmw, .requester = 1, .page = 0, .ticket = 0},
            ProtocolViolation::kOperation);
    CHECK(network.node(0).idle());
}

STORY(
    "given a transaction under way, when its end is forged or its request repeated, then nothing comes of "
    "it") {
    Network network(3, 1, homed_on_0(1));
    network.begin(network.add_thread(2), Does::kWrite, 0);
    network.finish();
    network.begin(network.add_thread(1), Does::kWrite, 0);
    network.deliver(1, 0);  // host 2 has to send the page
    network.inject(2, 0, {.kind = Kind::kDone, .requester = 2, .page = 0, .serial = 2});
    network.inject(1, 0, {.kind = Kind::kDone, .requester = 1, .page = 0, .serial = 77});
    network.inject(1, 0, {.kind = Kind::kGetM, .requester = 1, .page = 0});
    while (network.deliver(1, 0) || network.deliver(2, 0)) {
    }
    CHECK_EQ(network.violations(), 3u);
    CHECK(network.node(0).holders(0).busy);
    network.finish();
    network.check();
    CHECK_EQ(network.broken(), std::string());
    CHECK(network.mapped(1, 0) == Access::kWrite);
}

RUN_STORIES()
