// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/zmq.hpp"

#include <cerrno>
#include <cstring>
#include <optional>

#include "link/libzmq.hpp"
#include "link/wire.hpp"
#include "link/zap.hpp"

namespace coremesh::link {
namespace {

constexpr unsigned kBatch = 64;          // frames handed on before the timers are looked at
constexpr int64_t kZapNs = 20'000'000;   // how often handshakes are looked for while frames keep coming
constexpr unsigned kZapReady = 1U << 1;  // descriptor 1
using Drained = ProtocolThread::Drained;

/// ## Threads
///
/// A DEALER is used by the thread that sends, under its peer's lock; libzmq allows a socket to change threads
/// over a full fence, which the lock is. The ROUTER and the ZAP socket belong to the protocol thread.
class ZmqWire final : public Wire {
  public:
    ZmqWire(const ZmqOptions& options, const ZmqSockets& sockets)
        : zmq_(sockets.library), router_(sockets.router), dealers_(sockets.dealers) {
        if (sockets.zap != nullptr) zap_.emplace(zmq_, sockets.zap, options.self, options.keys);
        descriptors_.push_back(zmq_.descriptor(router_));
        if (sockets.zap != nullptr) descriptors_.push_back(zmq_.descriptor(sockets.zap));
    }

    Put put(HostId to, std::span<const uint8_t> frame) noexcept override {
        ZmqMessage message;
        if (zmq_.init_size(&message, frame.size()) != 0) return Put::kFull;
        std::memcpy(zmq_.data(&message), frame.data(), frame.size());
        for (;;) {
            if (zmq_.send(&message, dealers_[to], LibZmq::kDontWait) >= 0) return Put::kTaken;
            if (errno != EINTR) break;
        }
        zmq_.close(&message);
        return Put::kFull;
    }

    std::span<const int> descriptors() const noexcept override { return descriptors_; }

    void begins() noexcept override {
        zmq_.init(&part_);
        if (zap_) zap_->serve();  // a descriptor only tells of what comes after the socket was found empty
    }

    Drained drain(int64_t now_ns, unsigned ready, Sink& sink) noexcept override {
        if (zap_ && ((ready & kZapReady) != 0 || now_ns - zap_at_ > kZapNs)) {
            zap_at_ = now_ns;
            zap_->serve();
        }
        unsigned taken = 0;
        while (taken < kBatch) {
            // What libzmq calls the routing id comes first; nothing is ever sent back on this socket.
            if (zmq_.receive(&part_, router_, LibZmq::kDontWait) < 0) {
                if (errno == EINTR) continue;
                break;
            }
            ++taken;
            take_frame(sink);
        }
        return taken == kBatch ? Drained::kSome : taken == 0 ? Drained::kNothing : Drained::kAll;
    }

    void describe(LinkFacts& facts) const noexcept override {
        facts.wire = "zmq";
        if (!zap_) return;
        facts.keys_accepted = zap_->accepted();
        facts.keys_refused = zap_->refused();
    }

  private:
    /// The parts that follow a routing id: exactly one is a frame.
    void take_frame(Sink& sink) noexcept {
        unsigned parts = 0;
        while (zmq_.more(&part_) != 0) {
            if (zmq_.receive(&part_, router_, 0) < 0) {
                if (errno == EINTR) continue;
                return;
            }
            if (parts++ != 0 || zmq_.more(&part_) != 0) continue;
            const std::span frame(static_cast<const uint8_t*>(zmq_.data(&part_)), zmq_.size(&part_));
            std::optional<HostId> key_of;
            if (zap_) {
                key_of = host_of_user_id(zmq_.gets(&part_, "User-Id"));
                if (!key_of) return sink.stranger(Refusal::kSource);
            }
            sink.arrived(frame, key_of);
            return;
        }
        sink.stranger(Refusal::kNotAFrame);
    }

    const LibZmq zmq_;
    void* const router_;
    const std::vector<void*> dealers_;
    std::vector<int> descriptors_;
    std::optional<Authenticator> zap_;
    // Protocol thread.
    ZmqMessage part_;
    int64_t zap_at_ = 0;
};

}  // namespace

std::unique_ptr<Wire> make_zmq_wire(const ZmqOptions& options, const ZmqSockets& sockets) {
    if (sockets.router == nullptr || sockets.dealers.size() != options.hosts) {
        throw std::invalid_argument("a link needs a ROUTER, and a DEALER for each host (null for itself)");
    }
    for (unsigned host = 0; host < options.hosts; ++host) {
        if ((sockets.dealers[host] == nullptr) != (host == options.self)) {
            throw std::invalid_argument("a link needs a DEALER for each host but itself");
        }
    }
    if (options.keys.size() != (sockets.zap == nullptr ? 0 : options.hosts)) {
        throw std::invalid_argument("a key for each host with CURVE, none without");
    }
    return std::make_unique<ZmqWire>(options, sockets);
}

}  // namespace coremesh::link
