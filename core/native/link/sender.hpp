// SPDX-License-Identifier: GPL-2.0-or-later
// What every link does with frames that go out, whatever the wire: their order, their queues, their limits.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/pi_mutex.hpp"
#include "link/frame_queue.hpp"
#include "link/peers.hpp"
#include "link/wire.hpp"

namespace coremesh::link {

/// ## Threads
///
/// The way to a peer is used by the thread that sends, under that peer's lock. Locks that callers hold (the
/// protocol lock) come before a peer's lock; nothing is called back with a peer's lock held but
/// Receiver::stamp. `waiting` is a mask of the peers with an overflow, set and cleared under their locks.
class Sender {
  public:
    /// @param overflow_limit frames that wait for one peer beyond the wire's own queue
    Sender(Peers& peers, Wire& wire, size_t overflow_limit);

    /// Before the first send. `wake` is called when the protocol thread has frames to try again.
    void start(Receiver& receiver, ProtocolThread& thread) noexcept;
    /// Nothing is sent any more, by any thread.
    void close() noexcept;
    /// What waits is thrown away. After close(), without the protocol thread.
    void clear() noexcept;

    // As Link has them.
    bool send(HostId to, Type type, std::span<const uint8_t> head, std::span<const uint8_t> body) noexcept;
    bool post(HostId to, Type type, std::span<const uint8_t> head, std::span<const uint8_t> body) noexcept;
    void flush(HostId to) noexcept;
    uint64_t congested() const noexcept { return waiting_.load(std::memory_order_relaxed); }

    /// Tries frames again that the wire had no room for. Protocol thread. Returns when to come back, in ns on
    /// CLOCK_MONOTONIC, -1 when nothing waits.
    int64_t retry(int64_t now_ns) noexcept;

  private:
    static constexpr size_t kPosted = 64;

    struct Way {
        explicit Way(size_t overflow_limit) : overflow(overflow_limit, false) {}
        PiMutex lock;  // of all below but `posted`
        bool open = true;
        uint64_t sequence = 0;
        FrameBuffer scratch;
        FrameQueue overflow;
        // Frames that have their place in the order and wait for flush(). A lock of its own, in which no
        // thread is woken; after the peer's.
        PiMutex posted_lock;
        FrameQueue posted{kPosted, true};
    };

    bool fits(HostId to, size_t length) const noexcept;
    bool transmit(HostId to, Way& way, FrameBuffer& frame) noexcept;
    bool place(HostId to, Way& way, FrameBuffer& frame) noexcept;
    bool transmit_posted(HostId to, Way& way) noexcept;
    bool drain_overflow(HostId to, Way& way) noexcept;

    Peers& peers_;
    Wire& wire_;
    std::vector<std::unique_ptr<Way>> ways_;
    std::atomic<Receiver*> receiver_{nullptr};
    ProtocolThread* thread_ = nullptr;
    std::atomic<uint64_t> waiting_{0};
};

}  // namespace coremesh::link
