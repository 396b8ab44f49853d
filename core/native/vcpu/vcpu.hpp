// SPDX-License-Identifier: GPL-2.0-or-later
// One virtual CPU: an engine, a thread, a mailbox and a local APIC.
//
//      power-on (BSP) ──────────────► Running ◄──────┐ interrupt, NMI
//      power-on (AP) ► WaitForSipi ──►  │  └─► Halted ┘
//                          ▲   SIPI     │ INIT
//                          └────────────┘              any state ──stop──► Stopped
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.hpp"
#include "bus/bus.hpp"
#include "ram/guest_ram.hpp"
#include "tcg/engine.h"
#include "vcpu/counters.hpp"
#include "vcpu/gate.hpp"
#include "vcpu/mailbox.hpp"
#include "guest/x86/fabric.hpp"
#include "guest/x86/lapic.hpp"

namespace coremesh {

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

/// What a vCPU is between two instructions; the machine's clock is not part of it.
struct VcpuState {
    /// Beside registers and local APIC.
    struct Events {
        uint64_t activity_state;  ///< SDM vol. 3C 25.4.2: 0 active, 1 HLT, 3 wait-for-SIPI
        uint64_t nmi_pending, init_pending, sipi_pending, sipi_vector;
        uint64_t tsc_adjust;  ///< IA32_TSC_ADJUST: the vCPU's TSC less the machine's

        /// The words above by name; null behind the last.
        static const cm_state_entry* entry(size_t index) noexcept;
    };

    std::vector<uint64_t> registers;  ///< cm_engine_state_entry
    x86::LapicState lapic{};
    Events events{};
    std::map<uint32_t, uint64_t> msrs;  ///< those of CpuDescription
};

class Vcpu;

/// Why a vCPU stopped without being told to.
struct VcpuFailure {
    enum class Kind { kTripleFault, kReset, kInternalError } kind;
    unsigned vcpu;
    const char* text;
};

/// What the host provides to its vCPUs. Outlives all vCPUs.
struct VcpuEnvironment {
    GuestRam& ram;
    Bus& bus;
    const Clock& clock;
    TimerQueue& timers;
    x86::Fabric& fabric;
    Gate& gate;
    bool oversubscribed;  ///< more vCPUs than host cores: PAUSE gives the core away now and then
    uint32_t timer_hz;
    uint32_t code_buffer_bytes;  ///< of translations, for each vCPU; when it is full, all are dropped

    VcpuEnvironment(GuestRam& ram_, Bus& bus_, const Clock& clock_, TimerQueue& timers_, x86::Fabric& fabric_,
                    Gate& gate_, bool oversubscribed_, uint32_t timer_hz_, uint32_t code_buffer_bytes_)
        : ram(ram_),
          bus(bus_),
          clock(clock_),
          timers(timers_),
          fabric(fabric_),
          gate(gate_),
          oversubscribed(oversubscribed_),
          timer_hz(timer_hz_),
          code_buffer_bytes(code_buffer_bytes_) {}

    /// Around an exclusive section of `vcpu`, on its thread (gate.hpp).
    virtual void begin_exclusive(Vcpu& vcpu) noexcept = 0;
    virtual void end_exclusive(Vcpu& vcpu) noexcept = 0;
    /// On a machine of several hosts, in an exclusive section: the pages are writable here and stay so until
    /// release_pages, on the same thread. UINT64_MAX: no page. False: the machine stops, and nothing is held.
    virtual bool hold_pages(uint64_t first, uint64_t second) noexcept = 0;
    virtual void release_pages() noexcept = 0;
    /// See cm_vcpu_ops; called only if shares_ram().
    virtual bool transact(cm_operation operation, uint64_t ram_offset, unsigned size, const void* operand,
                          const void* expected, void* old) noexcept = 0;
    virtual bool shares_ram() const noexcept = 0;
    virtual void report(const VcpuFailure& failure) noexcept = 0;
    /// Around a vCPU thread's life, for what it must register elsewhere.
    virtual void thread_begins() noexcept = 0;
    virtual void thread_ends() noexcept = 0;

  protected:
    ~VcpuEnvironment() = default;
};

/// A vCPU as another thread sees it.
struct VcpuGlance {
    unsigned vcpu;
    const char* state;    ///< "running", "halted", "wait-for-sipi", "stopped"
    bool inside;          ///< inside guest code
    uint64_t waits_for;   ///< page of RAM that its thread waits for; ~0: none
    int requested;        ///< the highest vector in IRR; -1: none
    bool extint;          ///< the 8259A wants an acknowledge cycle
    const char* request;  ///< what waits in the mailbox: "nmi", "init", "sipi"; "": none of these
};

class Vcpu final : public x86::VcpuPort {
  public:
    enum class State : uint8_t { kWaitForSipi, kRunning, kHalted, kStopped };

    /// Opens the engine. All vCPUs of a process are made by one thread, one after the other.
    Vcpu(VcpuEnvironment& around, unsigned index, uint32_t apic_id, bool bootstrap, CpuDescription cpu);
    ~Vcpu();

    // ---- any thread
    void kick() noexcept override;
    void post_nmi() noexcept override;
    void post_init() noexcept override;
    void post_sipi(uint8_t vector) noexcept override;
    void post_stop() noexcept;
    /// Translated code on this page is out of date; async-signal-safe.
    void post_code_written(uint64_t ram_page) noexcept;
    /// When inside guest code: come out.
    void post_park() noexcept;
    bool inside() const noexcept { return inside_.load(std::memory_order_seq_cst); }
    Gate::Inside& inside_word() noexcept { return inside_; }
    /// What it does at this moment, for people.
    VcpuGlance glance() noexcept;
    const char* state_name() const noexcept;
    /// The RAM page that this vCPU's thread waits for, kNoPage when it goes on. The thread itself.
    void waits_for(uint64_t ram_page) noexcept { waits_for_.store(ram_page, std::memory_order_relaxed); }
    static constexpr uint64_t kNoPage = ~uint64_t{0};
    State state() const noexcept { return state_.load(std::memory_order_relaxed); }
    VcpuCounters counters() const noexcept { return read_counters(counters_); }
    const cm_engine_counters& engine_counters() const noexcept { return *cm_engine_counters_of(engine_); }
    size_t code_bytes() const noexcept { return cm_engine_code_bytes(engine_); }
    unsigned index() const noexcept { return index_; }
    x86::Lapic& lapic() noexcept { return lapic_; }

    // ---- while the vCPU is not inside guest code (before start, paused, stopped)
    void registers(cm_registers& out) const { cm_engine_get_registers(engine_, &out); }
    void set_registers(const cm_registers& in) { cm_engine_set_registers(engine_, &in); }

    VcpuState save() noexcept;
    /// Before start, of a vCPU just made. The machine's clock is set already: the local APIC's timer is
    /// armed. Throws std::invalid_argument that names the word which does not fit.
    void load(const VcpuState& state);

    void start();
    void join();

    /// The vCPU whose thread this is, or null. Safe in a signal handler on a vCPU thread.
    static Vcpu* current() noexcept;
    cm_engine* engine() noexcept { return engine_; }

  private:
    void run() noexcept;
    void run_guest() noexcept;
    void sleep_until_work() noexcept;
    bool has_work() noexcept;
    void wake_up() noexcept;
    std::optional<VcpuFailure> settle(cm_exit reason) noexcept;
    uint32_t serve() noexcept;
    bool drain_pages() noexcept;
    void become(State state) noexcept { state_.store(state, std::memory_order_relaxed); }
    void wake() noexcept;

    // cm_vcpu_ops, on the vCPU's thread
    static const cm_vcpu_ops kOps;
    static Vcpu& self(void* opaque) { return *static_cast<Vcpu*>(opaque); }
    int take_interrupt() noexcept;
    uint64_t mmio_read(uint64_t gpa, unsigned size) noexcept;
    void mmio_write(uint64_t gpa, unsigned size, uint64_t value) noexcept;
    int read_msr(uint32_t index, uint64_t& value) noexcept;
    int write_msr(uint32_t index, uint64_t value) noexcept;
    bool cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) const noexcept;
    void set_tsc_adjust(uint64_t adjust) noexcept;
    uint64_t tsc() const noexcept { return around_.clock.tsc() + tsc_offset_; }
    void pause() noexcept;

    VcpuEnvironment& around_;
    const unsigned index_;
    const bool bootstrap_;
    CpuDescription cpu_;
    std::unordered_map<uint64_t, const CpuidLeaf*> leaves_;

    Mailbox mailbox_;
    x86::Lapic lapic_;
    cm_engine* engine_ = nullptr;

    /// Shared: 1 while the thread sleeps, or is about to. Futex word.
    alignas(64) std::atomic<uint32_t> asleep_{0};
    Gate::Inside inside_{false};
    std::atomic<uint64_t> waits_for_{kNoPage};
    std::atomic<State> state_;
    VcpuAtomics counters_;

    // The thread's own.
    uint64_t tsc_offset_ = 0, tsc_adjust_ = 0;
    unsigned pauses_ = 0;
    std::thread thread_;
};

}  // namespace coremesh
