// SPDX-License-Identifier: GPL-2.0-or-later
// What two hosts say on a connection so that each knows the other and no one else can read or change a frame.
// Pure: bytes in, bytes out.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "link/libsodium.hpp"
#include "link/link.hpp"

namespace coremesh::link {

using ChannelKey = std::array<uint8_t, LibSodium::kKey>;

/// A host's own keys, made anew for each machine, and the public ones of all hosts, by host.
struct ChannelKeys {
    ChannelKey own_public{};
    ChannelKey own_secret{};
    std::vector<ChannelKey> of_hosts;
};

/// One connection's two directions. Each side begins with a greeting in the clear: its number, its ciphers
/// and random bytes. Both then know the keys of the two directions: those of crypto_kx for the two hosts' key
/// pairs, hashed with both greetings, so that no two connections share one. What follows are records:
///
///   u32 length of the frame, little endian | frame, encrypted | tag of 16 bytes
///
/// The length is authenticated with the frame; the nonce is the record's number. The first record of each
/// side is empty: it proves that the side has its secret key.
///
/// ## Threads
///
/// seal() is for one thread at a time, open() for one at a time; the two may differ. The rest comes before
/// both.
class SecureChannel {
  public:
    static constexpr size_t kGreeting = 48;
    static constexpr size_t kLength = sizeof(uint32_t);
    static constexpr size_t kOverhead = kLength + LibSodium::kTag;

    /// @param peer the host that this side has connected to; none where it was connected to.
    SecureChannel(const LibSodium& sodium, HostId self, std::optional<HostId> peer);
    ~SecureChannel();
    SecureChannel(const SecureChannel&) = delete;
    SecureChannel& operator=(const SecureChannel&) = delete;

    std::span<const uint8_t, kGreeting> greeting() const noexcept { return greeting_; }

    /// Takes the other side's greeting. False: it is not a greeting, or not from a host that may connect
    /// here.
    bool meet(std::span<const uint8_t, kGreeting> theirs, const ChannelKeys& keys) noexcept;
    /// After meet(): the host that the other side says it is, and is if open() succeeds.
    HostId peer() const noexcept { return *peer_; }

    /// Writes a record of `frame` into `to`, which has room for frame.size() + kOverhead bytes.
    void seal(std::span<const uint8_t> frame, uint8_t* to) noexcept;

    /// The length of the frame in a record that begins with `start`; none when no frame is as long.
    static std::optional<size_t> frame_bytes(std::span<const uint8_t, kLength> start) noexcept;
    /// Decrypts a whole record into `to`. False: it is not the other side's next record.
    bool open(std::span<const uint8_t> record, uint8_t* to) noexcept;

  private:
    struct alignas(LibSodium::kAlign) Direction {
        ChannelKey key{};
        alignas(LibSodium::kAlign) std::array<uint8_t, LibSodium::kState> aes{};
        uint64_t records = 0;
    };
    void derive(Direction& direction, const ChannelKey& exchanged,
                std::span<const uint8_t> greetings) noexcept;

    const LibSodium& sodium_;
    const HostId self_;
    std::optional<HostId> peer_;
    const bool client_;
    bool aes_ = false;
    std::array<uint8_t, kGreeting> greeting_{};
    Direction out_;
    Direction in_;
};

}  // namespace coremesh::link
