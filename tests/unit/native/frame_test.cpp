// SPDX-License-Identifier: GPL-2.0-or-later
// Frames between hosts: what is handed on, and why the rest is not.
#include "link/frame.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <vector>

#include "check.hpp"
#include "link/peers.hpp"

using coremesh::HostId;
using namespace coremesh::link;

namespace {

constexpr Identity kSelf{.self = 2, .hosts = 4, .machine = 0x1122334455667788, .epoch = 7};

Header good(uint64_t sequence = 1, uint32_t length = 0) {
    return {.type = Type::kPage,
            .source = 1,
            .destination = 2,
            .machine = kSelf.machine,
            .epoch = kSelf.epoch,
            .length = length,
            .sequence = sequence,
            .guest_tsc = 99};
}

std::vector<uint8_t> frame_of(const Header& header, size_t payload) {
    std::vector<uint8_t> frame(kHeaderBytes + payload, 0xa5);
    encode(header, std::span<uint8_t, kHeaderBytes>(frame.data(), kHeaderBytes));
    return frame;
}
std::vector<uint8_t> frame_of(const Header& header) { return frame_of(header, header.length); }

struct Ear final : Receiver {
    void received(HostId from, Type type, uint64_t tsc, std::span<const uint8_t> payload) noexcept override {
        ++heard;
        last_from = from;
        last_type = type;
        last_tsc = tsc;
        for (const uint8_t byte : payload) sum += byte;  // touches every byte that it was promised
        if (payload.size() > kMaxPayload) too_long = true;
    }
    int64_t due(int64_t) noexcept override { return -1; }
    uint64_t stamp() noexcept override { return 0; }
    void peer_lost(HostId peer, Loss why) noexcept override {
        lost.push_back(peer);
        last_loss = why;
    }
    unsigned heard = 0;
    HostId last_from = 255;
    Type last_type{};
    uint64_t last_tsc = 0, sum = 0;
    bool too_long = false;
    std::vector<HostId> lost;
    Loss last_loss{};
};

uint64_t refused(const Peers& peers, HostId peer, Refusal why) {
    return peers.counters(peer).refused[static_cast<size_t>(why)];
}
uint64_t strange(const Peers& peers, Refusal why) {
    LinkFacts facts;
    peers.strangers(facts);
    return facts.stranger_refused[static_cast<size_t>(why)];
}

}  // namespace

STORY("given a header, when it is encoded, then the bytes are those of the table, and they decode to it") {
    const auto frame = frame_of(good(0x0102030405060708, 3));
    const std::array<uint8_t, kHeaderBytes> expected = {
        'C',  'M',  'S',  'H',  1,  1, 1, 2, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
        0x22, 0x11, 7,    0,    0,  0, 3, 0, 0,    0,    0x08, 0x07, 0x06, 0x05,
        0x04, 0x03, 0x02, 0x01, 99, 0, 0, 0, 0,    0,    0,    0};
    CHECK(std::equal(expected.begin(), expected.end(), frame.begin()));
    Header header;
    CHECK_EQ(decode(frame, header), Refusal::kNone);
    CHECK_EQ(header.sequence, 0x0102030405060708u);
    CHECK_EQ(header.machine, kSelf.machine);
    CHECK_EQ(header.type, Type::kPage);
    CHECK_EQ(header.guest_tsc, 99u);
    CHECK_EQ(judge(header, kSelf), Refusal::kNone);
}

STORY("given a frame that is cut short at any place, when it is decoded, then it is refused") {
    const auto frame = frame_of(good(1, 100));
    for (size_t length = 0; length < frame.size(); ++length) {
        Header header;
        const Refusal refusal = decode(std::span(frame).first(length), header);
        CHECK_EQ(refusal, length < kHeaderBytes ? Refusal::kTruncated : Refusal::kLength);
    }
}

STORY("given each field wrong in turn, when the frame is judged, then the refusal names the field") {
    const auto verdict = [](auto&& spoil, size_t payload = 0) {
        Header header = good();
        spoil(header);
        const auto frame = frame_of(header, payload);
        const Refusal refusal = decode(frame, header);
        return refusal != Refusal::kNone ? refusal : judge(header, kSelf);
    };
    CHECK_EQ(verdict([](Header&) {}), Refusal::kNone);
    CHECK_EQ(verdict([](Header& h) { h.type = static_cast<Type>(kTypes); }), Refusal::kType);
    CHECK_EQ(verdict([](Header& h) { h.source = 4; }), Refusal::kSource);
    CHECK_EQ(verdict([](Header& h) { h.source = 2; }), Refusal::kSource);
    CHECK_EQ(verdict([](Header& h) { h.source = 255; }), Refusal::kSource);
    CHECK_EQ(verdict([](Header& h) { h.destination = 3; }), Refusal::kDestination);
    CHECK_EQ(verdict([](Header& h) { ++h.machine; }), Refusal::kMachine);
    CHECK_EQ(verdict([](Header& h) { --h.epoch; }), Refusal::kEpoch);
    CHECK_EQ(verdict([](Header& h) { ++h.epoch; }), Refusal::kEpoch);
    CHECK_EQ(verdict([](Header& h) { h.length = 1; }), Refusal::kLength);
    CHECK_EQ(verdict([](Header&) {}, 1), Refusal::kLength);
    CHECK_EQ(verdict([](Header& h) { h.length = kMaxPayload + 1; }, kMaxPayload + 1), Refusal::kOversized);
    CHECK_EQ(verdict([](Header& h) { h.length = ~uint32_t{0}; }), Refusal::kOversized);
    CHECK_EQ(verdict([](Header& h) { h.length = kMaxPayload; }, kMaxPayload), Refusal::kNone);
    for (const size_t at : {0u, 1u, 2u, 3u, 4u}) {
        auto frame = frame_of(good());
        frame[at] ^= 0x40;
        Header header;
        CHECK_EQ(decode(frame, header), Refusal::kNotAFrame);
    }
}

STORY("given frames in order, when one comes twice, then the second is a replay and nothing else changes") {
    Peers peers(kSelf);
    Ear ear;
    for (uint64_t number : {1, 2, 2, 1, 3}) peers.admit(frame_of(good(number)), std::nullopt, ear, false);
    CHECK_EQ(ear.heard, 3u);
    CHECK_EQ(refused(peers, 1, Refusal::kReplayed), 2u);
    CHECK_EQ(peers.counters(1).received_frames, 3u);
    CHECK(!peers.lost(1));
}

STORY("given frames in order, when one is missing, then the peer is given up, once, and heard no more") {
    Peers peers(kSelf);
    Ear ear;
    for (uint64_t number : {1, 3, 2, 4}) peers.admit(frame_of(good(number)), std::nullopt, ear, false);
    peers.report(ear);
    peers.report(ear);
    CHECK_EQ(ear.heard, 1u);
    CHECK_EQ(refused(peers, 1, Refusal::kGap), 1u);
    CHECK_EQ(refused(peers, 1, Refusal::kLost), 2u);
    CHECK(ear.lost == std::vector<HostId>{1});
    CHECK_EQ(ear.last_loss, Loss::kGap);
    CHECK(peers.counters(1).lost);
    CHECK(!peers.counters(3).lost);
}

STORY("given two peers, when both send, then their numbers do not mix") {
    Peers peers(kSelf);
    Ear ear;
    for (const HostId source : {1, 3, 0, 1, 3, 0}) {
        Header header = good(peers.counters(source).received_frames + 1);
        header.source = source;
        peers.admit(frame_of(header), std::nullopt, ear, false);
        CHECK_EQ(ear.last_from, source);
    }
    CHECK_EQ(ear.heard, 6u);
}

STORY(
    "given a key that belongs to host 3, when its owner says that he is host 1, then he is not believed, and "
    "blamed") {
    Peers peers(kSelf);
    Ear ear;
    peers.admit(frame_of(good()), HostId{3}, ear, false);
    CHECK_EQ(ear.heard, 0u);
    CHECK_EQ(refused(peers, 3, Refusal::kSource), 1u);
    CHECK_EQ(refused(peers, 1, Refusal::kSource), 0u);
    peers.admit(frame_of(good()), HostId{1}, ear, false);
    CHECK_EQ(ear.heard, 1u);
}

STORY("given frames that nobody can be blamed for, when they come, then they are counted as a stranger's") {
    Peers peers(kSelf);
    Ear ear;
    peers.admit({}, std::nullopt, ear, false);
    Header header = good();
    header.machine = 1;
    peers.admit(frame_of(header), std::nullopt, ear, false);
    CHECK_EQ(strange(peers, Refusal::kTruncated), 1u);
    CHECK_EQ(strange(peers, Refusal::kMachine), 1u);
    CHECK_EQ(ear.heard, 0u);
}

STORY(
    "given random bytes and good frames with a few bytes changed, when they come by the hundred thousand, "
    "then "
    "what is handed on was wholly good, and each of the others is counted once") {
    Peers peers(kSelf);
    Ear ear;
    std::minstd_rand random(20);
    uint64_t sent = 0, next = 1;
    for (; sent < 200'000; ++sent) {
        std::vector<uint8_t> frame;
        if (random() % 2 == 0) {
            frame.resize(random() % (2 * kHeaderBytes));
            for (uint8_t& byte : frame) byte = static_cast<uint8_t>(random());
        } else {
            // Some numbers are of the past; none is of the future, that would be the end of the peer.
            frame = frame_of(good(random() % 4 == 0 ? random() % next : next, random() % 64));
            const unsigned changes = random() % 3;
            for (unsigned change = 0; change < changes; ++change) {
                const size_t at = random() % frame.size();
                if (at < 24 || at >= 32) frame[at] = static_cast<uint8_t>(random());
            }
            if (random() % 8 == 0) frame.resize(random() % (frame.size() + 8));
        }
        const unsigned before = ear.heard;
        peers.admit(frame, std::nullopt, ear, false);
        if (ear.heard == before) continue;
        CHECK_EQ(ear.heard, before + 1);
        Header header;
        CHECK_EQ(decode(frame, header), Refusal::kNone);
        CHECK_EQ(judge(header, kSelf), Refusal::kNone);
        if (header.source == 1) ++next;
    }
    uint64_t counted = 0;
    for (HostId peer = 0; peer < kSelf.hosts; ++peer) {
        const LinkCounters counters = peers.counters(peer);
        counted += counters.received_frames;
        for (const uint64_t refusals : counters.refused) counted += refusals;
    }
    LinkFacts facts;
    peers.strangers(facts);
    for (const uint64_t refusals : facts.stranger_refused) counted += refusals;
    CHECK_EQ(counted, sent);
    CHECK(ear.heard > 10'000);
    CHECK(!ear.too_long);
}

RUN_STORIES()
