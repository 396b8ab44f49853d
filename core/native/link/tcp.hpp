// SPDX-License-Identifier: GPL-2.0-or-later
// The wire between hosts on a network: one connection for two hosts, written by the thread that sends.
#pragma once

#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "link/secure_channel.hpp"
#include "link/wire.hpp"

namespace coremesh::link {

struct TcpOptions {
    HostId self = 0;
    unsigned hosts = 2;
    std::string libsodium;  // its path
    ChannelKeys keys;
    /// Listens for the hosts with smaller numbers; the wire closes it.
    int listener = -1;
    /// Where connections to the hosts with greater numbers come from.
    sockaddr_storage source{};
    /// By host: where it listens. Only those with greater numbers are used.
    std::vector<sockaddr_storage> peers;
};

/// Throws SodiumError, std::invalid_argument, std::system_error. Nothing is connected before the link is
/// started.
std::unique_ptr<Wire> make_tcp_wire(const TcpOptions& options);

}  // namespace coremesh::link
