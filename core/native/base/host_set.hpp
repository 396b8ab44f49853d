// SPDX-License-Identifier: GPL-2.0-or-later
// The hosts of a machine: their numbers, and sets of them as bits of one word.
#pragma once

#include <cstdint>

namespace coremesh {

/// A host of the machine: 0 .. hosts - 1. Host 0 has the devices, keeps the time and grants the leases.
using HostId = uint8_t;
inline constexpr unsigned kMaxHosts = 64;

/// The bit of a host in a set of hosts.
constexpr uint64_t bit(HostId host) noexcept { return uint64_t{1} << (host % kMaxHosts); }

/// The set of hosts 0 .. hosts - 1, at most all 64.
constexpr uint64_t all_hosts(unsigned hosts) noexcept {
    return hosts >= kMaxHosts ? ~uint64_t{0} : (uint64_t{1} << hosts) - 1;
}

}  // namespace coremesh
