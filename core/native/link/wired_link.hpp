// SPDX-License-Identifier: GPL-2.0-or-later
// A link over a wire: what all wires have in common.
#pragma once

#include <cstdint>
#include <memory>

#include "link/frame.hpp"
#include "link/link.hpp"
#include "link/wire.hpp"

namespace coremesh::link {

struct LinkOptions {
    Identity identity;
    size_t overflow_limit = 16384;  // frames that wait for one peer beyond the wire's own queue
    int64_t spin_ns = 0;            // look for frames this long before sleeping; only with cores to spare
    bool lends = true;              // threads that wait receive, if the wire lets them
    int cpu = -1;                   // where the protocol thread stays; -1: anywhere
};

/// A link of `wire`, which needs nothing but carry bytes. `thread` is for a wire whose other end must wake
/// the protocol thread itself; by default the link makes its own. Throws std::invalid_argument,
/// std::system_error.
std::unique_ptr<Link> make_link(const LinkOptions& options, std::unique_ptr<Wire> wire,
                                std::shared_ptr<ProtocolThread> thread = nullptr);

}  // namespace coremesh::link
