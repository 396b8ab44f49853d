// SPDX-License-Identifier: GPL-2.0-or-later
// What travels between local APICs, I/O APICs and message-signalled devices.
#pragma once

#include <cstdint>

namespace coremesh::x86 {

/// SDM vol. 3A, 11.6.1 (ICR bits 10:8), 11.5.1 (LVT) and 11.11.2 (message data). 3 is reserved everywhere.
enum class DeliveryMode : uint8_t {
    kFixed = 0,
    kLowestPriority = 1,
    kSmi = 2,
    kNmi = 4,
    kInit = 5,
    kStartUp = 6,
    kExtInt = 7,
};

enum class Trigger : uint8_t { kEdge, kLevel };

/// ICR bits 19:18.
enum class Shorthand : uint8_t { kNone = 0, kSelf = 1, kAllIncludingSelf = 2, kAllExcludingSelf = 3 };

constexpr uint32_t kBroadcast = 0xFFFF'FFFF;  ///< every local APIC, as a destination (SDM 11.12.9)
constexpr uint32_t kNoSource = 0xFFFF'FFFF;   ///< the message comes from a device

/// One interrupt message. Plain data, so that it can be sent to another host as it is.
struct IpiMessage {
    uint32_t destination = 0;     ///< APIC ID or logical address; physical broadcast is always kBroadcast
    uint32_t source = kNoSource;  ///< APIC ID of the sender
    uint8_t vector = 0;           ///< for start-up: the page number of the entry point
    DeliveryMode mode = DeliveryMode::kFixed;
    Trigger trigger = Trigger::kEdge;
    Shorthand shorthand = Shorthand::kNone;
    bool assert_level = true;  ///< false only for the INIT level de-assert
    bool logical = false;      ///< destination is a logical address
    bool wide = false;         ///< destination has the 32-bit x2APIC format, else the 8-bit xAPIC one
    bool redirect = false;     ///< one of the destinations, the one of lowest priority
};

/// One of several may take it: SDM vol. 3A, 11.6.2.4, and the redirection hint of 11.11.1.
constexpr bool for_one_of_several(const IpiMessage& message) noexcept {
    const bool fixed = message.mode == DeliveryMode::kFixed || message.mode == DeliveryMode::kLowestPriority;
    return fixed && (message.redirect || message.mode == DeliveryMode::kLowestPriority);
}

}  // namespace coremesh::x86
