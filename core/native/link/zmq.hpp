// SPDX-License-Identifier: GPL-2.0-or-later
// The wire between hosts on a network: ZeroMQ sockets that Python made, driven by native threads without the
// GIL.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "link/wire.hpp"
#include "link/zap.hpp"

namespace coremesh::link {

/// What Python made (core/links/zmq.py). All of it must stay open and untouched from the construction of the
/// link until its stop() has returned.
struct ZmqSockets {
    std::string library;         // path of the libzmq that is loaded already
    void* router = nullptr;      // bound; receives
    void* zap = nullptr;         // REP bound to inproc://zeromq.zap.01, or null without CURVE
    std::vector<void*> dealers;  // by host, connected; null for oneself
};

struct ZmqOptions {
    HostId self = 0;
    unsigned hosts = 2;
    std::vector<PublicKey> keys;  // by host: a key names its host; empty without CURVE
};

/// Throws ZmqError, std::invalid_argument. The sockets are not touched before the link is started.
std::unique_ptr<Wire> make_zmq_wire(const ZmqOptions& options, const ZmqSockets& sockets);

}  // namespace coremesh::link
