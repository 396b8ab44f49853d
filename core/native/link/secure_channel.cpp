// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/secure_channel.hpp"

#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <system_error>

#include "link/frame.hpp"

namespace coremesh::link {
namespace {

// A greeting: 8 bytes that say what this is, the host's number, its ciphers, 6 bytes of nought, 32 random
// ones.
constexpr std::array<uint8_t, 8> kMagic = {'C', 'M', 'l', 'i', 'n', 'k', 0, 1};
constexpr size_t kHost = 8, kCiphers = 9, kNought = 10, kRandom = 16, kRandomBytes = 32;
constexpr uint8_t kAes = 1;

std::array<uint8_t, LibSodium::kNonce> nonce_of(uint64_t number) noexcept {
    std::array<uint8_t, LibSodium::kNonce> nonce{};
    std::memcpy(nonce.data(), &number, sizeof number);
    return nonce;
}

}  // namespace

SecureChannel::SecureChannel(const LibSodium& sodium, HostId self, std::optional<HostId> peer)
    : sodium_(sodium), self_(self), peer_(peer), client_(peer.has_value()) {
    std::copy(kMagic.begin(), kMagic.end(), greeting_.begin());
    greeting_[kHost] = self;
    greeting_[kCiphers] = sodium.has_aes ? kAes : 0;
    if (getrandom(greeting_.data() + kRandom, kRandomBytes, 0) != static_cast<ssize_t>(kRandomBytes)) {
        throw std::system_error(errno, std::generic_category(), "random bytes for a connection");
    }
}

SecureChannel::~SecureChannel() {
    sodium_.wipe(&out_, sizeof out_);
    sodium_.wipe(&in_, sizeof in_);
}

bool SecureChannel::meet(std::span<const uint8_t, kGreeting> theirs, const ChannelKeys& keys) noexcept {
    const HostId host = theirs[kHost];
    if (!std::equal(kMagic.begin(), kMagic.end(), theirs.begin()) || host == self_ ||
        host >= keys.of_hosts.size() || (peer_ && *peer_ != host)) {
        return false;
    }
    if (std::any_of(theirs.begin() + kNought, theirs.begin() + kRandom, [](uint8_t b) { return b != 0; })) {
        return false;
    }
    ChannelKey receive{}, transmit{};
    const auto exchange = client_ ? sodium_.client_keys : sodium_.server_keys;
    if (exchange(receive.data(), transmit.data(), keys.own_public.data(), keys.own_secret.data(),
                 keys.of_hosts[host].data()) != 0) {
        return false;
    }
    peer_ = host;
    // If a greeting is changed on the way, the two sides get different keys.
    aes_ = (greeting_[kCiphers] & theirs[kCiphers] & kAes) != 0;
    std::array<uint8_t, 2 * kGreeting> both;
    std::copy(greeting_.begin(), greeting_.end(), both.begin() + (client_ ? 0 : kGreeting));
    std::copy(theirs.begin(), theirs.end(), both.begin() + (client_ ? kGreeting : 0));
    derive(out_, transmit, both);
    derive(in_, receive, both);
    sodium_.wipe(receive.data(), receive.size());
    sodium_.wipe(transmit.data(), transmit.size());
    return true;
}

void SecureChannel::derive(Direction& direction, const ChannelKey& exchanged,
                           std::span<const uint8_t> greetings) noexcept {
    sodium_.hash(direction.key.data(), direction.key.size(), greetings.data(), greetings.size(),
                 exchanged.data(), exchanged.size());
    if (aes_) sodium_.aes_state(direction.aes.data(), direction.key.data());
}

void SecureChannel::seal(std::span<const uint8_t> frame, uint8_t* to) noexcept {
    const auto length = static_cast<uint32_t>(frame.size());
    std::memcpy(to, &length, kLength);
    const auto nonce = nonce_of(out_.records++);
    uint8_t* const body = to + kLength;
    if (aes_) {
        sodium_.aes_seal(body, nullptr, frame.data(), frame.size(), to, kLength, nullptr, nonce.data(),
                         out_.aes.data());
    } else {
        sodium_.chacha_seal(body, nullptr, frame.data(), frame.size(), to, kLength, nullptr, nonce.data(),
                            out_.key.data());
    }
}

std::optional<size_t> SecureChannel::frame_bytes(std::span<const uint8_t, kLength> start) noexcept {
    uint32_t length = 0;
    std::memcpy(&length, start.data(), kLength);
    if (length > kHeaderBytes + kMaxPayload) return std::nullopt;
    return length;
}

bool SecureChannel::open(std::span<const uint8_t> record, uint8_t* to) noexcept {
    if (record.size() < kOverhead) return false;
    const auto nonce = nonce_of(in_.records);
    const std::span<const uint8_t> body = record.subspan(kLength);
    const int failed = aes_ ? sodium_.aes_open(to, nullptr, nullptr, body.data(), body.size(), record.data(),
                                               kLength, nonce.data(), in_.aes.data())
                            : sodium_.chacha_open(to, nullptr, nullptr, body.data(), body.size(),
                                                  record.data(), kLength, nonce.data(), in_.key.data());
    if (failed != 0) return false;
    ++in_.records;
    return true;
}

}  // namespace coremesh::link
