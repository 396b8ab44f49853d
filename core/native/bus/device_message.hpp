// SPDX-License-Identifier: GPL-2.0-or-later
// What a vCPU asks of the device node on another host, and the answer, as bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "bus/bus.hpp"

namespace coremesh {

/// 32 bytes, little endian: 0 u64 ticket, 8 u8 kind, 9 u8 space, 10 u8 write, 11 zero, 12 u32 size,
/// 16 u64 address, 24 u64 value.
///
/// The upper 16 bits of the ticket name the sender's *lane*, one for each of its vCPUs: requests of one lane
/// are served one after the other, in the order in which they were sent.
struct DeviceRequest {
    enum class Kind : uint8_t { kAccess = 0, kEndOfInterrupt = 1, kAcknowledge = 2 };
    static constexpr size_t kBytes = 32;
    static constexpr unsigned kLaneShift = 48;

    uint64_t ticket = 0;
    Kind kind = Kind::kAccess;
    Space space = Space::kPort;
    bool write = false;
    uint32_t size = 1;     ///< of an access: 1, 2, 4 or 8 bytes; a port's at most 4
    uint64_t address = 0;  ///< of an access
    uint64_t value = 0;    ///< of a write: no bits above its size; of an end of interrupt: the vector

    unsigned lane() const noexcept { return static_cast<unsigned>(ticket >> kLaneShift); }
    std::array<uint8_t, kBytes> encode() const noexcept;
    /// Nothing for bytes that no vCPU's request has.
    static std::optional<DeviceRequest> decode(std::span<const uint8_t> bytes) noexcept;
};

/// 16 bytes: u64 ticket of the request, u64 value read; for a write or an end of interrupt kMayBePosted, or
/// zero where the next one must be waited for. An acknowledge without a vector answers all ones.
struct DeviceReply {
    static constexpr size_t kBytes = 16;
    static constexpr uint64_t kMayBePosted = 1;

    uint64_t ticket = 0;
    uint64_t value = 0;

    std::array<uint8_t, kBytes> encode() const noexcept;
    static std::optional<DeviceReply> decode(std::span<const uint8_t> bytes) noexcept;
};

}  // namespace coremesh
