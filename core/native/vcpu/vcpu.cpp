// SPDX-License-Identifier: GPL-2.0-or-later
#include "vcpu/vcpu.hpp"

#include <pthread.h>
#include <sched.h>

#include <cstdio>
#include <stdexcept>

#include "base/futex.hpp"

namespace coremesh {

namespace {

constexpr uint32_t kMsrTsc = 0x10, kMsrTscAdjust = 0x3B, kMsrApicBase = 0x1B, kMsrArchCapabilities = 0x10A,
                   kMsrTscDeadline = 0x6E0, kMsrX2apicFirst = 0x800, kMsrX2apicLast = 0x8FF;
constexpr unsigned kPausesPerYield = 16;
constexpr int64_t kPollNs = 30'000;

thread_local Vcpu* current_vcpu = nullptr;

}  // namespace

const cm_vcpu_ops Vcpu::kOps = {
    .service = [](void* o) -> unsigned {
        Vcpu& v = self(o);
        const uint32_t requests = v.mailbox_.peek();
        unsigned flags = requests & ~kRequestNmi ? v.serve() : 0;
        if ((requests & kRequestNmi) || v.lapic_.highest_pending() >= 0 || v.lapic_.extint_pending()) {
            flags |= CM_SERVICE_PENDING;
        }
        return flags;
    },
    .take_nmi = [](void* o) -> bool {
        Vcpu& v = self(o);
        return (v.mailbox_.peek() & kRequestNmi) && v.mailbox_.take(kRequestNmi);
    },
    .take_interrupt = [](void* o) { return self(o).take_interrupt(); },
    .port_read = [](void* o, uint32_t port, unsigned size) -> uint32_t {
        self(o).counters_.exits_io.fetch_add(1, std::memory_order_relaxed);
        return self(o).around_.bus.port_read(port, size);
    },
    .port_write =
        [](void* o, uint32_t port, unsigned size, uint32_t value) {
            self(o).counters_.exits_io.fetch_add(1, std::memory_order_relaxed);
            self(o).around_.bus.port_write(port, size, value);
        },
    .mmio_read = [](void* o, uint64_t gpa, unsigned size) { return self(o).mmio_read(gpa, size); },
    .mmio_write = [](void* o, uint64_t gpa, unsigned size,
                     uint64_t value) { self(o).mmio_write(gpa, size, value); },
    .read_msr = [](void* o, uint32_t msr, uint64_t* value) { return self(o).read_msr(msr, *value); },
    .write_msr = [](void* o, uint32_t msr, uint64_t value) { return self(o).write_msr(msr, value); },
    .read_cr8 = [](void* o) { return self(o).lapic_.read_cr8(); },
    .write_cr8 = [](void* o, uint64_t value) { self(o).lapic_.write_cr8(value); },
    .read_tsc = [](void* o) { return self(o).tsc(); },
    .cpuid = [](void* o, uint32_t leaf, uint32_t subleaf,
                uint32_t out[4]) { return self(o).cpuid(leaf, subleaf, out); },
    .begin_translation = [](void* o, uint64_t page) -> bool {
        return !self(o).around_.ram.page_table()->begin_translation(self(o).index_, page);
    },
    .pause = [](void* o) { self(o).pause(); },
    .exclusive_begin =
        [](void* o, uint64_t first_page, uint64_t second_page) {
            Vcpu& v = self(o);
            v.around_.begin_exclusive(v);
            if (!v.around_.hold_pages(first_page, second_page)) {
                v.around_.end_exclusive(v);
                cm_engine_abandon(v.engine_);
            }
        },
    .exclusive_end =
        [](void* o) {
            Vcpu& v = self(o);
            v.around_.release_pages();
            v.around_.end_exclusive(v);
        },
    .transact =
        [](void* o, cm_operation operation, uint64_t ram_offset, unsigned size, const void* operand,
           const void* expected, void* old) {
            return self(o).around_.transact(operation, ram_offset, size, operand, expected, old);
        },
};

Vcpu::Vcpu(VcpuEnvironment& around, unsigned index, uint32_t apic_id, bool bootstrap, CpuDescription cpu)
    : around_(around),
      index_(index),
      bootstrap_(bootstrap),
      cpu_(std::move(cpu)),
      lapic_({.apic_id = apic_id, .bootstrap = bootstrap, .timer_hz = around.timer_hz}, *this, around.fabric,
             around.timers),
      state_(bootstrap ? State::kRunning : State::kWaitForSipi) {
    for (const CpuidLeaf& leaf : cpu_.cpuid) {
        leaves_.emplace(uint64_t{leaf.leaf} << 32 | leaf.subleaf, &leaf);
    }
    std::vector<cm_ram_region> regions;
    for (const RamRegion& region : around.ram.layout().regions()) {
        regions.push_back({region.gpa, region.bytes, region.offset, region.rom});
    }
    const cm_ram_layout layout{around.ram.guest_base(), around.ram.size(), regions.data(),
                               static_cast<unsigned>(regions.size()), around.shares_ram()};
    char error[256] = "";
    engine_ = cm_engine_open(&kOps, this, &layout, around.code_buffer_bytes, error, sizeof error);
    if (!engine_) throw std::runtime_error(std::string("vCPU ") + std::to_string(index) + ": " + error);
    lapic_.reset(false);
    // What firmware would have done: the other cores are found as INIT leaves them.
    if (bootstrap) lapic_.enter_virtual_wire();
}

Vcpu::~Vcpu() {
    join();
    cm_engine_close(engine_);
}

Vcpu* Vcpu::current() noexcept { return current_vcpu; }

// ---- any thread
// ------------------------------------------------------------------------------------------------

void Vcpu::wake() noexcept {
    // The sleeper stores 1, then looks for work; here work was posted before this exchange.
    if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(0, std::memory_order_seq_cst)) {
        futex_wake(asleep_);
    }
}

const char* Vcpu::state_name() const noexcept {
    switch (state()) {
        case State::kWaitForSipi:
            return "wait-for-sipi";
        case State::kRunning:
            return "running";
        case State::kHalted:
            return "halted";
        default:
            return "stopped";
    }
}

VcpuGlance Vcpu::glance() noexcept {
    const uint32_t requests = mailbox_.pending();
    return {.vcpu = index_,
            .state = state_name(),
            .inside = inside(),
            .waits_for = waits_for_.load(std::memory_order_relaxed),
            .requested = lapic_.highest_requested(),
            .extint = lapic_.extint_pending(),
            .request = requests & kRequestInit   ? "init"
                       : requests & kRequestSipi ? "sipi"
                       : requests & kRequestNmi  ? "nmi"
                                                 : ""};
}

void Vcpu::kick() noexcept {
    counters_.kicks.fetch_add(1, std::memory_order_relaxed);
    cm_engine_kick(engine_);
    wake();
}

void Vcpu::post_nmi() noexcept {
    mailbox_.post(kRequestNmi);
    kick();
}

void Vcpu::post_init() noexcept {
    mailbox_.post_init();
    kick();
}

void Vcpu::post_sipi(uint8_t vector) noexcept {
    mailbox_.post_sipi(vector);
    kick();
}

void Vcpu::post_stop() noexcept {
    mailbox_.post(kRequestStop);
    kick();
}

void Vcpu::post_park() noexcept {
    mailbox_.post(kRequestPark);
    kick();
}

void Vcpu::post_code_written(uint64_t ram_page) noexcept {
    mailbox_.post_page(ram_page);
    kick();
}

// ---- the thread
// ------------------------------------------------------------------------------------------------

void Vcpu::start() {
    thread_ = std::thread([this] { run(); });
}

void Vcpu::join() {
    if (thread_.joinable()) thread_.join();
}

void Vcpu::run() noexcept {
    current_vcpu = this;
    char name[16];
    std::snprintf(name, sizeof name, "vcpu%u", index_);
    pthread_setname_np(pthread_self(), name);
    around_.thread_begins();
    cm_engine_enter_thread(engine_);
    while (!(mailbox_.pending() & kRequestStop)) {
        if (state() == State::kRunning) {
            run_guest();
        } else {
            sleep_until_work();
        }
    }
    become(State::kStopped);
    around_.thread_ends();
    current_vcpu = nullptr;
}

void Vcpu::run_guest() noexcept {
    const int64_t start = Clock::monotonic_ns();
    around_.gate.enter(inside_);
    const cm_exit reason = cm_engine_run(engine_);
    cm_engine_sync_thread(engine_);
    const std::optional<VcpuFailure> failure = settle(reason);
    around_.gate.leave(inside_);
    counters_.run_ns.fetch_add(static_cast<uint64_t>(Clock::monotonic_ns() - start),
                               std::memory_order_relaxed);
    if (failure) around_.report(*failure);
}

// What an exit makes of the vCPU's state. Still inside, so that a pause finds the state with what caused it.
std::optional<VcpuFailure> Vcpu::settle(cm_exit reason) noexcept {
    switch (reason) {
        case CM_EXIT_HALT:
            counters_.exits_halt.fetch_add(1, std::memory_order_relaxed);
            become(State::kHalted);
            break;
        case CM_EXIT_SHUTDOWN:
            become(State::kStopped);
            return VcpuFailure{VcpuFailure::Kind::kTripleFault, index_, ""};
        case CM_EXIT_ABORT:
            become(State::kStopped);
            return VcpuFailure{VcpuFailure::Kind::kInternalError, index_, cm_engine_abort_text(engine_)};
        case CM_EXIT_LEFT:
            if (!mailbox_.take(kRequestInit)) break;
            if (bootstrap_) {
                // INIT of the bootstrap processor restarts the machine, and there is no firmware to go to.
                become(State::kStopped);
                return VcpuFailure{VcpuFailure::Kind::kReset, index_, ""};
            }
            cm_engine_init(engine_);
            lapic_.reset(true);
            become(State::kWaitForSipi);
            break;
    }
    return std::nullopt;
}

void Vcpu::sleep_until_work() noexcept {
    const int64_t start = Clock::monotonic_ns();
    // A sleeper on an idle core takes 50 us to wake, and what ends a HLT is often near: another vCPU's answer
    // to an interrupt. With a core for each vCPU the wait begins awake.
    if (!around_.oversubscribed && state() == State::kHalted) {
        const int64_t until = start + kPollNs;
        while (Clock::monotonic_ns() < until) {
            if (has_work()) {
                counters_.halted_ns.fetch_add(static_cast<uint64_t>(Clock::monotonic_ns() - start),
                                              std::memory_order_relaxed);
                wake_up();
                return;
            }
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }
    for (;;) {
        asleep_.store(1, std::memory_order_seq_cst);
        if (has_work()) break;
        futex_wait_until(asleep_, 1, -1);
    }
    asleep_.store(0, std::memory_order_seq_cst);
    counters_.halted_ns.fetch_add(static_cast<uint64_t>(Clock::monotonic_ns() - start),
                                  std::memory_order_relaxed);
    wake_up();
}

// Whether there is something for wake_up. Changes nothing: the gate may be closed, and another thread may be
// reading the state.
bool Vcpu::has_work() noexcept {
    const uint32_t requests = mailbox_.pending();
    if (requests & (kRequestStop | kRequestPages)) return true;
    switch (state()) {
        case State::kWaitForSipi:
            return requests & (kRequestInit | kRequestSipi);
        case State::kHalted:
            return (requests & (kRequestInit | kRequestSipi)) ||
                   ((requests & kRequestNmi) && !cm_engine_nmi_blocked(engine_)) ||
                   (cm_engine_interrupts_enabled(engine_) &&
                    (lapic_.highest_pending() >= 0 || lapic_.extint_pending()));
        default:
            return false;  // stopped by a failure: only a stop request ends it
    }
}

// Serves on the spot what does not end the sleep. Behind the gate, like guest code.
void Vcpu::wake_up() noexcept {
    if (mailbox_.pending() & kRequestStop) return;
    around_.gate.enter(inside_);
    const uint32_t requests = mailbox_.pending();
    if (requests & kRequestPages) drain_pages();
    switch (state()) {
        case State::kWaitForSipi:
            if (mailbox_.take(kRequestInit)) {
                lapic_.reset(true);
                mailbox_.take(kRequestNmi);
            }
            // An INIT that comes now wakes this thread again.
            if (mailbox_.take_sipi_unless_init()) {
                cm_engine_sipi(engine_, mailbox_.sipi_vector());
                become(State::kRunning);
            }
            break;
        case State::kHalted:
            // Not waiting for one: dropped (SDM vol. 3A 11.4.4.1), unless it follows an INIT.
            mailbox_.drop_sipi_unless_init();
            if ((requests & kRequestInit) || ((requests & kRequestNmi) && !cm_engine_nmi_blocked(engine_)) ||
                (cm_engine_interrupts_enabled(engine_) &&
                 (lapic_.highest_pending() >= 0 || lapic_.extint_pending()))) {
                become(State::kRunning);
            }
            break;
        default:
            break;
    }
    around_.gate.leave(inside_);
}

uint32_t Vcpu::serve() noexcept {
    uint32_t flags = 0;
    counters_.exits_kick.fetch_add(1, std::memory_order_relaxed);
    const uint32_t requests = mailbox_.pending();
    if ((requests & kRequestPages) && drain_pages()) flags |= CM_SERVICE_DROP_LAST;
    if (requests & kRequestPark) {
        mailbox_.take(kRequestPark);
        cm_engine_sync_thread(engine_);
        around_.gate.leave(inside_);
        around_.gate.enter(inside_);
        if ((mailbox_.pending() & kRequestPages) && drain_pages()) flags |= CM_SERVICE_DROP_LAST;
    }
    mailbox_.drop_sipi_unless_init();
    if (mailbox_.pending() & (kRequestStop | kRequestInit)) flags |= CM_SERVICE_LEAVE;
    return flags;
}

bool Vcpu::drain_pages() noexcept {
    mailbox_.take(kRequestPages);
    bool dropped = false;
    for (uint64_t page; mailbox_.next_page(page);) {
        cm_engine_invalidate_page(engine_, page);
        counters_.code_invalidations.fetch_add(1, std::memory_order_relaxed);
        dropped = true;
    }
    // Pages that cannot be told, or not yet: all code goes.
    if (mailbox_.take_overflow() || mailbox_.entry_under_way()) {
        cm_engine_drop_all_code(engine_);
        dropped = true;
    }
    return dropped;
}

// ---- what the engine asks
// --------------------------------------------------------------------------------------

int Vcpu::take_interrupt() noexcept {
    const int vector = lapic_.acknowledge();
    if (vector >= 0 || !lapic_.extint_pending()) return vector;
    lapic_.extint_acknowledged();
    DeviceBackend* node = around_.bus.node();
    return node ? node->acknowledge() : -1;
}

uint64_t Vcpu::mmio_read(uint64_t gpa, unsigned size) noexcept {
    counters_.exits_mmio.fetch_add(1, std::memory_order_relaxed);
    if ((gpa & ~uint64_t{0xFFF}) == lapic_.mmio_base() && lapic_.xapic_mode()) {
        // Narrow reads see their part of the register (SDM vol. 3A 11.4.1 allows them no meaning).
        const uint32_t value = lapic_.read(static_cast<uint32_t>(gpa & 0xFFC));
        return (uint64_t{value} >> (8 * (gpa & 3))) & all_ones(size);
    }
    return around_.bus.mmio_read(gpa, size);
}

void Vcpu::mmio_write(uint64_t gpa, unsigned size, uint64_t value) noexcept {
    counters_.exits_mmio.fetch_add(1, std::memory_order_relaxed);
    if ((gpa & ~uint64_t{0xFFF}) == lapic_.mmio_base() && lapic_.xapic_mode()) {
        lapic_.write(static_cast<uint32_t>(gpa & 0xFFF), static_cast<uint32_t>(value));
        return;
    }
    around_.bus.mmio_write(gpa, size, value);
}

void Vcpu::set_tsc_adjust(uint64_t adjust) noexcept {
    tsc_offset_ += adjust - tsc_adjust_;
    tsc_adjust_ = adjust;
    lapic_.set_tsc_offset(tsc_offset_);
}

int Vcpu::read_msr(uint32_t index, uint64_t& value) noexcept {
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

int Vcpu::write_msr(uint32_t index, uint64_t value) noexcept {
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

bool Vcpu::cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) const noexcept {
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

void Vcpu::pause() noexcept {
    // A spinning vCPU may be waiting for one that has no host core.
    if (around_.oversubscribed && ++pauses_ % kPausesPerYield == 0) sched_yield();
}

}  // namespace coremesh
