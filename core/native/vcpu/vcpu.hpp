// SPDX-License-Identifier: GPL-2.0-or-later
// One virtual CPU: an engine, a thread, a mailbox, and the core of the guest's architecture (guest/core.hpp).
//
//      runs at the start ──► running ◄─────────┐ what the core calls an interrupt
//      others ► off ───────►    │  └─► halted ─┘
//                ▲   started    │ stopped by another
//                └──────────────┘                    any state ──stop──► stopped
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "bus/bus.hpp"
#include "guest/core.hpp"
#include "ram/guest_ram.hpp"
#include "tcg/engine.h"
#include "vcpu/counters.hpp"
#include "vcpu/gate.hpp"
#include "vcpu/mailbox.hpp"

namespace coremesh {

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
    Gate& gate;
    bool oversubscribed;         ///< more vCPUs than host cores: PAUSE gives the core away now and then
    uint32_t code_buffer_bytes;  ///< of translations, for each vCPU; when it is full, all are dropped

    VcpuEnvironment(GuestRam& ram_, Bus& bus_, Gate& gate_, bool oversubscribed_, uint32_t code_buffer_bytes_)
        : ram(ram_),
          bus(bus_),
          gate(gate_),
          oversubscribed(oversubscribed_),
          code_buffer_bytes(code_buffer_bytes_) {}

    /// Around an exclusive section of `vcpu`, on its thread (gate.hpp).
    virtual void begin_exclusive(Vcpu& vcpu) noexcept = 0;
    virtual void end_exclusive(Vcpu& vcpu) noexcept = 0;
    /// A store that does not go where a load comes from (RamLayout::stores_elsewhere).
    virtual void store_elsewhere(uint64_t gpa, const void* from, unsigned size) noexcept = 0;
    /// On a machine of several hosts, in an exclusive section: the pages are writable here and stay so until
    /// release_pages, on the same thread. UINT64_MAX: no page. False: the machine stops, and nothing is held.
    virtual bool hold_pages(uint64_t first, uint64_t second) noexcept = 0;
    virtual void release_pages() noexcept = 0;
    /// See cm_vcpu_ops; called only where there is page_access().
    virtual bool transact(cm_operation operation, uint64_t ram_offset, unsigned size, const void* operand,
                          const void* expected, void* old) noexcept = 0;
    /// On a machine of several hosts an Access for each page of RAM, else null. Other threads change it.
    virtual const uint8_t* page_access() const noexcept = 0;
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
    const char* state;   ///< "running", "halted", "stopped", or what the core calls off
    bool inside;         ///< inside guest code
    uint64_t waits_for;  ///< page of RAM that its thread waits for; ~0: none
    CoreGlance core;
};

class Vcpu final : private CoreVcpu {
  public:
    using State = Activity;

    /// Opens the engine. All vCPUs of a process are made by one thread, one after the other.
    Vcpu(VcpuEnvironment& around, unsigned index, const MakeCore& make_core);
    ~Vcpu();

    // ---- any thread
    void kick() noexcept override;
    void post_stop() noexcept;
    /// Translated code on this page is out of date; async-signal-safe.
    void post_code_written(uint64_t ram_page) noexcept;
    /// Addresses of RAM lead elsewhere now (RamLayout::steering).
    void post_steer() noexcept;
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
    const cm_engine_counters& engine_counters() const noexcept { return *call_.counters_of(engine_); }
    size_t code_bytes() const noexcept { return call_.code_bytes(engine_); }
    unsigned index() const noexcept { return index_; }
    GuestCore& core() noexcept { return *core_; }

    // ---- while the vCPU is not inside guest code (before start, paused, stopped)
    /// Before start: what the vCPU does then, when it is not what it does at a machine's start.
    void begin_as(State state) noexcept { become(state); }
    /// While the gate is closed and no vCPU is inside: power-on state. When the gate opens, the bootstrap
    /// processor runs and the others wait to be started.
    void reset() noexcept;

    void start();
    void join();

    /// The vCPU whose thread this is, or null. Safe in a signal handler on a vCPU thread.
    static Vcpu* current() noexcept;
    cm_engine* engine() noexcept { return engine_; }
    const cm_engine_functions& engine_functions() const noexcept { return call_; }

  private:
    void run() noexcept;
    void run_guest() noexcept;
    void sleep_until_work() noexcept;
    bool has_work() noexcept;
    void wake_up() noexcept;
    std::optional<VcpuFailure> settle(cm_exit reason) noexcept;
    uint32_t serve() noexcept;
    bool drain_pages() noexcept;
    void steer() noexcept;
    void become(State state) noexcept { state_.store(state, std::memory_order_relaxed); }
    void wake() noexcept;

    // cm_vcpu_ops, on the vCPU's thread
    static const cm_vcpu_ops kOps;
    static Vcpu& self(void* opaque) { return *static_cast<Vcpu*>(opaque); }
    Requests& requests() noexcept override { return mailbox_; }
    void follow_steering() noexcept override;
    std::atomic<uint64_t>& port_accesses() noexcept override { return counters_.exits_io; }
    uint64_t mmio_read(uint64_t gpa, unsigned size) noexcept;
    void mmio_write(uint64_t gpa, unsigned size, uint64_t value) noexcept;
    void pause() noexcept;

    VcpuEnvironment& around_;
    const unsigned index_;

    Mailbox mailbox_;
    const std::unique_ptr<GuestCore> core_;
    const cm_engine_functions& call_;  ///< the engine's functions, compiled for the core's architecture
    cm_engine* engine_ = nullptr;

    /// Shared: 1 while the thread sleeps, or is about to. Futex word.
    alignas(64) std::atomic<uint32_t> asleep_{0};
    Gate::Inside inside_{false};
    std::atomic<uint64_t> waits_for_{kNoPage};
    std::atomic<State> state_;
    VcpuAtomics counters_;

    // The thread's own.
    unsigned pauses_ = 0;
    std::thread thread_;
};

}  // namespace coremesh
