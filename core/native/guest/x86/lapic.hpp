// SPDX-License-Identifier: GPL-2.0-or-later
// One local APIC (SDM vol. 3A, chapter 11), xAPIC and x2APIC, native and without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/state_entry.h"
#include "guest/x86/interrupt_message.hpp"
#include "guest/x86/lapic_timer.hpp"
#include "guest/x86/vector_bitmap.hpp"

namespace coremesh::x86 {

/// What a local APIC asks of its vCPU. Any thread calls; nothing here may block or call back into the APIC.
class VcpuPort {
  public:
    /// Something may be deliverable: look at `Lapic::highest_pending` and `extint_pending` at the next block
    /// head, also if asleep in HLT. What the caller wrote before `kick` must be visible to that look.
    /// A sleeper that says so, seq_cst, before it looks, and a `kick` that reads that, seq_cst, are enough.
    virtual void kick() noexcept = 0;
    virtual void post_nmi() noexcept = 0;
    virtual void post_init() noexcept = 0;
    virtual void post_sipi(uint8_t vector) noexcept = 0;

  protected:
    ~VcpuPort() = default;
};

/// What a local APIC sends out. Called on the vCPU's thread.
class ApicBus {
  public:
    virtual void send(const IpiMessage& message) noexcept = 0;
    virtual void broadcast_eoi(uint8_t vector) noexcept = 0;

  protected:
    ~ApicBus() = default;
};

struct LapicOptions {
    uint32_t apic_id = 0;
    bool bootstrap = false;                 ///< the BSP flag of IA32_APIC_BASE
    uint64_t timer_hz = 1'000'000'000;      ///< input clock of the timer; CPUID leaf 15H tells the guest
    unsigned physical_address_bits = 40;    ///< MAXPHYADDR: above it, IA32_APIC_BASE bits are reserved
    bool eoi_broadcast_suppression = true;  ///< version register bit 24: SVR bit 12 exists
};

/// What a local APIC is between two instructions of its vCPU. The mode of the timer is in its LVT entry, the
/// processor priority follows from the task priority and the ISR.
struct LapicState {
    uint64_t apic_id, apic_base, task_priority, spurious, error_status, errors, command;
    uint64_t logical_destination, destination_format;
    uint64_t lvt[6];  ///< timer, thermal, performance, LINT0, LINT1, error
    uint64_t irr[4], isr[4], tmr[4];
    uint64_t lint0, lint1, extint_message;
    uint64_t timer_running, timer_initial, timer_divide, timer_first;
    uint64_t timer_start;         ///< machine TSC
    uint64_t timer_tsc_deadline;  ///< the vCPU's TSC
    uint64_t timer_due;           ///< machine TSC of the next expiry, or 0

    /// The words above by name; null behind the last.
    static const cm_state_entry* entry(size_t index) noexcept;
};

/// A local APIC of one vCPU.
///
/// Two kinds of callers: methods under "vCPU thread" are called only by the thread that runs this vCPU (or
/// while it does not run); methods under "any thread" by any thread at any time.
///
/// ## State that two threads touch
///
///  - `irr_`: any thread sets, the vCPU takes. VectorBitmap's own rule.
///  - `tmr_`: any thread, before it sets `irr_`, whose release publishes it. Atomic by the word.
///  - `accepts_`: the vCPU writes. Senders read it relaxed: on a bus, too, a message may meet the
///    state of a moment ago.
///  - `base_`, `dfr_`, `ldr_`: the vCPU writes; the fabric reads them relaxed to find destinations.
///  - `task_priority_`, `processor_priority_`: the vCPU writes; relaxed, a hint for arbitration.
///  - `lvt_` and `pin_`: seq_cst. Any thread changes a pin and then reads the LVT; the vCPU changes
///    the LVT and then reads the pin: one of the two sees the other. LINT0's remote IRR bit is set
///    by the thread that moved the pin.
///  - `extint_message_`: any thread sets, the vCPU clears. Atomic.
///  - `errors_`: any thread sets bits, the vCPU takes all. Atomic.
///  - `timer_`: see LapicTimer; only its expiry runs on another thread.
///
/// Everything else is the vCPU thread's own. Whenever a vector becomes deliverable, by arrival, end of
/// interrupt, a lower task priority or an unmasked pin, `VcpuPort::kick` is called after it; also when the
/// vCPU itself was the cause.
///
/// The MMIO window's base can be changed by IA32_APIC_BASE and is remembered (`mmio_base`), but the window
/// does not move unless the owner of the address map asks for it.
class Lapic final : private LapicTimer::Listener {
  public:
    Lapic(const LapicOptions& options, VcpuPort& port, ApicBus& bus, TimerQueue& timers);

    Lapic(const Lapic&) = delete;
    Lapic& operator=(const Lapic&) = delete;

    // ---- any thread -------------------------------------------------------------------------------------

    /// A message that has been found to be for this APIC. Dropped where the SDM says so.
    void accept(DeliveryMode mode, uint8_t vector, Trigger trigger) noexcept;

    /// The LINT0 (0) or LINT1 (1) pin: true = asserted.
    void set_pin(unsigned pin, bool asserted) noexcept;

    uint32_t apic_id() const noexcept { return options_.apic_id; }

    /// Does this APIC answer to the destination (SDM 11.6.2, 11.12.10)? Shorthands are the fabric's matter.
    bool matches(const IpiMessage& message) const noexcept;

    /// Would a fixed message be accepted? (Candidates of lowest-priority arbitration, 11.6.2.4.)
    bool accepts_fixed() const noexcept { return accepts_.load(std::memory_order_relaxed) == kAcceptsAll; }

    /// Task priority as arbitration sees it.
    uint8_t arbitration_priority() const noexcept {
        return processor_priority_.load(std::memory_order_relaxed);
    }

    // ---- any thread, for people

    /// The highest vector in IRR, deliverable or not; -1: none.
    int highest_requested() const noexcept;

    // ---- vCPU thread: delivery ---------------------------------------------------------------------------

    /// The vector that is pending above the processor priority, or -1. One load when nothing is pending.
    int highest_pending() noexcept;

    /// The interrupt-acknowledge cycle: moves that vector from IRR to ISR and returns it, or -1.
    int acknowledge() noexcept;

    /// Does an 8259A behind LINT0 (or an ExtINT message) want an interrupt acknowledge cycle?
    bool extint_pending() const noexcept;

    /// To be called before the 8259A is asked for its vector: takes back an ExtINT *message*; the pin stays
    /// as its owner drives it.
    void extint_acknowledged() noexcept { extint_message_.store(false, std::memory_order_seq_cst); }

    // ---- vCPU thread: registers --------------------------------------------------------------------------

    /// True when the 4-KiB MMIO window answers: enabled and not in x2APIC mode.
    bool xapic_mode() const noexcept;
    bool x2apic_mode() const noexcept;
    uint64_t mmio_base() const noexcept;

    /// xAPIC registers, by offset into the window; 32 bits wide, at multiples of 16. Offsets off the grid and
    /// any access outside xAPIC mode read as zero and write nothing; reserved registers note an ESR error.
    uint32_t read(uint32_t offset) noexcept;
    void write(uint32_t offset, uint32_t value) noexcept;

    /// IA32_APIC_BASE, IA32_TSC_DEADLINE, 0x800-0x8FF. False: #GP(0). Other indices are not for here: false.
    bool read_msr(uint32_t index, uint64_t& value) noexcept;
    bool write_msr(uint32_t index, uint64_t value) noexcept;

    uint64_t read_cr8() const noexcept { return task_priority_.load(std::memory_order_relaxed) >> 4; }
    /// False: #GP(0) (a bit above 3:0 is set).
    bool write_cr8(uint64_t value) noexcept;

    /// True: state after INIT (11.4.7.3; IA32_APIC_BASE stays). False: after power-up.
    void reset(bool init) noexcept;

    /// What a PC's firmware leaves behind for an operating system: APIC on, LINT1 = NMI, and on the bootstrap
    /// processor LINT0 = ExtINT (virtual wire mode, MP specification 1.4, 3.6.2.2).
    void enter_virtual_wire() noexcept;

    /// While the vCPU does not run and no device sends. Waits for an expiry of the timer that has begun.
    void save(LapicState& state) noexcept;
    /// For a local APIC just made, whose vCPU's TSC is the machine's clock plus `tsc_offset`; the timer is
    /// armed. Null, or the name of the word that no local APIC of this ID holds; nothing was changed then.
    const char* load(const LapicState& state, uint64_t tsc_offset) noexcept;

    /// The vCPU's TSC is the machine's clock plus `offset`.
    void set_tsc_offset(uint64_t offset) noexcept { timer_.set_tsc_offset(offset); }

    /// Messages sent by this vCPU through its ICR or SELF IPI.
    uint64_t ipis_sent() const noexcept { return ipis_sent_.load(std::memory_order_relaxed); }

  private:
    enum Lvt : unsigned { kTimer, kThermal, kPerformance, kLint0, kLint1, kError, kLvtCount };

    static constexpr uint8_t kAcceptsNothing = 0, kAcceptsControl = 1, kAcceptsAll = 2;

    void on_timer_expiry() noexcept override;

    void accept_fixed(uint8_t vector, Trigger trigger) noexcept;
    void raise_error(uint32_t bit) noexcept;
    void deliver_local(Lvt entry) noexcept;
    void deliver_pin(Lvt entry, bool rising) noexcept;
    void update_priority() noexcept;
    void kick_if_deliverable() noexcept;
    void update_accepts() noexcept;
    void clear_state() noexcept;
    void end_of_interrupt() noexcept;
    int highest_in_service() const noexcept;
    uint32_t arbitration_register() noexcept;

    // Both faces end here; `reg` is the xAPIC offset >> 4, which is also the x2APIC MSR - 0x800.
    bool read_register(uint32_t reg, uint32_t& value) noexcept;
    bool write_register(uint32_t reg, uint32_t value) noexcept;
    bool read_x2apic(uint32_t reg, uint64_t& value) noexcept;
    bool write_x2apic(uint32_t reg, uint64_t value) noexcept;
    bool write_base(uint64_t value) noexcept;
    bool is_base(uint64_t value) const noexcept;
    void write_task_priority(uint8_t value) noexcept;
    void write_spurious(uint32_t value) noexcept;
    void write_lvt(Lvt entry, uint32_t value) noexcept;
    void send(uint32_t command, uint32_t destination, bool wide) noexcept;
    uint32_t logical_id() const noexcept;

    const LapicOptions options_;
    VcpuPort& port_;
    ApicBus& bus_;

    // The line that senders and the vCPU share.
    alignas(64) VectorBitmap irr_;
    std::atomic<uint8_t> accepts_{kAcceptsControl};
    std::atomic<bool> extint_message_{false};
    std::array<std::atomic<bool>, 2> pin_{};

    alignas(64) std::array<std::atomic<uint32_t>, 8> tmr_{};
    std::atomic<uint32_t> errors_{0};
    std::atomic<uint64_t> base_{0};
    std::atomic<uint32_t> dfr_{0};
    std::atomic<uint32_t> ldr_{0};
    std::array<std::atomic<uint32_t>, kLvtCount> lvt_{};
    std::atomic<uint8_t> task_priority_{0};
    std::atomic<uint8_t> processor_priority_{0};
    std::atomic<uint64_t> ipis_sent_{0};

    // The vCPU thread's own.
    alignas(64) std::array<uint64_t, 4> isr_{};
    uint32_t spurious_ = 0;
    uint32_t error_status_ = 0;
    uint64_t command_ = 0;

    LapicTimer timer_;  // last: its callback uses the rest until it is gone
};

}  // namespace coremesh::x86
