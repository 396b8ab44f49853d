// SPDX-License-Identifier: GPL-2.0-or-later
#include "vcpu/vcpu.hpp"

#include <pthread.h>
#include <sched.h>

#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/futex.hpp"

namespace coremesh {

namespace {

constexpr unsigned kPausesPerYield = 16;
constexpr unsigned kPausesPerYieldWithCores = 64;  // each 5 us or so of spinning
constexpr int64_t kPollNs = 30'000;

thread_local Vcpu* current_vcpu = nullptr;

}  // namespace

const cm_vcpu_ops Vcpu::kOps = {
    .service = [](void* o) -> unsigned {
        Vcpu& v = self(o);
        const uint32_t requests = v.mailbox_.peek();
        unsigned flags = requests & ~v.core_->lasting_requests() ? v.serve() : 0;
        if (v.core_->pending()) flags |= CM_SERVICE_PENDING;
        return flags;
    },
    .mmio_read = [](void* o, uint64_t gpa, unsigned size) { return self(o).mmio_read(gpa, size); },
    .mmio_write = [](void* o, uint64_t gpa, unsigned size,
                     uint64_t value) { self(o).mmio_write(gpa, size, value); },
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
                v.call_.abandon(v.engine_);
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

Vcpu::Vcpu(VcpuEnvironment& around, unsigned index, const MakeCore& make_core)
    : around_(around),
      index_(index),
      core_(make_core(*this)),
      call_(core_->engine_functions()),
      state_(core_->runs_at_start() ? State::kRunning : State::kOff) {
    std::vector<cm_ram_region> regions;
    for (const RamRegion& region : around.ram.layout().regions()) {
        regions.push_back({region.gpa, region.bytes, region.offset, region.rom, false});
    }
    static_assert(CM_PAGE_WRITABLE == static_cast<int>(Access::kWrite));
    const cm_ram_layout layout{around.ram.guest_base(), around.ram.size(), regions.data(),
                               static_cast<unsigned>(regions.size()), around.page_access()};
    char error[256] = "";
    const auto [core_ops, core] = core_->engine_ops();
    engine_ = call_.open(&kOps, this, core_ops, core, &layout, around.code_buffer_bytes, error, sizeof error);
    if (!engine_) throw std::runtime_error(std::string("vCPU ") + std::to_string(index) + ": " + error);
    core_->attach(engine_);
    if (!around.ram.layout().shadows().empty()) steer();
}

Vcpu::~Vcpu() {
    join();
    call_.close(engine_);
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
        case State::kOff:
            return core_->off_name();
        case State::kRunning:
            return "running";
        case State::kHalted:
            return "halted";
        default:
            return "stopped";
    }
}

VcpuGlance Vcpu::glance() noexcept {
    return {.vcpu = index_,
            .state = state_name(),
            .inside = inside(),
            .waits_for = waits_for_.load(std::memory_order_relaxed),
            .core = core_->glance()};
}

void Vcpu::kick() noexcept {
    counters_.kicks.fetch_add(1, std::memory_order_relaxed);
    call_.kick(engine_);
    wake();
}

void Vcpu::post_stop() noexcept {
    mailbox_.post(kRequestStop);
    kick();
}

void Vcpu::post_park() noexcept {
    mailbox_.post(kRequestPark);
    kick();
}

void Vcpu::post_steer() noexcept {
    mailbox_.post(kRequestSteer);
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
    call_.enter_thread(engine_);
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
    const cm_exit reason = call_.run(engine_);
    call_.sync_thread(engine_);
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
            return VcpuFailure{VcpuFailure::Kind::kInternalError, index_, call_.abort_text(engine_)};
        case CM_EXIT_LEFT:
            switch (core_->left()) {
                case GuestCore::Left::kGoesOn:
                    break;
                case GuestCore::Left::kOff:
                    become(State::kOff);
                    break;
                case GuestCore::Left::kReset:
                    become(State::kStopped);
                    return VcpuFailure{VcpuFailure::Kind::kReset, index_, ""};
            }
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

void Vcpu::reset() noexcept {
    core_->reset();
    become(core_->runs_at_start() ? State::kRunning : State::kOff);
    counters_.resets.fetch_add(1, std::memory_order_relaxed);
    mailbox_.post(kRequestReset);
    kick();
}

// Whether there is something for wake_up. Changes nothing: the gate may be closed, and another thread may be
// reading the state.
bool Vcpu::has_work() noexcept {
    const uint32_t requests = mailbox_.pending();
    if (requests & (kRequestStop | kRequestPages | kRequestReset)) return true;
    // Stopped by a failure: only a stop request ends it.
    return state() != State::kStopped && core_->wakes(state());
}

// Serves on the spot what does not end the sleep. Behind the gate, like guest code.
void Vcpu::wake_up() noexcept {
    if (mailbox_.pending() & kRequestStop) return;
    around_.gate.enter(inside_);
    const uint32_t requests = mailbox_.pending();
    if (requests & kRequestPages) drain_pages();
    mailbox_.take(kRequestReset);
    if (state() != State::kStopped && core_->wake(state())) become(State::kRunning);
    around_.gate.leave(inside_);
}

uint32_t Vcpu::serve() noexcept {
    uint32_t flags = 0;
    counters_.exits_kick.fetch_add(1, std::memory_order_relaxed);
    const uint32_t requests = mailbox_.pending();
    if ((requests & kRequestPages) && drain_pages()) flags |= CM_SERVICE_DROP_LAST;
    if (requests & kRequestPark) {
        mailbox_.take(kRequestPark);
        call_.sync_thread(engine_);
        around_.gate.leave(inside_);
        around_.gate.enter(inside_);
        if ((mailbox_.pending() & kRequestPages) && drain_pages()) flags |= CM_SERVICE_DROP_LAST;
    }
    // Behind the gate, where both may have been posted. The next block is looked up anew.
    if (mailbox_.take(kRequestSteer)) {
        steer();
        flags |= CM_SERVICE_DROP_LAST;
    }
    if (mailbox_.take(kRequestReset)) flags |= CM_SERVICE_LEAVE | CM_SERVICE_DROP_LAST;
    if (core_->serve() || (mailbox_.pending() & kRequestStop)) flags |= CM_SERVICE_LEAVE;
    return flags;
}

// Its request stays: at the next block head, what follows the block under way is looked up anew.
void Vcpu::follow_steering() noexcept {
    if (mailbox_.peek() & kRequestSteer) steer();
}

void Vcpu::steer() noexcept {
    const RamLayout& layout = around_.ram.layout();
    const uint64_t steering = layout.steering();
    std::array<cm_ram_region, CM_RAM_REGIONS> regions;
    const size_t count = layout.regions().size();
    for (size_t i = 0; i < count; ++i) {
        const SteeredRegion at = layout.steered(i, steering);
        regions[i] = {at.gpa, at.bytes, at.offset, at.rom, at.stores_elsewhere};
    }
    call_.steer(engine_, regions.data(), static_cast<unsigned>(count));
}

bool Vcpu::drain_pages() noexcept {
    mailbox_.take(kRequestPages);
    bool dropped = false;
    for (uint64_t page; mailbox_.next_page(page);) {
        call_.invalidate_page(engine_, page);
        counters_.code_invalidations.fetch_add(1, std::memory_order_relaxed);
        dropped = true;
    }
    // Pages that cannot be told, or not yet: all code goes.
    if (mailbox_.take_overflow() || mailbox_.entry_under_way()) {
        call_.drop_all_code(engine_);
        dropped = true;
    }
    return dropped;
}

// ---- what the engine asks
// --------------------------------------------------------------------------------------

uint64_t Vcpu::mmio_read(uint64_t gpa, unsigned size) noexcept {
    counters_.exits_mmio.fetch_add(1, std::memory_order_relaxed);
    uint64_t value;
    return core_->read_own(gpa, size, value) ? value : around_.bus.mmio_read(gpa, size);
}

void Vcpu::mmio_write(uint64_t gpa, unsigned size, uint64_t value) noexcept {
    counters_.exits_mmio.fetch_add(1, std::memory_order_relaxed);
    if (around_.ram.layout().stores_elsewhere(gpa)) {
        around_.store_elsewhere(gpa, &value, size);  // little-endian, as the guest
    } else if (!core_->write_own(gpa, size, value)) {
        around_.bus.mmio_write(gpa, size, value);
        follow_steering();  // configuration space may be there too
    }
}

void Vcpu::pause() noexcept {
    // A spinning vCPU may be waiting for one that has no host core. Where there are enough, too: a thread
    // that is woken while another one runs for a moment is put behind the spinning one, and stays there for
    // its slice of 3 ms although a core has become idle.
    if (++pauses_ % (around_.oversubscribed ? kPausesPerYield : kPausesPerYieldWithCores) != 0) return;
    counters_.yields.fetch_add(1, std::memory_order_relaxed);
    sched_yield();
}

}  // namespace coremesh
