// SPDX-License-Identifier: GPL-2.0-or-later
// What a host is told about the page protocol: its number, the homes of pages, and how pages move.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "coherence/homes.hpp"

namespace coremesh::coherence {

/// What a home does with a memory transaction on a page that another host may write.
enum class Policy : uint8_t {
    kNever,     ///< move the page to the requester
    kAlways,    ///< execute at the owner
    kAdaptive,  ///< move it, unless the page is contended (contention.hpp)
};

struct Options {
    HostId self = 0;
    unsigned hosts = 1;            ///< 1..64
    uint64_t pages = 0;            ///< of RAM
    std::vector<HomeRange> homes;  ///< cover [0, pages)
    Policy policy = Policy::kAdaptive;
    uint32_t hold_us = 50;       ///< a granted page stays this long after its thread runs again
    uint32_t hold_cap_us = 500;  ///< ... and no longer than this after the grant
    unsigned prefetch = 8;       ///< pages ahead of a sequential reader; 0 for none
    unsigned first_touch = 16;   ///< never used pages ahead of a sequential writer; 0 for none
    /// As the home: no CPU of this host has ever used the page, which never left it. Asked under the protocol
    /// lock; a wrong answer costs a fetch and nothing else. Empty: of no page.
    std::function<bool(uint64_t page)> unused;
    bool pass_on = true;  ///< a reader that is likely to write next gets the right to
    /// The page has the bytes of its last Action::Kind::kRemember. Under the protocol lock, while CPUs may
    /// write it; a wrong answer costs a transaction and nothing else. Empty: never.
    std::function<bool(uint64_t page)> unchanged;
};

}  // namespace coremesh::coherence
