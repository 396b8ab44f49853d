// SPDX-License-Identifier: GPL-2.0-or-later
// The wire between hosts on one computer: rings in shared memory, and a pipe that wakes the other side.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "link/wire.hpp"

namespace coremesh::link {

/// What a host shows the others: a file of shared memory with a ring for each of them, and the writing end of
/// a pipe. All are file descriptors of this process.
struct ShmInbox {
    int memory = -1;  // shm_inbox_bytes() long; must be sealed against shrinking
    int bell = -1;    // of a peer: the writing end; of oneself: the reading end. Non-blocking
};

struct ShmOptions {
    HostId self = 0;
    unsigned hosts = 2;
};

/// The size of an inbox's file.
size_t shm_inbox_bytes(unsigned hosts) noexcept;

/// @param inboxes by host, with this host's own among them. The descriptors must stay open until the link has
/// stopped; they are the caller's.
/// Throws std::invalid_argument for a file that is too small or not sealed, std::system_error.
std::unique_ptr<Wire> make_shm_wire(const ShmOptions& options, const std::vector<ShmInbox>& inboxes);

}  // namespace coremesh::link
