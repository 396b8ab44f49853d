// SPDX-License-Identifier: GPL-2.0-or-later
// Host 0's side of device accesses from other hosts.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/host_set.hpp"
#include "base/pi_mutex.hpp"
#include "bus/bus.hpp"
#include "bus/counters.hpp"
#include "bus/device_message.hpp"

namespace coremesh {

/// Serves requests on threads of its own, never on the protocol thread: a device may take its time, and may
/// want a page of guest memory, which only the protocol thread can bring. Requests of one vCPU are served one
/// after the other; those of different vCPUs at the same time.
///
/// A sender holds no more than `kDepth` unanswered requests of a vCPU, so the queues are bounded; a request
/// beyond that, or one that no vCPU makes, is refused, counted, and never reaches a device.
///
/// ## State that two threads touch
///
/// Everything but atomics is under `mutex_`, which is held for a few instructions and inherits priority: the
/// protocol thread takes it. Workers sleep on `work_`, a futex that counts what was queued.
class NodeServer {
  public:
    /// Sends an answer; blocks no longer than a queue takes to drain. False: that host has gone. Any worker.
    using Send = std::function<bool(HostId to, std::span<const uint8_t> payload)>;

    static constexpr unsigned kLanes = 256;
    static constexpr unsigned kDepth = 32;

    /// @param node  outlives `stop`; called by several workers at a time.
    /// @param hosts of the machine; requests come from all of them but `self`, the one with the node.
    /// @param first_vcpu of each host and one more: a vCPU's number in the machine is that and its lane.
    NodeServer(DeviceBackend& node, unsigned hosts, Send send, unsigned workers = 2,
               std::vector<unsigned> first_vcpu = {}, HostId self = 0);
    ~NodeServer();

    /// A message of the devices' kind. Protocol thread.
    void received(HostId from, std::span<const uint8_t> payload) noexcept;

    /// Returns when no worker runs any more; requests that wait are dropped. Idempotent. Not from a worker.
    void stop() noexcept;

    NodeServerCounters counters() const noexcept;

  private:
    struct Lane;

    void work() noexcept;
    void enlist(Lane& lane) noexcept;
    bool next(Lane*& lane, DeviceRequest& request) noexcept;
    void done(Lane& lane, uint64_t device_ns, bool answered) noexcept;
    uint64_t serve(const DeviceRequest& request) noexcept;
    unsigned vcpu_of(HostId host, unsigned lane) const noexcept;

    DeviceBackend& node_;
    const unsigned hosts_;
    const HostId self_;
    const Send send_;
    const std::vector<unsigned> first_vcpu_;
    mutable PiMutex mutex_;
    std::vector<std::unique_ptr<Lane>> lanes_;  // by host and lane, made when first used
    Lane* ready_ = nullptr;                     // first of the lanes that have work and no worker
    Lane* last_ready_ = nullptr;
    NodeServerCounters counters_;
    std::atomic<uint32_t> work_{0};
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> workers_;  // last: everything above is ready when they start
};

}  // namespace coremesh
