// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/zmq.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>

#include "base/pi_mutex.hpp"
#include "link/libzmq.hpp"
#include "link/overflow.hpp"
#include "link/peers.hpp"
#include "link/protocol_thread.hpp"
#include "link/zap.hpp"

namespace coremesh::link {
namespace {

constexpr unsigned kBatch = 64;          // frames handed on before the timers are looked at
constexpr int64_t kRetryNs = 500'000;    // how often a full queue of libzmq is tried again
constexpr int64_t kZapNs = 20'000'000;   // how often handshakes are looked for while frames keep coming
constexpr unsigned kZapReady = 1U << 1;  // descriptor 1
using Drained = ProtocolThread::Drained;

/// ## Threads
///
/// A DEALER is used by whoever sends, under its peer's lock; libzmq allows a socket to change threads over a
/// full fence, which the lock is. The ROUTER and the ZAP socket belong to the protocol thread. Locks that
/// callers hold (the protocol lock) come before a peer's lock; nothing is called back with a peer's lock held
/// but Receiver::stamp.
class ZmqLink final : public Link, private ProtocolThread::Work {
  public:
    ZmqLink(const ZmqOptions& options, const ZmqSockets& sockets)
        : zmq_(sockets.library),
          spin_ns_(options.spin_ns),
          cpu_(options.cpu),
          router_(sockets.router),
          peers_({options.self, options.hosts, options.machine, options.epoch}),
          outgoing_(options.hosts) {
        for (unsigned host = 0; host < options.hosts; ++host) {
            if (!peers_.is_peer(static_cast<HostId>(host))) continue;
            outgoing_[host].dealer = sockets.dealers[host];
            outgoing_[host].overflow = std::make_unique<Overflow>(zmq_, options.overflow_limit);
        }
        if (sockets.zap != nullptr) zap_.emplace(zmq_, sockets.zap, options.self, options.keys);
        descriptors_.push_back(zmq_.descriptor(router_));
        if (sockets.zap != nullptr) descriptors_.push_back(zmq_.descriptor(sockets.zap));
    }

    ~ZmqLink() override { ZmqLink::stop(); }

    bool send(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body) noexcept override {
        if (!peers_.is_peer(to)) return false;
        const int saved = errno;  // the caller may be a fault handler
        ZmqMessage message;
        bool sent = build(to, head, body, message);
        if (sent) {
            Outgoing& outgoing = outgoing_[to];
            std::lock_guard guard(outgoing.lock);
            transmit_posted(to, outgoing);
            sent = transmit(to, outgoing, type, message);
        }
        if (!sent) peers_.count_not_sent(to);
        errno = saved;
        return sent;
    }

    bool post(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body) noexcept override {
        if (!peers_.is_peer(to)) return false;
        const int saved = errno;
        ZmqMessage message;
        const bool built = build(to, head, body, message);
        if (!built) peers_.count_not_sent(to);
        Outgoing& outgoing = outgoing_[to];
        while (built && !outgoing.posted.push(zmq_, type, message))
            flush(to);  // full: an order keeps its place
        errno = saved;
        return built;
    }

    void flush(HostId to) noexcept override {
        if (!peers_.is_peer(to)) return;
        const int saved = errno;
        std::lock_guard guard(outgoing_[to].lock);
        transmit_posted(to, outgoing_[to]);
        errno = saved;
    }

    uint64_t congested() const noexcept override { return waiting_.load(std::memory_order_relaxed); }

    void wake() noexcept override { thread_.wake(); }
    void wake_at(int64_t deadline_ns) noexcept override { thread_.wake_at(deadline_ns); }

    void disown(HostId peer) noexcept override { peers_.give_up(peer, std::nullopt); }

    void start(Receiver& receiver) override {
        if (receiver_.load() != nullptr) throw std::logic_error("a link starts once");
        receiver_.store(&receiver, std::memory_order_release);
        thread_.start(*this, descriptors_, spin_ns_, cpu_);
    }

    void stop() override {
        for (Outgoing& outgoing : outgoing_) {
            std::lock_guard guard(outgoing.lock);
            outgoing.open = false;
        }
        thread_.stop();
        for (Outgoing& outgoing : outgoing_) {
            if (!outgoing.overflow) continue;
            outgoing.overflow->clear();
            ZmqMessage message;
            for (Type type; outgoing.posted.pop(zmq_, type, message);) zmq_.close(&message);
        }
    }

    LinkCounters counters(HostId peer) const override { return peers_.counters(peer); }

    LinkFacts facts() const override {
        LinkFacts facts;
        facts.priority = thread_.priority();
        facts.wakeups = thread_.wakeups();
        facts.spins = thread_.spins();
        if (zap_) {
            facts.keys_accepted = zap_->accepted();
            facts.keys_refused = zap_->refused();
        }
        peers_.strangers(facts);
        return facts;
    }

  private:
    /// Frames that have their place in the order, and wait for flush(). A lock of its own, in which nobody is
    /// woken; after the peer's.
    class Posted {
      public:
        bool push(const LibZmq& zmq, Type type, ZmqMessage& message) noexcept {
            std::lock_guard guard(lock_);
            if (count_ == kPlaces) return false;
            Frame& place = ring_[(first_ + count_++) % kPlaces];
            place.type = type;
            zmq.init(&place.message);
            zmq.move(&place.message, &message);
            return true;
        }
        bool pop(const LibZmq& zmq, Type& type, ZmqMessage& message) noexcept {
            std::lock_guard guard(lock_);
            if (count_ == 0) return false;
            Frame& place = ring_[first_];
            type = place.type;
            zmq.init(&message);
            zmq.move(&message, &place.message);
            first_ = (first_ + 1) % kPlaces;
            --count_;
            return true;
        }

      private:
        struct Frame {
            Type type;
            ZmqMessage message;
        };
        static constexpr size_t kPlaces = 64;
        PiMutex lock_;
        size_t first_ = 0, count_ = 0;
        std::array<Frame, kPlaces> ring_;
    };

    /// The way to one peer; all but `posted` and the pointers' constness under `lock`.
    struct Outgoing {
        PiMutex lock;
        Posted posted;
        bool open = true;
        void* dealer = nullptr;
        uint64_t sequence = 0;
        std::unique_ptr<Overflow> overflow;
    };

    /// False: there is no message, and nothing is to be closed.
    bool build(HostId to, std::span<const uint8_t> head, std::span<const uint8_t> body,
               ZmqMessage& message) noexcept {
        const size_t length = head.size() + body.size();
        if (receiver_.load(std::memory_order_acquire) == nullptr || length > kMaxPayload || peers_.lost(to) ||
            zmq_.init_size(&message, kHeaderBytes + length) != 0) {
            return false;
        }
        auto* const bytes = static_cast<uint8_t*>(zmq_.data(&message));
        if (!head.empty()) std::memcpy(bytes + kHeaderBytes, head.data(), head.size());
        if (!body.empty()) std::memcpy(bytes + kHeaderBytes + head.size(), body.data(), body.size());
        return true;
    }

    /// With the peer's lock. The message is gone in any case.
    bool transmit(HostId to, Outgoing& outgoing, Type type, ZmqMessage& message) noexcept {
        const size_t length = zmq_.size(&message);
        const Header header = peers_.header(to, type, length - kHeaderBytes, outgoing.sequence + 1,
                                            receiver_.load(std::memory_order_relaxed)->stamp());
        encode(header,
               std::span<uint8_t, kHeaderBytes>(static_cast<uint8_t*>(zmq_.data(&message)), kHeaderBytes));
        if (!outgoing.open || !put(to, outgoing, type, message)) {
            zmq_.close(&message);
            return false;
        }
        ++outgoing.sequence;
        peers_.count_sent(to, type, length);
        return true;
    }

    void transmit_posted(HostId to, Outgoing& outgoing) noexcept {
        ZmqMessage message;
        for (Type type; outgoing.posted.pop(zmq_, type, message);) {
            if (!transmit(to, outgoing, type, message)) peers_.count_not_sent(to);
        }
    }

    /// Into libzmq's queue, or into ours behind what waits there. False: `message` is still the caller's.
    bool put(HostId to, Outgoing& outgoing, Type type, ZmqMessage& message) noexcept {
        if (flush(to, outgoing) && try_send(outgoing, message)) return true;
        if (!must_arrive(type)) return false;
        if (!outgoing.overflow->push(message)) {
            if (peers_.give_up(to, Loss::kOverflow)) wake();
            return false;
        }
        peers_.count_overflow(to, outgoing.overflow->size(), true);
        const uint64_t before = waiting_.fetch_or(uint64_t{1} << to, std::memory_order_relaxed);
        if (before == 0) wake();  // the protocol thread keeps trying
        return true;
    }

    bool try_send(Outgoing& outgoing, ZmqMessage& message) noexcept {
        for (;;) {
            if (zmq_.send(&message, outgoing.dealer, LibZmq::kDontWait) >= 0) return true;
            if (errno != EINTR) return false;
        }
    }

    /// True when nothing waits any more.
    bool flush(HostId to, Outgoing& outgoing) noexcept {
        if (outgoing.overflow->size() == 0) return true;
        while (outgoing.overflow->size() != 0 && try_send(outgoing, outgoing.overflow->front())) {
            outgoing.overflow->pop();
        }
        const size_t left = outgoing.overflow->size();
        peers_.count_overflow(to, left, false);
        if (left != 0) return false;
        waiting_.fetch_and(~(uint64_t{1} << to), std::memory_order_relaxed);
        return true;
    }

    void begins() noexcept override {
        zmq_.init(&part_);
        if (zap_) zap_->serve();  // a descriptor only tells of what comes after the socket was found empty
    }

    Drained drain(int64_t now_ns, unsigned ready) noexcept override {
        if (zap_ && ((ready & kZapReady) != 0 || now_ns - zap_at_ > kZapNs)) {
            zap_at_ = now_ns;
            zap_->serve();
        }
        Receiver& receiver = *receiver_.load(std::memory_order_relaxed);
        unsigned taken = 0;
        while (taken < kBatch) {
            // What libzmq calls the routing id comes first; nothing is ever sent back on this socket.
            if (zmq_.receive(&part_, router_, LibZmq::kDontWait) < 0) {
                if (errno == EINTR) continue;
                break;
            }
            ++taken;
            take_frame(receiver);
        }
        peers_.report(receiver);
        return taken == kBatch ? Drained::kSome : taken == 0 ? Drained::kNothing : Drained::kAll;
    }

    /// The parts that follow a routing id: exactly one is a frame.
    void take_frame(Receiver& receiver) noexcept {
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
                if (!key_of) return peers_.count_stranger(Refusal::kSource);
            }
            return peers_.admit(frame, key_of, receiver);
        }
        peers_.count_stranger(Refusal::kNotAFrame);
    }

    int64_t due(int64_t now_ns) noexcept override {
        int64_t deadline = receiver_.load(std::memory_order_relaxed)->due(now_ns);
        for (uint64_t rest = waiting_.load(std::memory_order_relaxed); rest != 0; rest &= rest - 1) {
            const auto to = static_cast<HostId>(std::countr_zero(rest));
            std::lock_guard guard(outgoing_[to].lock);
            if (flush(to, outgoing_[to])) continue;
            if (deadline < 0 || deadline > now_ns + kRetryNs) deadline = now_ns + kRetryNs;
        }
        return deadline;
    }

    const LibZmq zmq_;
    const int64_t spin_ns_;
    const int cpu_;
    void* const router_;
    Peers peers_;
    std::vector<Outgoing> outgoing_;
    std::vector<int> descriptors_;
    std::optional<Authenticator> zap_;
    std::atomic<Receiver*> receiver_{nullptr};
    std::atomic<uint64_t> waiting_{0};  // mask of peers with an overflow; set and cleared under their locks
    // Protocol thread.
    ZmqMessage part_;
    int64_t zap_at_ = 0;
    ProtocolThread thread_;  // last: it stops before anything that it uses goes
};

}  // namespace

std::unique_ptr<Link> make_zmq_link(const ZmqOptions& options, const ZmqSockets& sockets) {
    if (options.hosts < 2 || options.hosts > kMaxHosts || options.self >= options.hosts) {
        throw std::invalid_argument("2 to 64 hosts, and self one of them");
    }
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
    if (options.overflow_limit == 0) throw std::invalid_argument("the overflow must hold a frame");
    return std::make_unique<ZmqLink>(options, sockets);
}

}  // namespace coremesh::link
