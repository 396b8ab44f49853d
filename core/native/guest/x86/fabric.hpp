// SPDX-License-Identifier: GPL-2.0-or-later
// The interrupt fabric: brings messages to the local APICs that they are for.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "guest/x86/interrupt_message.hpp"
#include "guest/x86/lapic.hpp"

namespace coremesh::x86 {

/// What lies beyond this host. Any thread calls, also vCPUs in the middle of a guest instruction: must not
/// block on them.
class RemoteSink {
  public:
    /// The message has, or may have, destinations on other hosts; those on this one are served already.
    /// The receiver hands it to its own fabric's `deliver`. Shorthands keep their meaning by `source`.
    virtual void forward(const IpiMessage& message) noexcept = 0;

    /// A level-triggered vector has been ended on this host: for the I/O APICs.
    virtual void on_eoi(uint8_t vector) noexcept = 0;

    /// The 8259A's INTR and a pulse of the NMI line, for the other hosts' local APICs; those on this one have
    /// them already. Not called on a machine of one host.
    virtual void on_extint(bool asserted) noexcept = 0;
    virtual void on_nmi_line() noexcept = 0;

  protected:
    ~RemoteSink() = default;
};

/// Routes by a table that is complete before the first vCPU runs and never changes: no lock anywhere.
/// The only words that change are `turn_` (atomic, relaxed; fairness of arbitration, no meaning).
/// `send`, `deliver`, `msi`, `extint`, `nmi_line`: any thread.
class Fabric final : public ApicBus {
  public:
    /// @param total_vcpus of the whole machine; when more than are attached, the rest is behind `remote`.
    Fabric(RemoteSink& remote, uint32_t total_vcpus) noexcept : remote_(remote), total_(total_vcpus) {}

    /// Before any vCPU runs; the APIC outlives the fabric's last use. APIC IDs are unique.
    void attach(Lapic& lapic);

    /// From an ICR on this host, or a device of this host.
    void send(const IpiMessage& message) noexcept override;

    /// From another host: reaches this host's local APICs only. True if any took it; of a message for one of
    /// several, if a local APIC that takes part in arbitration was found.
    bool deliver(const IpiMessage& message) noexcept;

    /// A write of `data` to `address` as on the PC's bus (SDM 11.11). False: not an interrupt message.
    bool msi(uint64_t address, uint32_t data) noexcept;

    /// The 8259A's INTR, wired to LINT0 of every local APIC (each decides by its LVT).
    void extint(bool asserted) noexcept;

    /// A pulse of the NMI line, wired to LINT1 of every local APIC.
    void nmi_line() noexcept;

    /// The same from another host: this host's local APICs only.
    void set_extint(bool asserted) noexcept;
    void pulse_nmi() noexcept;

    void broadcast_eoi(uint8_t vector) noexcept override { remote_.on_eoi(vector); }

    std::span<Lapic* const> lapics() const noexcept { return lapics_; }

  private:
    Lapic* find(uint32_t apic_id) const noexcept {
        return apic_id < by_id_.size() ? by_id_[apic_id] : nullptr;
    }
    template <typename Visit>
    void for_each_target(const IpiMessage& message, Visit&& visit) const;
    bool stays_here(const IpiMessage& message, bool taken) const noexcept;

    RemoteSink& remote_;
    const uint32_t total_;
    std::vector<Lapic*> lapics_;  // in order of attachment
    std::vector<Lapic*> by_id_;
    alignas(64) std::atomic<uint32_t> turn_{0};
};

}  // namespace coremesh::x86
