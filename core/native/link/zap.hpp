// SPDX-License-Identifier: GPL-2.0-or-later
// Which peers may connect: the ZeroMQ Authentication Protocol (RFC 27), answered natively.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "link/libzmq.hpp"
#include "link/link.hpp"

namespace coremesh::link {

using PublicKey = std::array<uint8_t, 32>;

/// The host of a "User-Id" that `Authenticator` gave; nothing when it is no number of a host.
std::optional<HostId> host_of_user_id(const char* user_id) noexcept;

/// Answers libzmq's question about each connection: a CURVE key of the list is let in, and every frame that
/// it sends then carries the number of its host (property "User-Id"). All others are turned away and counted.
/// Runs on the protocol thread, so that no handshake ever waits for Python.
class Authenticator {
  public:
    Authenticator(const LibZmq& zmq, void* socket, HostId self, std::vector<PublicKey> keys)
        : zmq_(zmq), socket_(socket), self_(self), keys_(std::move(keys)) {}

    /// Answers all questions that wait. The thread that owns the socket.
    void serve() noexcept;

    // Any thread.
    uint64_t accepted() const noexcept { return accepted_.load(std::memory_order_relaxed); }
    uint64_t refused() const noexcept { return refused_.load(std::memory_order_relaxed); }

  private:
    bool part(const void* bytes, size_t length, bool last) noexcept;
    std::optional<HostId> host_of(const void* key, size_t length) const noexcept;

    const LibZmq& zmq_;
    void* const socket_;
    const HostId self_;
    const std::vector<PublicKey> keys_;
    std::atomic<uint64_t> accepted_{0}, refused_{0};
};

}  // namespace coremesh::link
