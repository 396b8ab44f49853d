// SPDX-License-Identifier: GPL-2.0-or-later
// Two hosts' connection, byte by byte: both ciphers, what was changed on the way, what comes twice.
#include "link/secure_channel.hpp"

#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "check.hpp"
#include "link/frame.hpp"

using namespace coremesh::link;
using coremesh::HostId;

namespace {

const LibSodium& sodium(bool aes) {
    const char* const path = std::getenv("COREMESH_LIBSODIUM");
    if (path == nullptr) {
        std::cout << "COREMESH_LIBSODIUM must name a libsodium" << std::endl;
        std::_Exit(1);
    }
    static const LibSodium any(path);
    static const LibSodium none = [path] {
        LibSodium without(path);
        without.has_aes = false;
        return without;
    }();
    return aes ? any : none;
}

/// Hosts 0 and 1, of which 0 has connected, and 2, which is not there.
struct Two {
    explicit Two(bool first_has_aes = true, bool second_has_aes = true)
        : client(sodium(first_has_aes), 0, HostId{1}), server(sodium(second_has_aes), 1, std::nullopt) {
        for (int host = 0; host < 3; ++host) {
            ChannelKeys& made = keys[host];
            sodium(true).keypair(made.own_public.data(), made.own_secret.data());
        }
        for (auto& each : keys)
            for (const auto& of : keys) each.of_hosts.push_back(of.own_public);
    }
    bool meet() { return server.meet(client.greeting(), keys[1]) && client.meet(server.greeting(), keys[0]); }

    ChannelKeys keys[3];
    SecureChannel client, server;
};

std::vector<uint8_t> sealed(SecureChannel& by, const std::vector<uint8_t>& frame) {
    std::vector<uint8_t> record(frame.size() + SecureChannel::kOverhead);
    by.seal(frame, record.data());
    return record;
}

bool opens(SecureChannel& by, const std::vector<uint8_t>& record, const std::vector<uint8_t>& as) {
    std::vector<uint8_t> out(record.size());
    if (!by.open(record, out.data())) return false;
    out.resize(as.size());
    return out == as;
}

const std::vector<uint8_t> kPage(4096, 0x5a), kNothing, kOther = {1, 2, 3};

}  // namespace

STORY("given either cipher on each side, when one side seals, then the other opens it in order") {
    for (const auto& [first, second] :
         {std::pair{true, true}, {true, false}, {false, true}, {false, false}}) {
        Two two(first, second);
        CHECK(two.meet());
        CHECK_EQ(two.server.peer(), HostId{0});
        for (const auto& frame : {kNothing, kPage, kOther}) {
            CHECK(opens(two.server, sealed(two.client, frame), frame));
            CHECK(opens(two.client, sealed(two.server, frame), frame));
        }
    }
}

STORY("given a record that was changed anywhere, when it is opened, then it is refused") {
    for (const bool aes : {true, false}) {
        Two two(aes, aes);
        CHECK(two.meet());
        const auto record = sealed(two.client, kOther);
        for (size_t at = 0; at < record.size(); ++at) {
            auto changed = record;
            changed[at] ^= 0x10;
            CHECK(!opens(two.server, changed, kOther));
        }
        CHECK(!opens(two.server, {record.begin(), record.end() - 1}, kOther));
        CHECK(opens(two.server, record, kOther));
    }
}

STORY("given a record twice, early, or back at its sender, when it is opened, then it is refused") {
    Two two;
    CHECK(two.meet());
    const auto first = sealed(two.client, kOther), second = sealed(two.client, kOther);
    CHECK(first != second);
    CHECK(!opens(two.server, second, kOther));
    CHECK(!opens(two.client, first, kOther));
    CHECK(opens(two.server, first, kOther));
    CHECK(!opens(two.server, first, kOther));
    CHECK(opens(two.server, second, kOther));
}

STORY("given a record of an earlier connection of the same hosts, when it is opened, then it is refused") {
    Two two;
    CHECK(two.meet());
    const auto record = sealed(two.client, kOther);
    SecureChannel client(sodium(true), 0, HostId{1}), server(sodium(true), 1, std::nullopt);
    CHECK(server.meet(client.greeting(), two.keys[1]) && client.meet(server.greeting(), two.keys[0]));
    CHECK(!opens(server, record, kOther));
    CHECK(opens(server, sealed(client, kOther), kOther));
}

STORY("given a host without its key, when it seals or opens, then neither side gets anything") {
    Two two;
    two.keys[0].own_secret = two.keys[2].own_secret;  // host 2 says that it is host 0
    CHECK(two.meet());
    CHECK(!opens(two.server, sealed(two.client, kNothing), kNothing));
    CHECK(!opens(two.client, sealed(two.server, kNothing), kNothing));
}

STORY("given a greeting that was changed on the way, when both go on, then their keys differ") {
    for (size_t at = 0; at < SecureChannel::kGreeting; ++at) {
        Two two;
        std::vector<uint8_t> bytes(two.client.greeting().begin(), two.client.greeting().end());
        bytes[at] ^= 1;
        const std::span<const uint8_t, SecureChannel::kGreeting> changed(bytes.data(), bytes.size());
        if (!two.server.meet(changed, two.keys[1])) continue;
        CHECK(two.client.meet(two.server.greeting(), two.keys[0]));
        CHECK(!opens(two.server, sealed(two.client, kNothing), kNothing));
    }
}

STORY(
    "given a greeting of oneself, of no host, or of another than was called, when it comes, then it is "
    "refused") {
    Two two;
    for (const uint8_t says : {uint8_t{1}, uint8_t{3}, uint8_t{255}}) {
        std::vector<uint8_t> bytes(two.client.greeting().begin(), two.client.greeting().end());
        bytes[8] = says;
        CHECK(!two.server.meet(std::span<const uint8_t, SecureChannel::kGreeting>(bytes.data(), bytes.size()),
                               two.keys[1]));
    }
    SecureChannel third(sodium(true), 2, std::nullopt);
    CHECK(!two.client.meet(third.greeting(), two.keys[0]));
}

STORY("given a length that no frame has, when it is read, then its bytes are not awaited") {
    const auto length = [](uint32_t says) {
        std::array<uint8_t, 4> bytes;
        std::memcpy(bytes.data(), &says, sizeof says);
        return SecureChannel::frame_bytes(bytes);
    };
    CHECK_EQ(*length(0), 0U);
    CHECK_EQ(*length(kHeaderBytes + kMaxPayload), kHeaderBytes + kMaxPayload);
    CHECK(!length(kHeaderBytes + kMaxPayload + 1));
    CHECK(!length(0xffffffff));
}

RUN_STORIES()
