// SPDX-License-Identifier: GPL-2.0-or-later
// The link between hosts on a network: ZeroMQ sockets that Python made, driven by native threads without the
// GIL.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "link/link.hpp"

namespace coremesh::link {

/// What Python made (core/links.py). All of it must stay open and untouched from the construction of the link
/// until its stop() has returned.
struct ZmqSockets {
    std::string library;         // path of the libzmq that is loaded already
    void* router = nullptr;      // bound; receives
    void* zap = nullptr;         // REP bound to inproc://zeromq.zap.01, or null without CURVE
    std::vector<void*> dealers;  // by host, connected; null for oneself
};

using PublicKey = std::array<uint8_t, 32>;

/// libzmq cannot be used: not loaded from there, or too old. The text says which.
class ZmqError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

struct ZmqOptions {
    HostId self = 0;
    unsigned hosts = 2;
    uint64_t machine = 0;
    uint32_t epoch = 0;
    std::vector<PublicKey> keys;    // by host: who may connect, and as whom; empty without CURVE
    size_t overflow_limit = 16384;  // frames that wait for one peer beyond libzmq's own queue
    int64_t spin_ns = 0;            // look for frames this long before sleeping; only with cores to spare
    int cpu = -1;                   // where the protocol thread stays, beside libzmq's; -1: anywhere
};

/// Throws ZmqError, std::invalid_argument. The sockets are not touched before start().
std::unique_ptr<Link> make_zmq_link(const ZmqOptions& options, const ZmqSockets& sockets);

}  // namespace coremesh::link
