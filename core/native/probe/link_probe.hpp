// SPDX-License-Identifier: GPL-2.0-or-later
// A link without a machine behind it: to measure one, and to see what it does.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "link/link.hpp"

namespace coremesh::link {

/// Keeps what arrives, answers pings, and counts. Control frames that begin with the probe's own marks are
/// its; everything else is kept for `take`.
class LinkProbe final : private Receiver {
  public:
    struct Frame {
        HostId from;
        Type type;
        uint64_t stamp;
        std::vector<uint8_t> payload;
    };

    explicit LinkProbe(std::shared_ptr<Link> link) : link_(std::move(link)) {}
    ~LinkProbe() { stop(); }
    LinkProbe(const LinkProbe&) = delete;
    LinkProbe& operator=(const LinkProbe&) = delete;

    void start() { link_->start(*this); }
    void stop() noexcept { link_->stop(); }
    Link& link() noexcept { return *link_; }

    /// Any thread.
    bool send(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body = {}) noexcept {
        return link_->send(to, type, head, body);
    }

    /// Round trips to the probe of `peer`, one after the other: a small question from this thread, answered
    /// on the peer's protocol thread with `reply_bytes` (at most 4096) and a header. Returns their times in
    /// ns, fewer than `count` when no answer came for two seconds. One caller at a time.
    std::vector<int64_t> ping(HostId peer, unsigned count, size_t reply_bytes);

    /// The frames kept so far, at most `kKept`; they are forgotten. Any thread.
    std::vector<Frame> take();
    /// Mask of the peers that the link gave up. Any thread.
    uint64_t lost() const noexcept { return lost_.load(std::memory_order_acquire); }
    /// Lets the protocol thread take this long for each frame: a slow receiver. Any thread.
    void slow_down(int64_t ns) noexcept { slowness_ns_.store(ns, std::memory_order_relaxed); }

  private:
    static constexpr size_t kKept = 1 << 16;
    static constexpr size_t kPage = 4096;

    void received(HostId from, Type type, uint64_t guest_tsc,
                  std::span<const uint8_t> payload) noexcept override;
    int64_t due(int64_t) noexcept override { return -1; }
    uint64_t stamp() noexcept override { return stamps_.fetch_add(1, std::memory_order_relaxed); }
    void peer_lost(HostId peer, Loss) noexcept override {
        lost_.fetch_or(bit(peer), std::memory_order_release);
    }

    const std::shared_ptr<Link> link_;
    std::atomic<uint64_t> stamps_{1};
    std::atomic<uint64_t> lost_{0};
    std::atomic<int64_t> slowness_ns_{0};
    std::atomic<uint32_t> answered_{0};  // number of the last answer; ping() sleeps on it
    std::mutex mutex_;
    std::vector<Frame> kept_;  // under mutex_
};

}  // namespace coremesh::link
