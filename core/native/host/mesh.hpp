// SPDX-License-Identifier: GPL-2.0-or-later
// One host's place among the hosts of a machine: what comes in on the links goes to the part that it is for.
//
//   coherence, page   the page protocol (shared_memory.hpp)
//   interrupt         the platform, and from there this host's cores
//   device            with the devices: the server of their node; elsewhere: the vCPU that waits
//   clock             the follower of host 0's clock
//   control           orders of the host with the devices, and their answers
//   call              what devices have another host do with its memory, and the answers
//   heartbeat         the lease; a host that loses it, or another host, stops
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock_follower.hpp"
#include "bus/node_server.hpp"
#include "bus/remote_node.hpp"
#include "guest/platform.hpp"
#include "host/orders.hpp"
#include "host/remote_calls.hpp"
#include "link/lease.hpp"
#include "link/link.hpp"
#include "memory/shared_memory.hpp"

namespace coremesh {

/// The machine is not whole any more, or this host is not part of it.
struct Breach {
    bool fenced;         ///< this host has lost its lease; else `host` is lost
    HostId host;         ///< the one that is lost
    const char* reason;  ///< for a person
};

class MeshOwner {
  public:
    /// Once, on the protocol thread: all vCPUs must stop for ever. Must not wait for them.
    virtual void mesh_broken(const Breach& breach) noexcept = 0;
    /// An order came (orders.hpp).
    virtual void obey(HostId from, const Order& order) noexcept = 0;

  protected:
    ~MeshOwner() = default;
};

class Mesh final : private link::Receiver, private MessageSender, private InterruptSender {
  public:
    struct Options {
        HostId self = 0;
        unsigned hosts = 2;
        HostId devices = 0;  ///< the host that has the device node
        std::vector<coherence::HomeRange> homes;
        std::vector<std::pair<uint32_t, HostId>> vcpu_hosts;  ///< number of the core, host
        coherence::Policy policy = coherence::Policy::kAdaptive;
        uint32_t hold_us = 50;
        unsigned prefetch = 8;
        unsigned first_touch = 16;
        bool pass_on = true;
        link::LeaseTimes lease;
    };

    /// All referred to outlive this. `ram` is coherent and tracks code; grants the pages homed here.
    Mesh(const Options& options, GuestRam& ram, Clock& clock, GuestPlatform& platform, MeshOwner& owner);
    ~Mesh();

    /// Before `start`. `devices`: the device node on the host that has it, null elsewhere.
    void attach(std::shared_ptr<link::Link> link, std::shared_ptr<DeviceBackend> devices);
    bool attached() const noexcept { return link_ != nullptr; }
    /// Messages flow from now on.
    void start();
    /// Waits until all hosts were heard and the clock is host 0's. False after `timeout`.
    bool joined(std::chrono::duration<double> timeout);
    /// vCPUs are about to run: the clock never turns back any more.
    void guest_runs() noexcept { follower_->guest_runs(); }
    /// Every wait of a vCPU or a device for another host ends, for good. Any thread.
    void cancel() noexcept;
    /// No vCPU runs any more. Returns when no thread of this object runs. Idempotent; not from a callback.
    void stop() noexcept;

    SharedMemory& memory() noexcept { return memory_; }
    Orders& orders() noexcept { return orders_; }
    RemoteCalls& calls() noexcept { return calls_; }
    /// Of devices on another host, whose work is done here.
    LocalDoorbells& local_doorbells() noexcept { return local_doorbells_; }
    /// The devices of another host as this host's vCPUs reach them; where this one has none.
    const std::shared_ptr<RemoteNode>& remote_node() noexcept { return remote_node_; }
    const coherence::Options& layout() const noexcept { return protocol_; }
    unsigned hosts() const noexcept { return options_.hosts; }
    HostId self() const noexcept { return options_.self; }
    /// The machine's number of this host's first vCPU: they count through the hosts.
    unsigned first_vcpu() const noexcept;
    bool has_devices() const noexcept { return options_.self == options_.devices; }
    const link::Link* link() const noexcept { return link_.get(); }
    const NodeServer* node_server() const noexcept { return node_server_.get(); }
    ClockFollower& follower() noexcept { return *follower_; }
    /// How near this host came to the end of a lease; see Lease. Any thread.
    int64_t silence_longest_ns() const noexcept { return silence_longest_.load(std::memory_order_relaxed); }
    int64_t beat_late_longest_ns() const noexcept {
        return beat_late_longest_.load(std::memory_order_relaxed);
    }

  private:
    // link::Receiver, on the protocol thread but for stamp() and what threads that wait receive
    void received(HostId from, link::Type type, uint64_t guest_tsc,
                  std::span<const uint8_t> payload) noexcept override;
    int64_t due(int64_t now_ns) noexcept override;
    uint64_t stamp() noexcept override { return clock_.tsc(); }
    void peer_lost(HostId peer, link::Loss loss) noexcept override;
    bool takes_waiting(link::Type type, uint64_t guest_tsc) noexcept override;
    void received_waiting(HostId from, link::Type type, uint64_t guest_tsc,
                          std::span<const uint8_t> payload) noexcept override;
    // MessageSender
    void send_message(HostId to, std::span<const uint8_t> message) noexcept override;
    void send_page(HostId to, std::span<const uint8_t> message,
                   std::span<const uint8_t> page) noexcept override;
    void flush(uint64_t hosts) noexcept override;
    uint64_t congested() const noexcept override { return link_ ? link_->congested() : 0; }
    bool receive_while(const std::atomic<uint32_t>& word, uint32_t value) noexcept override {
        return link_ && link_->receive_while(word, value);
    }
    void word_changed(const std::atomic<uint32_t>& word) noexcept override {
        if (link_) link_->word_changed(word);
    }
    void timer_set(int64_t due_ns) noexcept override;
    // InterruptSender
    bool send_interrupt(HostId to, std::span<const uint8_t> payload) noexcept override;

    void obey(const link::Lease::Orders& orders, int64_t now_ns) noexcept;
    void break_up(const Breach& breach) noexcept;
    void note_joined(int64_t now_ns) noexcept;

    const Options options_;
    const coherence::Options protocol_;
    Clock& clock_;
    GuestPlatform& platform_;
    MeshOwner& owner_;
    std::shared_ptr<link::Link> link_;
    SharedMemory memory_;
    Orders orders_;
    LocalDoorbells local_doorbells_;
    RemoteCalls calls_;
    std::unique_ptr<ClockFollower> follower_;
    std::shared_ptr<RemoteNode> remote_node_;
    std::shared_ptr<DeviceBackend> devices_;
    std::unique_ptr<NodeServer> node_server_;

    // The protocol thread's own.
    std::unique_ptr<link::Lease> lease_;
    bool broken_ = false;
    bool told_joined_ = false;

    /// Until this moment of the lease's clock nothing can have expired, so that a thread that waits may
    /// receive. Written by the protocol thread.
    std::atomic<int64_t> sure_until_{INT64_MIN};

    /// Copies of the lease's numbers for other threads, relaxed. Written by the protocol thread.
    std::atomic<int64_t> silence_longest_{0};
    std::atomic<int64_t> beat_late_longest_{0};

    std::mutex mutex_;  // joined_
    std::condition_variable joined_changed_;
    bool joined_ = false;
};

}  // namespace coremesh
