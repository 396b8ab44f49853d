// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/tcp_connection.hpp"

#include <arpa/inet.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace coremesh::link {
namespace {

constexpr size_t kRecord = kHeaderBytes + kMaxPayload + SecureChannel::kOverhead;  // the longest
constexpr size_t kIn = 2 * kRecord;

}  // namespace

sockaddr_storage socket_address(const std::string& address, unsigned port) {
    sockaddr_storage storage{};
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    if (port <= 0xffff && inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons(static_cast<uint16_t>(port));
    } else if (port <= 0xffff && inet_pton(AF_INET6, address.c_str(), &v6.sin6_addr) == 1) {
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(static_cast<uint16_t>(port));
    } else {
        throw std::invalid_argument("no IP address and port: " + address);
    }
    return storage;
}

Socket Socket::connecting(const sockaddr_storage& there, const sockaddr_storage& source) noexcept {
    Socket fd(socket(there.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int yes = 1;
    // All connections of this host come from one port: it is what the others' doors admit.
    const bool begun =
        fd.get() >= 0 && setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
        bind(fd.get(), address_of(source), length_of(source)) == 0 &&
        (::connect(fd.get(), address_of(there), length_of(there)) == 0 || errno == EINPROGRESS);
    if (!begun) fd.reset();
    return fd;
}

TcpConnection::TcpConnection(Socket socket, const LibSodium& sodium, HostId self, std::optional<HostId> peer,
                             Stage at, int64_t until)
    : fd(std::move(socket)), channel(sodium, self, peer), to(peer), stage(at), deadline(until), in_(kIn) {}

bool TcpConnection::send_whole(std::span<const uint8_t> bytes) noexcept {
    return ::send(fd.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
}

bool TcpConnection::greet() noexcept {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0 || !send_whole(channel.greeting())) return false;
    stage = Stage::kGreeting;
    return true;
}

bool TcpConnection::receive() noexcept {
    if (begin_ != 0) {
        std::memmove(in_.data(), in_.data() + begin_, end_ - begin_);
        end_ -= std::exchange(begin_, 0);
    }
    const ssize_t got = ::recv(fd.get(), in_.data() + end_, in_.size() - end_, MSG_DONTWAIT);
    if (got > 0) end_ += static_cast<size_t>(got);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

TcpConnection::Proof TcpConnection::shake_hands(const ChannelKeys& keys, std::span<uint8_t> room) noexcept {
    constexpr size_t kGreeting = SecureChannel::kGreeting, kEmpty = SecureChannel::kOverhead;
    if (stage == Stage::kGreeting) {
        if (arrived().size() < kGreeting) return Proof::kAwaited;
        if (!channel.meet(arrived().first<kGreeting>(), keys)) return Proof::kNone;
        begin_ += kGreeting;
        std::array<uint8_t, kEmpty> proof;
        channel.seal({}, proof.data());
        if (!send_whole(proof)) return Proof::kNone;
        stage = Stage::kUnproven;
    }
    if (arrived().size() < kEmpty) return Proof::kAwaited;
    if (SecureChannel::frame_bytes(arrived().first<SecureChannel::kLength>()) != 0) return Proof::kNone;
    return take(room) ? Proof::kGiven : Proof::kNone;
}

TcpConnection::Next TcpConnection::next() const noexcept {
    if (arrived().size() < SecureChannel::kLength) return Next::kPart;
    const auto length = SecureChannel::frame_bytes(arrived().first<SecureChannel::kLength>());
    if (!length) return Next::kBroken;
    return arrived().size() < *length + SecureChannel::kOverhead ? Next::kPart : Next::kFrame;
}

std::optional<std::span<const uint8_t>> TcpConnection::take(std::span<uint8_t> room) noexcept {
    const auto length = SecureChannel::frame_bytes(arrived().first<SecureChannel::kLength>());
    const size_t record = *length + SecureChannel::kOverhead;
    if (!channel.open(arrived().first(record), room.data())) return std::nullopt;
    begin_ += record;
    return room.first(*length);
}

}  // namespace coremesh::link
