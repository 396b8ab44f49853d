// SPDX-License-Identifier: GPL-2.0-or-later
// One TCP connection between two hosts: its socket, its keys, and what has arrived on it.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "link/frame.hpp"
#include "link/secure_channel.hpp"

namespace coremesh::link {

/// An address as text and a port, for TcpOptions. Throws std::invalid_argument.
sockaddr_storage socket_address(const std::string& address, unsigned port);

/// A file descriptor that is closed with it.
class Socket {
  public:
    explicit Socket(int fd = -1) noexcept : fd_(fd) {}
    ~Socket() { reset(); }
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        reset();
        fd_ = std::exchange(other.fd_, -1);
        return *this;
    }
    int get() const noexcept { return fd_; }
    void reset() noexcept {
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
    }

    /// A socket that is connecting to `there` from `source`; -1 when that could not begin.
    static Socket connecting(const sockaddr_storage& there, const sockaddr_storage& source) noexcept;

  private:
    int fd_;
};

/// A connection from its first byte on. The wire that has it says which thread may do what (tcp.cpp).
struct TcpConnection {
    enum class Stage : uint8_t {
        kConnecting,  // the other side has not answered
        kGreeting,    // our greeting has gone, theirs is awaited
        kUnproven,    // keys are made, their first record is awaited
        kOpen,
        kEnded,
    };

    TcpConnection(Socket socket, const LibSodium& sodium, HostId self, std::optional<HostId> peer, Stage at,
                  int64_t until);

    bool unproven() const noexcept { return stage < Stage::kOpen; }

    /// The first bytes of a connection: the kernel's buffer is empty, so that they fit. False: they did not.
    bool send_whole(std::span<const uint8_t> bytes) noexcept;
    /// A connection that was begun here is complete: sends the greeting. False: it was refused.
    bool greet() noexcept;
    /// Takes what the kernel has of it. False: the other side has closed it, or it broke.
    bool receive() noexcept;

    enum class Proof : uint8_t { kAwaited, kGiven, kNone };
    /// Takes the other side's greeting and its first record, once they have arrived, into `room`, which holds
    /// a frame. kNone: the other side is not a host of the machine. kGiven: it is channel.peer().
    Proof shake_hands(const ChannelKeys& keys, std::span<uint8_t> room) noexcept;

    enum class Next : uint8_t { kFrame, kPart, kBroken };
    /// Whether a whole record has arrived; its bytes are record(). kBroken: what has arrived is not a record.
    Next next() const noexcept;
    /// Decrypts the record that next() has found into `room`, and drops it. None: it is forged.
    std::optional<std::span<const uint8_t>> take(std::span<uint8_t> room) noexcept;

    Socket fd;
    SecureChannel channel;
    const std::optional<HostId> to;  // the host that this side connects to
    Stage stage;
    const int64_t deadline;  // to be open by
    uint64_t slot = 0;       // its place among the wire's connections
    bool more = false;       // a whole record is among what has arrived

  private:
    std::span<const uint8_t> arrived() const noexcept {
        return std::span<const uint8_t>(in_).subspan(begin_, end_ - begin_);
    }

    std::vector<uint8_t> in_;
    size_t begin_ = 0, end_ = 0;  // of what has arrived and was not taken
};

/// How many bytes of `address` the kernel takes.
inline socklen_t length_of(const sockaddr_storage& address) noexcept {
    return address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

inline const sockaddr* address_of(const sockaddr_storage& address) noexcept {
    return reinterpret_cast<const sockaddr*>(&address);
}

}  // namespace coremesh::link
