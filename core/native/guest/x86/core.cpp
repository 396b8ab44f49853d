// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/x86/core.hpp"

namespace coremesh::x86 {

namespace {

constexpr uint32_t kMsrTsc = 0x10, kMsrTscAdjust = 0x3B, kMsrApicBase = 0x1B, kMsrArchCapabilities = 0x10A,
                   kMsrTscDeadline = 0x6E0, kMsrX2apicFirst = 0x800, kMsrX2apicLast = 0x8FF;

}  // namespace

const cm_x86_core_ops Core::kOps = {
    .take_nmi = [](void* o) { return self(o).signals_.take_nmi(); },
    .take_interrupt = [](void* o) { return self(o).take_interrupt(); },
    .port_read = [](void* o, uint32_t port, unsigned size) { return self(o).read_port(port, size); },
    .port_write = [](void* o, uint32_t port, unsigned size,
                     uint32_t value) { self(o).write_port(port, size, value); },
    .read_msr = [](void* o, uint32_t msr, uint64_t* value) { return self(o).read_msr(msr, *value); },
    .write_msr = [](void* o, uint32_t msr, uint64_t value) { return self(o).write_msr(msr, value); },
    .read_cr8 = [](void* o) { return self(o).lapic_.read_cr8(); },
    .write_cr8 = [](void* o, uint64_t value) { self(o).lapic_.write_cr8(value); },
    .read_tsc = [](void* o) { return self(o).tsc(); },
    .cpuid = [](void* o, uint32_t leaf, uint32_t subleaf,
                uint32_t out[4]) { return self(o).cpuid(leaf, subleaf, out); },
};

Core::Core(CoreVcpu& vcpu, const CoreParts& parts, uint32_t apic_id, bool bootstrap, CpuDescription cpu)
    : vcpu_(vcpu),
      parts_(parts),
      bootstrap_(bootstrap),
      cpu_(std::move(cpu)),
      reset_msrs_(cpu_.msrs),
      signals_(vcpu.requests()),
      lapic_({.apic_id = apic_id, .bootstrap = bootstrap, .timer_hz = parts.timer_hz}, *this, parts.fabric,
             parts.timers),
      port_accesses_(vcpu.port_accesses()) {
    for (const CpuidLeaf& leaf : cpu_.cpuid) {
        leaves_.emplace(uint64_t{leaf.leaf} << 32 | leaf.subleaf, &leaf);
    }
}

void Core::attach(cm_engine* engine) noexcept {
    engine_ = engine;
    lapic_.reset(false);
    // What firmware would have done: the other cores are found as INIT leaves them.
    if (bootstrap_) lapic_.enter_virtual_wire();
}

void Core::reset() noexcept {
    kX86.reset(engine_);
    cpu_.msrs = reset_msrs_;
    set_tsc_adjust(
        0);  // the machine's clock goes on: a TSC that runs through a reset is one that started early
    signals_.drop_all();
    attach(engine_);
}

// ---- any thread
// ------------------------------------------------------------------------------------------------

CoreGlance Core::glance() noexcept {
    const uint32_t requests = signals_.pending();
    return {.requested = lapic_.highest_requested(),
            .line = lapic_.extint_pending(),
            .request = requests & Signals::kInit   ? "init"
                       : requests & Signals::kSipi ? "sipi"
                       : requests & Signals::kNmi  ? "nmi"
                                                   : ""};
}

void Core::post_nmi() noexcept {
    signals_.post_nmi();
    vcpu_.kick();
}

void Core::post_init() noexcept {
    signals_.post_init();
    vcpu_.kick();
}

void Core::post_sipi(uint8_t vector) noexcept {
    signals_.post_sipi(vector);
    vcpu_.kick();
}

// ---- the run loop
// ----------------------------------------------------------------------------------------------

bool Core::pending() noexcept { return (signals_.peek() & Signals::kNmi) || interrupt_waits(); }

bool Core::serve() noexcept {
    signals_.drop_sipi_unless_init();
    return signals_.pending() & Signals::kInit;
}

GuestCore::Left Core::left() noexcept {
    if (!signals_.take_init()) return Left::kGoesOn;
    // INIT of the bootstrap processor restarts the machine, and there is no firmware to go to.
    if (bootstrap_) return Left::kReset;
    kX86.init(engine_);
    lapic_.reset(true);
    return Left::kOff;
}

bool Core::ends_halt() noexcept {
    const uint32_t requests = signals_.pending();
    return (requests & Signals::kInit) || ((requests & Signals::kNmi) && !kX86.nmi_blocked(engine_)) ||
           (kX86.interrupts_enabled(engine_) && interrupt_waits());
}

bool Core::wakes(Activity activity) noexcept {
    const uint32_t requests = signals_.pending();
    if (activity == Activity::kOff) return requests & (Signals::kInit | Signals::kSipi);
    return (requests & Signals::kSipi) || ends_halt();
}

bool Core::wake(Activity activity) noexcept {
    if (activity == Activity::kOff) {
        if (signals_.take_init()) {
            lapic_.reset(true);
            signals_.take_nmi();
        }
        // An INIT that comes now wakes this thread again.
        if (!signals_.take_sipi_unless_init()) return false;
        kX86.sipi(engine_, signals_.sipi_vector());
        return true;
    }
    // Not waiting for one: dropped (SDM vol. 3A 11.4.4.1), unless it follows an INIT.
    signals_.drop_sipi_unless_init();
    return ends_halt();
}

bool Core::read_own(uint64_t gpa, unsigned size, uint64_t& value) noexcept {
    if ((gpa & ~uint64_t{0xFFF}) != lapic_.mmio_base() || !lapic_.xapic_mode()) return false;
    // Narrow reads see their part of the register (SDM vol. 3A 11.4.1 allows them no meaning).
    const uint32_t whole = lapic_.read(static_cast<uint32_t>(gpa & 0xFFC));
    value = (uint64_t{whole} >> (8 * (gpa & 3))) & all_ones(size);
    return true;
}

bool Core::write_own(uint64_t gpa, unsigned, uint64_t value) noexcept {
    if ((gpa & ~uint64_t{0xFFF}) != lapic_.mmio_base() || !lapic_.xapic_mode()) return false;
    lapic_.write(static_cast<uint32_t>(gpa & 0xFFF), static_cast<uint32_t>(value));
    return true;
}

// ---- what the engine asks
// --------------------------------------------------------------------------------------

int Core::take_interrupt() noexcept {
    const int vector = lapic_.acknowledge();
    if (vector >= 0 || !lapic_.extint_pending()) return vector;
    lapic_.extint_acknowledged();
    DeviceBackend* node = parts_.bus.node();
    return node ? node->acknowledge() : -1;
}

uint32_t Core::read_port(uint32_t port, unsigned size) noexcept {
    port_accesses_.fetch_add(1, std::memory_order_relaxed);
    return parts_.bus.port_read(port, size);
}

void Core::write_port(uint32_t port, unsigned size, uint32_t value) noexcept {
    port_accesses_.fetch_add(1, std::memory_order_relaxed);
    parts_.bus.port_write(port, size, value);
    vcpu_.follow_steering();
}

void Core::set_tsc_adjust(uint64_t adjust) noexcept {
    tsc_offset_ += adjust - tsc_adjust_;
    tsc_adjust_ = adjust;
    lapic_.set_tsc_offset(tsc_offset_);
}

int Core::read_msr(uint32_t index, uint64_t& value) noexcept {
    if (index == kMsrTsc) {
        value = tsc();
        return 1;
    }
    if (index == kMsrTscAdjust) {
        value = tsc_adjust_;
        return 1;
    }
    if (index == kMsrApicBase || index == kMsrTscDeadline ||
        (index >= kMsrX2apicFirst && index <= kMsrX2apicLast)) {
        return lapic_.read_msr(index, value) ? 1 : -1;
    }
    const auto kept = cpu_.msrs.find(index);
    if (kept == cpu_.msrs.end()) return 0;
    value = kept->second;
    return 1;
}

int Core::write_msr(uint32_t index, uint64_t value) noexcept {
    if (index == kMsrTsc) {
        // A write to the counter moves TSC_ADJUST by the same amount (SDM vol. 3B 18.17.3).
        set_tsc_adjust(tsc_adjust_ + (value - tsc()));
        return 1;
    }
    if (index == kMsrTscAdjust) {
        set_tsc_adjust(value);
        return 1;
    }
    if (index == kMsrApicBase || index == kMsrTscDeadline ||
        (index >= kMsrX2apicFirst && index <= kMsrX2apicLast)) {
        return lapic_.write_msr(index, value) ? 1 : -1;
    }
    if (index == kMsrArchCapabilities) return -1;  // read-only
    const auto kept = cpu_.msrs.find(index);
    if (kept == cpu_.msrs.end()) return 0;
    kept->second = value;
    return 1;
}

bool Core::cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) const noexcept {
    if (cpu_.cpuid.empty()) return false;
    const bool beyond = (leaf > cpu_.highest_basic && leaf < 0x4000'0000) ||
                        (leaf > cpu_.highest_hypervisor && leaf < 0x8000'0000) ||
                        leaf > cpu_.highest_extended;
    if (beyond) leaf = cpu_.highest_basic;
    bool indexed = false;
    for (uint32_t candidate : cpu_.indexed_leaves) indexed |= candidate == leaf;
    const auto found = leaves_.find(uint64_t{leaf} << 32 | (indexed ? subleaf : 0));
    out[0] = out[1] = out[2] = out[3] = 0;
    if (found != leaves_.end()) {
        for (int i = 0; i < 4; ++i) out[i] = found->second->out[i];
    } else if (leaf == 0xB) {
        out[2] = subleaf & 0xFF;
        out[3] = lapic_.apic_id();
    }
    return true;
}

}  // namespace coremesh::x86
