// SPDX-License-Identifier: GPL-2.0-or-later
// The envelope of every message between hosts, and the rules by which one is refused. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "link/link.hpp"

namespace coremesh::link {

/// Bytes before the payload. Little endian on the wire:
///   0 u32 magic   4 u8 version   5 u8 type   6 u8 source   7 u8 destination   8 u64 machine   16 u32 epoch
///   20 u32 length of the payload   24 u64 sequence   32 u64 guest TSC of the sender
inline constexpr size_t kHeaderBytes = 40;

struct Header {
    Type type{};
    HostId source = 0;
    HostId destination = 0;
    uint64_t machine = 0;
    uint32_t epoch = 0;
    uint32_t length = 0;
    uint64_t sequence = 0;  // 1, 2, 3 .. for each ordered pair of hosts
    uint64_t guest_tsc = 0;
};

void encode(const Header& header, std::span<uint8_t, kHeaderBytes> to) noexcept;

/// Reads the header of `frame`; kNone means that it is well formed: a payload of `header.length` bytes
/// follows it and nothing else. `header.source` is set as soon as it can be read, to say whom to blame.
Refusal decode(std::span<const uint8_t> frame, Header& header) noexcept;

/// Which hosts may send to this one, and which machine it is part of.
struct Identity {
    HostId self = 0;
    unsigned hosts = 1;
    uint64_t machine = 0;
    uint32_t epoch = 0;
};

/// Whether a well-formed frame is for this host, from a peer, of this machine and of this life of it.
Refusal judge(const Header& header, const Identity& identity) noexcept;

/// The numbers of the frames of one peer: each must be exactly the next. Not thread-safe.
class Sequence {
  public:
    /// kNone takes the number; any other answer changes nothing.
    Refusal take(uint64_t number) noexcept;

  private:
    uint64_t next_ = 1;
};

}  // namespace coremesh::link
