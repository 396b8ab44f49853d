// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/sender.hpp"

#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>

namespace coremesh::link {
namespace {

constexpr int64_t kRetryNs = 500'000;  // how often a full wire is tried again

/// The caller may be a fault handler: what it interrupts must find its own errno.
class KeepErrno {
  public:
    KeepErrno() : saved_(errno) {}
    ~KeepErrno() { errno = saved_; }

  private:
    const int saved_;
};

bool build(FrameBuffer& frame, Type type, std::span<const uint8_t> head,
           std::span<const uint8_t> body) noexcept {
    if (!frame.resize(kHeaderBytes + head.size() + body.size())) return false;
    frame.type = type;
    uint8_t* const payload = frame.data() + kHeaderBytes;
    if (!head.empty()) std::memcpy(payload, head.data(), head.size());
    if (!body.empty()) std::memcpy(payload + head.size(), body.data(), body.size());
    return true;
}

}  // namespace

Sender::Sender(Peers& peers, Wire& wire, size_t overflow_limit)
    : peers_(peers), wire_(wire), ways_(peers.identity().hosts) {
    for (unsigned host = 0; host < ways_.size(); ++host) {
        if (peers_.is_peer(static_cast<HostId>(host))) ways_[host] = std::make_unique<Way>(overflow_limit);
    }
}

void Sender::start(Receiver& receiver, ProtocolThread& thread) noexcept {
    thread_ = &thread;
    receiver_.store(&receiver, std::memory_order_release);
}

void Sender::close() noexcept {
    for (const auto& way : ways_) {
        if (!way) continue;
        const std::lock_guard guard(way->lock);
        way->open = false;
    }
}

void Sender::clear() noexcept {
    for (const auto& way : ways_) {
        if (!way) continue;
        const std::scoped_lock guard(way->lock, way->posted_lock);
        way->overflow.clear();
        way->posted.clear();
    }
}

bool Sender::fits(HostId to, size_t length) const noexcept {
    return receiver_.load(std::memory_order_acquire) != nullptr && length <= kMaxPayload && !peers_.lost(to);
}

bool Sender::send(HostId to, Type type, std::span<const uint8_t> head,
                  std::span<const uint8_t> body) noexcept {
    if (!peers_.is_peer(to)) return false;
    const KeepErrno keep;
    bool sent = fits(to, head.size() + body.size());
    if (sent) {
        Way& way = *ways_[to];
        const std::lock_guard guard(way.lock);
        transmit_posted(to, way);
        sent = build(way.scratch, type, head, body) && transmit(to, way, way.scratch);
        wire_.notify(to);
    }
    if (!sent) peers_.count_not_sent(to);
    return sent;
}

bool Sender::post(HostId to, Type type, std::span<const uint8_t> head,
                  std::span<const uint8_t> body) noexcept {
    if (!peers_.is_peer(to)) return false;
    const KeepErrno keep;
    if (!fits(to, head.size() + body.size())) {
        peers_.count_not_sent(to);
        return false;
    }
    Way& way = *ways_[to];
    for (;;) {
        {
            const std::lock_guard guard(way.posted_lock);
            if (!way.posted.full()) {
                if (!build(way.posted.back(), type, head, body)) break;
                way.posted.push();
                return true;
            }
        }
        flush(to);  // full: those before it go, so that the order stays
    }
    peers_.count_not_sent(to);
    return false;
}

void Sender::flush(HostId to) noexcept {
    if (!peers_.is_peer(to)) return;
    const KeepErrno keep;
    Way& way = *ways_[to];
    const std::lock_guard guard(way.lock);
    if (transmit_posted(to, way)) wire_.notify(to);
}

/// With the peer's lock. True when there was something.
bool Sender::transmit_posted(HostId to, Way& way) noexcept {
    bool any = false;
    for (;;) {
        {
            const std::lock_guard guard(way.posted_lock);
            if (way.posted.size() == 0) return any;
            way.scratch.swap(way.posted.front());
            way.posted.pop();
        }
        any = true;
        if (!transmit(to, way, way.scratch)) peers_.count_not_sent(to);
    }
}

/// With the peer's lock: gives the frame its number and its time, and lets it go.
bool Sender::transmit(HostId to, Way& way, FrameBuffer& frame) noexcept {
    if (!way.open) return false;  // the receiver may be gone as well
    const size_t length = frame.bytes().size();
    const Header header = peers_.header(to, frame.type, length - kHeaderBytes, way.sequence + 1,
                                        receiver_.load(std::memory_order_relaxed)->stamp());
    encode(header, frame.bytes().first<kHeaderBytes>());
    const Type type = frame.type;
    if (!place(to, way, frame)) return false;
    ++way.sequence;
    peers_.count_sent(to, type, length);
    return true;
}

/// On the wire, or behind what waits for it.
bool Sender::place(HostId to, Way& way, FrameBuffer& frame) noexcept {
    if (drain_overflow(to, way)) {
        const Wire::Put put = wire_.put(to, frame.bytes());
        if (put == Wire::Put::kTaken) return true;
        if (put == Wire::Put::kBroken) {
            if (peers_.give_up(to, Loss::kOverflow)) thread_->wake();
            return false;
        }
    }
    if (!must_arrive(frame.type)) return false;
    if (way.overflow.full()) {
        if (peers_.give_up(to, Loss::kOverflow)) thread_->wake();
        return false;
    }
    way.overflow.back().swap(frame);
    way.overflow.push();
    peers_.count_overflow(to, way.overflow.size(), true);
    const uint64_t before = waiting_.fetch_or(bit(to), std::memory_order_relaxed);
    if (before == 0) thread_->wake();  // the protocol thread keeps trying
    return true;
}

/// True when nothing waits any more.
bool Sender::drain_overflow(HostId to, Way& way) noexcept {
    if (way.overflow.size() == 0) return true;
    while (way.overflow.size() != 0 && wire_.put(to, way.overflow.front().bytes()) == Wire::Put::kTaken) {
        way.overflow.pop();
    }
    const size_t left = way.overflow.size();
    peers_.count_overflow(to, left, false);
    if (left != 0) return false;
    waiting_.fetch_and(~bit(to), std::memory_order_relaxed);
    return true;
}

int64_t Sender::retry(int64_t now_ns) noexcept {
    int64_t deadline = -1;
    for (uint64_t rest = waiting_.load(std::memory_order_relaxed); rest != 0; rest &= rest - 1) {
        const auto to = static_cast<HostId>(std::countr_zero(rest));
        const std::lock_guard guard(ways_[to]->lock);
        if (!drain_overflow(to, *ways_[to])) deadline = now_ns + kRetryNs;
        wire_.notify(to);
    }
    return deadline;
}

}  // namespace coremesh::link
