// SPDX-License-Identifier: GPL-2.0-or-later
// What a host asks of the guest's architecture: cores for its vCPUs, and the way of interrupts to them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/host_set.hpp"
#include "base/timer_queue.hpp"
#include "bus/bus.hpp"
#include "guest/core.hpp"
#include "guest/interrupt_counters.hpp"

namespace coremesh {

/// What a host provides to its platform. Outlives it.
struct PlatformParts {
    Bus& bus;
    const Clock& clock;
    TimerQueue& timers;
};

/// The way from the platform of one host to that of another.
class InterruptSender {
  public:
    /// In order, not to be lost while that host lives; must not wait for it. False: it has gone. Any thread.
    virtual bool send_interrupt(HostId to, std::span<const uint8_t> payload) noexcept = 0;

  protected:
    ~InterruptSender() = default;
};

/// One host's part of the guest's architecture. Any thread may call what says nothing else; nothing blocks.
class GuestPlatform {
  public:
    virtual ~GuestPlatform() = default;

    /// The engine's functions, compiled for this architecture (tcg/engine.h).
    virtual const cm_engine_functions& engine_functions() const noexcept = 0;
    /// Before any vCPU runs: the core of the host's vCPU `index`. Throws std::invalid_argument for a machine
    /// that cannot be.
    virtual std::unique_ptr<GuestCore> make_core(unsigned index, CoreVcpu& vcpu) = 0;
    /// Before any vCPU runs, on a machine of several hosts: where each core is, by its number, and which host
    /// has the devices. Throws std::invalid_argument for what describes no machine.
    virtual void join(HostId self, unsigned hosts, const std::vector<std::pair<uint32_t, HostId>>& core_hosts,
                      HostId devices, InterruptSender& sender) = 0;

    /// A message-signalled interrupt: a write of `data` to `address`, as a device makes it. False: no
    /// interrupt is there.
    virtual bool message(uint64_t address, uint32_t data) noexcept = 0;
    /// What `send_interrupt` of another host's platform has sent. The protocol thread.
    virtual void received(HostId from, std::span<const uint8_t> payload) noexcept = 0;
    virtual InterruptCounters counters() const noexcept = 0;
};

using MakePlatform = std::function<std::unique_ptr<GuestPlatform>(const PlatformParts&)>;

}  // namespace coremesh
