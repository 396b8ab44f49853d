// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/zap.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

namespace coremesh::link {
namespace {

// The parts of a question (RFC 27): version, request id, domain, address, identity, mechanism, credentials.
enum Part : size_t { kVersion, kRequestId, kDomain, kAddress, kIdentity, kMechanism, kCredentials, kParts };

}  // namespace

std::optional<HostId> host_of_user_id(const char* user_id) noexcept {
    if (user_id == nullptr || *user_id == 0) return std::nullopt;
    unsigned host = 0;
    for (const char* digit = user_id; *digit != 0; ++digit) {
        if (*digit < '0' || *digit > '9') return std::nullopt;
        host = host * 10 + static_cast<unsigned>(*digit - '0');
        if (host >= kMaxHosts) return std::nullopt;
    }
    return static_cast<HostId>(host);
}

std::optional<HostId> Authenticator::host_of(const void* key, size_t length) const noexcept {
    if (length != sizeof(PublicKey)) return std::nullopt;
    for (size_t host = 0; host < keys_.size(); ++host) {
        if (host != self_ && std::memcmp(keys_[host].data(), key, length) == 0)
            return static_cast<HostId>(host);
    }
    return std::nullopt;
}

bool Authenticator::part(const void* bytes, size_t length, bool last) noexcept {
    ZmqMessage message;
    if (zmq_.init_size(&message, length) != 0) return false;
    if (length != 0) std::memcpy(zmq_.data(&message), bytes, length);
    for (;;) {
        if (zmq_.send(&message, socket_, LibZmq::kDontWait | (last ? 0 : LibZmq::kSendMore)) >= 0)
            return true;
        if (errno != EINTR) break;
    }
    zmq_.close(&message);
    return false;
}

void Authenticator::serve() noexcept {
    std::array<ZmqMessage, kParts> parts;
    for (ZmqMessage& each : parts) zmq_.init(&each);
    for (;;) {
        if (zmq_.receive(&parts[0], socket_, LibZmq::kDontWait) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        size_t count = 1;
        for (const ZmqMessage* last = &parts[0]; zmq_.more(last) != 0; ++count) {
            // A longer question than the RFC's overwrites its last part and is refused by its count.
            ZmqMessage& next = parts[count < kParts ? count : kParts - 1];
            if (zmq_.receive(&next, socket_, 0) < 0) break;
            last = &next;
        }
        std::optional<HostId> host;
        const auto text = [&](Part which) {
            return std::string_view(static_cast<const char*>(zmq_.data(&parts[which])),
                                    zmq_.size(&parts[which]));
        };
        if (count == kParts && text(kVersion) == "1.0" && text(kMechanism) == "CURVE") {
            host = host_of(zmq_.data(&parts[kCredentials]), zmq_.size(&parts[kCredentials]));
        }
        (host ? accepted_ : refused_).fetch_add(1, std::memory_order_relaxed);
        const std::string user = host ? std::to_string(*host) : "";
        const std::string_view status = host ? "200" : "400",
                               why = host ? "OK" : "not a host of this machine";
        const std::string request(count > kRequestId ? text(kRequestId) : "");
        part("1.0", 3, false) && part(request.data(), request.size(), false) &&
            part(status.data(), status.size(), false) && part(why.data(), why.size(), false) &&
            part(user.data(), user.size(), false) && part("", 0, true);
    }
    for (ZmqMessage& each : parts) zmq_.close(&each);
}

}  // namespace coremesh::link
