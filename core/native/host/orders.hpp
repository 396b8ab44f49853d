// SPDX-License-Identifier: GPL-2.0-or-later
// What the host with the devices orders all hosts to do, and waits for: another steering of memory, and the
// steps of a reset.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "base/host_set.hpp"

namespace coremesh {

/// 24 bytes, little endian: u64 serial, u8 kind, seven zeros, u64 value.
struct Order {
    enum class Kind : uint8_t {
        kDone = 0,     ///< answer: `serial` was carried out; no order
        kSteer = 1,    ///< `value` is RamLayout::steering
        kPark = 2,     ///< bring all vCPUs to a halt, for a reset
        kReset = 3,    ///< power-on state for each
        kRun = 4,      ///< the reset is done
        kRestart = 5,  ///< to host 0, without an answer: a vCPU has stopped, and the machine is to be reset;
                       ///< `value` is its number on that host, and a kind of VcpuFailure in bits 63 to 32
    };
    static constexpr size_t kBytes = 24;

    uint64_t serial = 0;
    Kind kind = Kind::kDone;
    uint64_t value = 0;

    std::array<uint8_t, kBytes> encode() const noexcept;
    /// Nothing for bytes that no host sends.
    static std::optional<Order> decode(std::span<const uint8_t> bytes) noexcept;
};

/// ## State that two threads touch
///
/// Everything is under `mutex_`, which is held for a few instructions and never while an order is carried
/// out. The protocol thread carries out kSteer itself, since it waits for no vCPU; the others wait for vCPUs
/// that may want a page from it, and have a thread of their own, which is made for the first of them.
class Orders {
  public:
    /// Any thread. False: host `to` is gone.
    using Send = std::function<bool(HostId to, std::span<const uint8_t> payload)>;
    /// Carries out an order that came. The protocol thread for kSteer and kRestart, else a thread of its own.
    using Obey = std::function<void(HostId from, const Order& order)>;

    /// `leader` is the host that gives the orders: that of the devices.
    Orders(HostId self, unsigned hosts, HostId leader, Send send, Obey obey)
        : self_(self), hosts_(hosts), leader_(leader), send_(std::move(send)), obey_(std::move(obey)) {}
    ~Orders() { stop(); }

    /// The leader, any thread but the protocol thread, several at a time: returns when all other hosts have
    /// carried it out. False when the machine stops before.
    bool give(Order::Kind kind, uint64_t value = 0) noexcept;
    /// Another host, any thread: asks the leader for a reset.
    void ask_restart(uint64_t value) noexcept;
    /// The protocol thread. What makes no sense is dropped.
    void received(HostId from, std::span<const uint8_t> payload) noexcept;
    /// Every wait ends, and no other begins. Any thread.
    void cancel() noexcept;
    /// Returns when no thread of this object runs. Idempotent; not from `obey`.
    void stop() noexcept;

  private:
    void work() noexcept;
    void carry_out(HostId from, const Order& order) noexcept;

    const HostId self_;
    const unsigned hosts_;
    const HostId leader_;
    const Send send_;
    const Obey obey_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<uint64_t, uint64_t> open_;  // by serial: the hosts that have not answered, a bit each
    uint64_t serial_ = 0;
    bool cancelled_ = false;
    std::deque<Order> queue_;
    std::thread worker_;
};

}  // namespace coremesh
