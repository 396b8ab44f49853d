// SPDX-License-Identifier: GPL-2.0-or-later
// The device node as the vCPUs of another host reach it: a message to its host, and the answer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "bus/bus.hpp"
#include "bus/counters.hpp"
#include "bus/device_message.hpp"
#include "bus/local_doorbells.hpp"

namespace coremesh {

/// The vCPU that accesses a device sleeps until that host has answered. Only the end of an interrupt and the
/// ringing of a doorbell are posted: they are served in their place among the vCPU's requests, before
/// anything that the vCPU asks later. At most `kPosted` of one vCPU are under way; the next one waits.
/// README.md says why other writes are never posted.
///
/// ## State that two threads touch
///
///  - `Lane::waits_for`: the vCPU sets the ticket, the protocol thread clears it. seq_cst.
///  - `Lane::value`: the protocol thread, before it clears `waits_for`, which publishes it.
///  - `Lane::posted`: the vCPU adds, before it sends. `Lane::served`: the protocol thread follows. seq_cst.
///  - `Lane::word`: what a vCPU sleeps on; a thread that changes one of the above, or `cancelled_`, adds to
///  it
///    afterwards.
///  - `doorbells_`: addresses of which that host has said that a write only wakes; 0: free. A thread that
///  reads
///    an old state waits once too often, or posts once more what the device does not take for a doorbell.
///  - `Lane::taken`: whose lane it is; the thread that exchanges false for true. `Lane::next`: that thread.
class RemoteNode final : public DeviceBackend {
  public:
    /// Sends to the host with the devices. Frames of one thread arrive in order; false: it is gone. Any vCPU
    /// thread.
    using Send = std::function<bool(std::span<const uint8_t> payload)>;

    static constexpr unsigned kLanes = 256;
    static constexpr uint32_t kPosted = 16;

    /// @param here  of devices whose work is done on this host: what rings one of those is not sent. May be
    ///              null.
    explicit RemoteNode(Send send, LocalDoorbells* here = nullptr);
    ~RemoteNode() override;

    // DeviceBackend; on vCPU threads. All ones is read when the machine stops or that host has gone.
    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override;
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override;
    void end_of_interrupt(uint8_t vector) noexcept override;
    int acknowledge() noexcept override;
    void thread_begins() noexcept override;
    void thread_ends() noexcept override;

    /// A message of the devices' kind from the host with the devices. Protocol thread. What is no answer to
    /// something that was asked is counted and dropped.
    void received(std::span<const uint8_t> payload) noexcept;

    /// The machine stops: every wait ends at once, and no other begins. Any thread, for good.
    void cancel() noexcept;

    RemoteNodeCounters counters() const noexcept { return read_counters(counters_); }

  private:
    struct Lane;

    Lane* lane() noexcept;
    uint64_t ask(DeviceRequest request, uint64_t otherwise) noexcept;
    void post(DeviceRequest request) noexcept;
    bool send(const DeviceRequest& request) noexcept;
    bool is_doorbell(uint64_t address) const noexcept;
    void remember_doorbell(uint64_t address) noexcept;

    static constexpr size_t kDoorbells = 64;

    const Send send_;
    LocalDoorbells* const here_;
    const std::unique_ptr<std::array<Lane, kLanes>> lanes_;
    const uint64_t identity_;  // of this object among all that were made: threads remember it
    std::atomic<bool> cancelled_{false};
    std::array<std::atomic<uint64_t>, kDoorbells> doorbells_{};
    RemoteNodeAtomics counters_;
};

}  // namespace coremesh
