// SPDX-License-Identifier: GPL-2.0-or-later
// What devices let another host do with the guest's memory: bytes there, bytes back.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/host_set.hpp"

namespace coremesh {

/// A page that a vCPU writes and a device reads goes to and fro between their hosts, several times for one
/// request of a driver. A call brings the work to the page instead. The host with the devices calls; the
/// others serve, on threads of their own, because the work may wait for a page that only the protocol thread
/// can bring.
///
/// A message: u64 serial, u8 part (`Part`), then bytes. A call or an answer longer than a frame comes in
/// several, the last of which says so.
///
/// ## State that two threads touch
///
/// Everything is under `mutex_`, which is held for a few instructions and the copy of a frame; the protocol
/// thread takes it.
class RemoteCalls {
  public:
    using Bytes = std::vector<uint8_t>;
    /// Any thread. False: host `to` is gone.
    using Send = std::function<bool(HostId to, std::span<const uint8_t> head, std::span<const uint8_t> body)>;
    /// Does the work of a call and appends to its answer. False: the call makes no sense, or the machine
    /// stops. Several threads at a time.
    using Serve = std::function<bool(std::span<const uint8_t> call, Bytes& answer)>;

    static constexpr size_t kHeadBytes = 9;
    static constexpr size_t kPieceBytes = 60 << 10;
    /// A call or an answer that is longer is refused: what comes from another host is not trusted to end.
    static constexpr size_t kMostBytes = 32 << 20;
    static constexpr size_t kMostWaiting = 256;  ///< calls that no thread has begun; more are refused

    /// `leader`: the host that calls.
    RemoteCalls(HostId self, HostId leader, Send send)
        : self_(self), leader_(leader), send_(std::move(send)) {}
    ~RemoteCalls() { stop(); }

    /// The leader, any thread but the protocol thread: returns when host `to` has answered. False: it
    /// refused, or the machine stops.
    bool call(HostId to, std::span<const uint8_t> call, Bytes& answer) noexcept;
    /// Another host, once, before messages flow: answers calls from now on.
    void serve(Serve serve, unsigned threads = 4);
    /// The protocol thread. What makes no sense is dropped.
    void received(HostId from, std::span<const uint8_t> payload) noexcept;
    /// Every wait ends, and no other begins. Any thread.
    void cancel() noexcept;
    /// Returns when no thread of this object runs. Idempotent; not from `serve`.
    void stop() noexcept;

  private:
    enum class Part : uint8_t { kCall = 0, kLastOfCall = 1, kAnswer = 2, kLastOfAnswer = 3, kRefused = 4 };
    struct Open {
        HostId to = 0;
        Bytes answer;
        bool done = false, refused = false;
    };

    bool send(HostId to, uint64_t serial, bool answers, std::span<const uint8_t> bytes) noexcept;
    void refuse(uint64_t serial) noexcept;
    void work() noexcept;

    const HostId self_;
    const HostId leader_;
    const Send send_;
    Serve serve_;
    std::mutex mutex_;
    std::condition_variable answered_, called_;
    std::map<uint64_t, Open> open_;       // the leader's, by serial
    std::map<uint64_t, Bytes> arriving_;  // calls that are not whole yet
    std::deque<std::pair<uint64_t, Bytes>> waiting_;
    uint64_t serial_ = 0;
    bool cancelled_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace coremesh
