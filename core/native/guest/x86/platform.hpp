// SPDX-License-Identifier: GPL-2.0-or-later
// The x86 part of one host: its cores, their local APICs, and the way of interrupts to and from them.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "guest/platform.hpp"
#include "guest/x86/core.hpp"
#include "guest/x86/fabric.hpp"
#include "guest/x86/interrupt_router.hpp"

namespace coremesh::x86 {

class Platform final : public GuestPlatform, private RemoteSink, private InterruptPort {
  public:
    struct Options {
        std::vector<uint32_t> apic_ids;     ///< of this host's vCPUs
        std::optional<uint32_t> bootstrap;  ///< APIC id of the bootstrap processor, when it is here
        uint32_t total_vcpus = 0;           ///< of the whole machine
        uint32_t timer_hz = 1'000'000'000;  ///< of the local APICs' timers
        std::vector<CpuDescription> cpus;   ///< one a vCPU
    };

    Platform(Options options, const PlatformParts& parts);

    // GuestPlatform
    const cm_engine_functions& engine_functions() const noexcept override { return kEngine; }
    std::unique_ptr<GuestCore> make_core(unsigned index, CoreVcpu& vcpu) override;
    void join(HostId self, unsigned hosts, const std::vector<std::pair<uint32_t, HostId>>& core_hosts,
              HostId devices, InterruptSender& sender) override;
    bool message(uint64_t address, uint32_t data) noexcept override { return fabric_.msi(address, data); }
    void received(HostId from, std::span<const uint8_t> payload) noexcept override;
    InterruptCounters counters() const noexcept override;

    /// Any thread: the lines of the 8259A and of NMI (fabric.hpp).
    Fabric& fabric() noexcept { return fabric_; }

  private:
    // RemoteSink
    void forward(const IpiMessage& message) noexcept override;
    void on_eoi(uint8_t vector) noexcept override;
    void on_extint(bool asserted) noexcept override;
    void on_nmi_line() noexcept override;
    // InterruptPort
    bool deliver(const IpiMessage& message) noexcept override { return fabric_.deliver(message); }
    void set_extint(bool asserted) noexcept override { fabric_.set_extint(asserted); }
    void pulse_nmi() noexcept override { fabric_.pulse_nmi(); }
    bool send(HostId to, std::span<const uint8_t> payload) noexcept override;

    const Options options_;
    const PlatformParts parts_;
    Fabric fabric_;
    std::optional<InterruptRouter> router_;  ///< on a machine of several hosts
    InterruptSender* sender_ = nullptr;
};

}  // namespace coremesh::x86
