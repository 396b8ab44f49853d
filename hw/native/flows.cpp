// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/flows.hpp"

#include <cstddef>

namespace coremesh::virtio {
namespace {

uint32_t word(std::string_view frame, size_t at, size_t bytes) noexcept {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(frame[at + i]);
    return value;
}

/// The finalizer of MurmurHash3: each bit of the input changes half of the output.
uint32_t mix(uint32_t value) noexcept {
    value ^= value >> 16;
    value *= 0x85EB'CA6Bu;
    value ^= value >> 13;
    value *= 0xC2B2'AE35u;
    return value ^ value >> 16;
}

}  // namespace

uint32_t flow_of(std::string_view frame) noexcept {
    constexpr size_t kEthernet = 14;
    constexpr uint32_t kIpv4 = 0x0800, kIpv6 = 0x86DD, kTcp = 6, kUdp = 17;
    if (frame.size() < kEthernet) return 0;
    const uint32_t type = word(frame, 12, 2);
    // Addresses and ports are added up, so that source and destination may change places.
    uint32_t sum = 0, protocol = 0;
    size_t ports = 0;
    if (type == kIpv4 && frame.size() >= kEthernet + 20) {
        protocol = word(frame, kEthernet + 9, 1);
        sum = mix(word(frame, kEthernet + 12, 4)) + mix(word(frame, kEthernet + 16, 4));
        // Only the first fragment has the ports: then none is looked at.
        const bool fragment = word(frame, kEthernet + 6, 2) & 0x3FFF;
        if (!fragment) ports = kEthernet + 4 * (word(frame, kEthernet, 1) & 0xF);
    } else if (type == kIpv6 && frame.size() >= kEthernet + 40) {
        protocol = word(frame, kEthernet + 6, 1);
        for (size_t at = 8; at < 40; at += 4) sum += mix(word(frame, kEthernet + at, 4) ^ (at & 0xC) << 8);
        ports = kEthernet + 40;
    } else {
        return mix(mix(word(frame, 2, 4)) + mix(word(frame, 8, 4)));
    }
    if (ports != 0 && (protocol == kTcp || protocol == kUdp) && frame.size() >= ports + 4) {
        sum += mix(word(frame, ports, 2)) + mix(word(frame, ports + 2, 2));
    }
    return mix(sum + protocol);
}

}  // namespace coremesh::virtio
