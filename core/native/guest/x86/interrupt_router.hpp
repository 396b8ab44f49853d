// SPDX-License-Identifier: GPL-2.0-or-later
// Brings interrupt messages to the hosts that they are for. No thread and no socket of its own.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/host_set.hpp"
#include "guest/interrupt_counters.hpp"
#include "guest/x86/interrupt_message.hpp"

namespace coremesh::x86 {

/// What travels. 24 bytes, little endian: 0 u8 kind, 1 u8 delivery mode, 2 u8 vector, 3 u8 flags (0 level
/// trigger, 1 assert, 2 logical, 3 wide, 4 redirect), 4 u8 shorthand, 5..7 zero, 8 u32 destination,
/// 12 u32 source, 16 u64 visited hosts of a search, one bit each.
struct InterruptFrame {
    enum class Kind : uint8_t {
        kMessage = 1,  ///< for every destination on the receiving host
        kSearch = 2,   ///< for one destination: a host without one passes it on to one not yet visited
        kExtInt = 3,   ///< the 8259A's line: level in the assert flag; from the host with the devices
        kNmi = 4,      ///< a pulse of the NMI line; from there too
    };
    static constexpr size_t kBytes = 24;

    Kind kind = Kind::kMessage;
    IpiMessage message;
    uint64_t visited = 0;

    std::array<uint8_t, kBytes> encode() const noexcept;
    /// Nothing for bytes that no host sends.
    static std::optional<InterruptFrame> decode(std::span<const uint8_t> bytes) noexcept;
};

/// What the router asks of its own host. Any thread that calls the router.
class InterruptPort {
  public:
    /// Fabric::deliver: to the local APICs of this host alone; true if any took it.
    virtual bool deliver(const IpiMessage& message) noexcept = 0;
    /// Fabric::set_extint and Fabric::pulse_nmi.
    virtual void set_extint(bool asserted) noexcept = 0;
    virtual void pulse_nmi() noexcept = 0;
    /// To another host, in order, not to be lost while that host lives; must not wait for it. False: it has
    /// gone.
    virtual bool send(HostId to, std::span<const uint8_t> payload) noexcept = 0;

  protected:
    ~InterruptPort() = default;
};

/// Routes by a table that never changes; the counters are the only words that do. Every method may be called
/// by any thread; none blocks or takes a lock.
///
/// A message to one APIC goes to its host, broadcasts and xAPIC logical destinations (which software
/// assigns) to all hosts, x2APIC logical ones to the hosts of their members. An interrupt that one of several
/// may take (lowest priority, redirection hint) stays on the host it comes from if an APIC there takes it;
/// else it is handed from host to host, and ends with the first that does.
class InterruptRouter {
  public:
    /// @param homes APIC id and host of every vCPU of the machine.
    /// @param devices the host with the devices, whose interrupts have no APIC as their source. Throws
    /// std::invalid_argument for a table
    ///              that describes none.
    InterruptRouter(HostId self, unsigned hosts, const std::vector<std::pair<uint32_t, HostId>>& homes,
                    InterruptPort& port, HostId devices = 0);

    /// RemoteSink's: this host's own destinations are served already.
    void forward(const IpiMessage& message) noexcept;
    void extint(bool asserted) noexcept;
    void nmi_line() noexcept;

    /// A message of the interrupts' kind; from the protocol thread.
    void received(HostId from, std::span<const uint8_t> payload) noexcept;

    InterruptCounters counters() const noexcept { return read_counters(counters_); }

    /// The hosts, one bit each, on which the message may have destinations; this one among them.
    uint64_t hosts_of(const IpiMessage& message) const noexcept;

  private:
    bool believable(HostId from, const InterruptFrame& frame) const noexcept;
    void search(InterruptFrame frame, unsigned start) noexcept;
    bool send(HostId to, const InterruptFrame& frame) noexcept;
    void send_to_others(uint64_t hosts, const InterruptFrame& frame) noexcept;

    HostId host_of(uint32_t apic_id) const noexcept {
        return apic_id < host_of_.size() ? host_of_[apic_id] : kNoHost;
    }

    static constexpr HostId kNoHost = 0xFF;
    static constexpr uint32_t kMostApicIds = 1u << 16;

    const HostId self_;
    const unsigned hosts_;
    const HostId devices_;
    InterruptPort& port_;
    std::vector<HostId> host_of_;  // by APIC id
    uint64_t with_vcpus_ = 0;      // hosts that have any
    std::atomic<uint32_t> turn_{0};
    InterruptAtomics counters_;
};

}  // namespace coremesh::x86
