// SPDX-License-Identifier: GPL-2.0-or-later
// One x86 core: its local APIC, its time-stamp counter, its model-specific registers, and how INIT and SIPI
// stop and start it.
//
//      power-on (BSP) ──────────────► running ◄──────┐ interrupt, NMI
//      power-on (AP) ► waits for SIPI ►  │  └─► halted ┘
//                          ▲   SIPI      │ INIT
//                          └─────────────┘
#pragma once

#include <atomic>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/clock.hpp"
#include "base/state_entry.h"
#include "bus/bus.hpp"
#include "guest/core.hpp"
#include "guest/x86/fabric.hpp"
#include "guest/x86/lapic.hpp"
#include "guest/x86/signals.hpp"
#include "tcg/x86/engine.h"

namespace coremesh::x86 {

struct CpuidLeaf {
    uint32_t leaf, subleaf;
    uint32_t out[4];
};

/// The processor's description, computed by the machine (core/x86/processors.py).
struct CpuDescription {
    std::vector<CpuidLeaf> cpuid;
    /// Leaves whose answer depends on ECX.
    std::vector<uint32_t> indexed_leaves;
    uint32_t highest_basic = 0, highest_hypervisor = 0, highest_extended = 0;
    /// MSRs kept by value, as they are after reset.
    std::unordered_map<uint32_t, uint64_t> msrs;
};

/// Of a core's saved state what is not in its registers and its local APIC.
struct CoreEvents {
    uint64_t activity_state;  ///< SDM vol. 3C 25.4.2: 0 active, 1 HLT, 3 wait-for-SIPI
    uint64_t nmi_pending, init_pending, sipi_pending, sipi_vector;
    uint64_t tsc_adjust;  ///< IA32_TSC_ADJUST: the vCPU's TSC less the machine's

    /// The words above by name; null behind the last.
    static const cm_state_entry* entry(size_t index) noexcept;
};

/// What a host's cores share. Outlives them.
struct CoreParts {
    Bus& bus;
    const Clock& clock;
    TimerQueue& timers;
    Fabric& fabric;
    uint32_t timer_hz;  ///< of the local APICs' timers
};

/// The engine's functions for this target, and those that only it has.
inline constexpr const cm_engine_functions& kEngine = cm_engine_functions_x86_64;
inline constexpr const cm_x86_functions& kX86 = cm_x86_functions_x86_64;

class Core final : public GuestCore, private VcpuPort {
  public:
    Core(CoreVcpu& vcpu, const CoreParts& parts, uint32_t apic_id, bool bootstrap, CpuDescription cpu);

    // GuestCore
    uint32_t lasting_requests() const noexcept override { return Signals::kNmi; }
    EngineOps engine_ops() noexcept override { return {&kOps, this}; }
    const cm_engine_functions& engine_functions() const noexcept override { return kEngine; }
    void attach(cm_engine* engine) noexcept override;
    bool runs_at_start() const noexcept override { return bootstrap_; }
    void reset() noexcept override;
    bool pending() noexcept override;
    bool serve() noexcept override;
    Left left() noexcept override;
    bool wakes(Activity activity) noexcept override;
    bool wake(Activity activity) noexcept override;
    bool read_own(uint64_t gpa, unsigned size, uint64_t& value) noexcept override;
    bool write_own(uint64_t gpa, unsigned size, uint64_t value) noexcept override;
    CoreGlance glance() noexcept override;
    const char* off_name() const noexcept override { return "wait-for-sipi"; }

    uint32_t id() const noexcept override { return lapic_.apic_id(); }
    uint64_t messages_sent() const noexcept override { return lapic_.ipis_sent(); }
    const cm_state_entry* register_entry(size_t index) const noexcept override;
    void registers(uint64_t* words) const override;
    void set_registers(const uint64_t* words) override;
    /// Parts "registers" (cm_engine_state_entry), "lapic" and "events"; the MSRs of CpuDescription by number.
    CoreState save(Activity activity) override;
    Activity load(const CoreState& state) override;

    Lapic& lapic() noexcept { return lapic_; }

  private:
    // VcpuPort, any thread
    void kick() noexcept override { vcpu_.kick(); }
    void post_nmi() noexcept override;
    void post_init() noexcept override;
    void post_sipi(uint8_t vector) noexcept override;

    static const cm_x86_core_ops kOps;
    static Core& self(void* core) { return *static_cast<Core*>(core); }
    int take_interrupt() noexcept;
    uint32_t read_port(uint32_t port, unsigned size) noexcept;
    void write_port(uint32_t port, unsigned size, uint32_t value) noexcept;
    int read_msr(uint32_t index, uint64_t& value) noexcept;
    int write_msr(uint32_t index, uint64_t value) noexcept;
    bool cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) const noexcept;
    void set_tsc_adjust(uint64_t adjust) noexcept;
    uint64_t tsc() const noexcept { return parts_.clock.tsc() + tsc_offset_; }
    bool interrupt_waits() noexcept { return lapic_.highest_pending() >= 0 || lapic_.extint_pending(); }
    bool ends_halt() noexcept;

    CoreVcpu& vcpu_;
    const CoreParts parts_;
    const bool bootstrap_;
    CpuDescription cpu_;
    const std::unordered_map<uint32_t, uint64_t> reset_msrs_;
    std::unordered_map<uint64_t, const CpuidLeaf*> leaves_;
    Signals signals_;
    Lapic lapic_;
    cm_engine* engine_ = nullptr;
    std::atomic<uint64_t>& port_accesses_;

    // The thread's own.
    uint64_t tsc_offset_ = 0, tsc_adjust_ = 0;
};

}  // namespace coremesh::x86
