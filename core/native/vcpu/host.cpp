// SPDX-License-Identifier: GPL-2.0-or-later
#include "vcpu/host.hpp"

#include <cinttypes>
#include <cstdio>
#include <thread>

#include "ram/fault_handler.hpp"
#ifdef COREMESH_HOST_SSE
#include "tcg/x86/float.h"
#endif

namespace coremesh {

Host::Host(Options options)
    : VcpuSurroundings(ram_, bus_, clock_, timers_, fabric_, gate_,
                       options.apic_ids.size() > std::thread::hardware_concurrency(), options.timer_hz),
      options_(std::move(options)),
      ram_(options_.ram_bytes, options_.low_ram_bytes, options_.protection),
      clock_(options_.tsc_hz),
      timers_(clock_),
      fabric_(*this, options_.total_vcpus) {
    if (const char* difference = cm_engine_selfcheck()) {
        throw PlatformError(std::string("the linked translator does not match its headers (") + difference +
                            "): build coremesh again from a clean tree");
    }
    const auto count = static_cast<unsigned>(options_.apic_ids.size());
    ram_.track_code(*this, count);
    VcpuSurroundings& around = *this;
    for (unsigned index = 0; index < count; ++index) {
        const uint32_t id = options_.apic_ids[index];
        CpuDescription cpu = index < options_.cpus.size() ? options_.cpus[index] : CpuDescription{};
        vcpu_list_.push_back(
            std::make_unique<Vcpu>(around, index, id, options_.bootstrap == id, std::move(cpu)));
        fabric_.attach(vcpu_list_.back()->lapic());
    }
}

Host::~Host() {
    stop();
    timers_.stop();
    vcpu_list_.clear();
    ram_.forget_code();
}

void Host::connect(std::unique_ptr<DeviceLink> node) {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kMade) throw StateError("a device node is connected before start()");
    bus_.connect(std::move(node));
}

void Host::start() {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kMade) throw StateError("this machine was started before");
    ensure_fault_handlers();
    for (auto& vcpu : vcpu_list_) vcpu->start();
    phase_ = Phase::kRunning;
}

void Host::pause() {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kPaused) return;
    if (phase_ != Phase::kRunning) throw StateError("only a running machine can be paused");
    close_gate(nullptr);
    phase_ = Phase::kPaused;
}

void Host::resume() {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kRunning) return;
    if (phase_ != Phase::kPaused) throw StateError("only a paused machine can be resumed");
    open_gate();
    phase_ = Phase::kRunning;
}

void Host::stop() {
    std::unique_lock lock(mutex_);
    if (phase_ == Phase::kStopped) return;
    const bool started = phase_ != Phase::kMade;
    for (auto& vcpu : vcpu_list_) vcpu->post_stop();
    if (phase_ == Phase::kPaused) open_gate();
    phase_ = Phase::kStopped;
    lock.unlock();
    if (started) {
        for (auto& vcpu : vcpu_list_) vcpu->join();
    }
    // The node knows this host, as its interrupt fabric and memory: without this the two would keep each
    // other.
    bus_.disconnect();
    lock.lock();
    if (!ending_) ending_ = Ending{"stopped", 0, ""};
    ended_.notify_all();
}

std::optional<Ending> Host::wait(std::chrono::duration<double> timeout) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, timeout, [this] { return ending_.has_value(); });
    return ending_;
}

void Host::require_at_rest() const {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kRunning) throw StateError("pause the machine before looking at its registers");
}

// ---- what vCPUs ask
// --------------------------------------------------------------------------------------------

void Host::close_gate(Vcpu* except) noexcept {
    gate_.close(
        [&] {
            for (auto& vcpu : vcpu_list_) {
                if (vcpu.get() != except && vcpu->inside()) vcpu->post_park();
            }
        },
        [&] {
            for (auto& vcpu : vcpu_list_) {
                if (vcpu.get() != except && vcpu->inside()) return true;
            }
            return false;
        });
}

void Host::open_gate() noexcept { gate_.open(); }

void Host::report(const Casualty& casualty) noexcept {
    cm_registers registers;
    vcpu_list_[casualty.vcpu]->registers(registers);
    {
        std::lock_guard lock(mutex_);
        if (!ending_) {
            static const char* const kinds[] = {"triple-fault", "reset", "internal-error"};
            std::string text = casualty.text;
            if (!text.empty()) text += '\n';
            ending_ =
                Ending{kinds[static_cast<int>(casualty.kind)], casualty.vcpu, text + describe(registers)};
        }
    }
    ended_.notify_all();
    // Nobody executes on after a shutdown: the others would only wait for this one.
    for (auto& vcpu : vcpu_list_) vcpu->post_stop();
}

void Host::thread_begins() noexcept {
    if (bus_.node()) bus_.node()->thread_begins();
}

void Host::thread_ends() noexcept {
    if (bus_.node()) bus_.node()->thread_ends();
}

void Host::code_written(unsigned engine, uint64_t ram_page) noexcept {
    vcpu_list_[engine]->post_code_written(ram_page);
}

bool Host::self_write(const FaultContext& fault) noexcept {
    Vcpu* vcpu = Vcpu::current();
    if (!vcpu || !fault.had_code) return false;
    const auto offset = ram_.offset_of(fault.gpa);
    if (!offset) return false;
#ifdef COREMESH_HOST_SSE
    // The kernel gave the handler an MXCSR of its own; the guest's comes back when the handler is left by a
    // jump.
    cm_float_interrupted(fault.ucontext);
#endif
    cm_engine_self_write(vcpu->engine(), fault.host_pc, *offset);
    return false;
}

void Host::on_eoi(uint8_t vector) noexcept {
    if (bus_.node()) bus_.node()->end_of_interrupt(vector);
}

std::string describe(const cm_registers& r) {
    static const char* const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"};
    std::string text;
    char line[160];
    for (int i = 0; i < 16; ++i) {
        std::snprintf(line, sizeof line, "%s=%016" PRIx64 "%c", names[i], r.gpr[i], i % 4 == 3 ? '\n' : ' ');
        text += line;
    }
    std::snprintf(line, sizeof line, "rip=%016" PRIx64 " rflags=%08" PRIx64 " efer=%" PRIx64 "\n", r.rip,
                  r.rflags, r.efer);
    text += line;
    std::snprintf(line, sizeof line,
                  "cr0=%08" PRIx64 " cr2=%016" PRIx64 " cr3=%016" PRIx64 " cr4=%08" PRIx64 "\n", r.cr0, r.cr2,
                  r.cr3, r.cr4);
    text += line;
    const struct {
        const char* name;
        const cm_segment& segment;
    } segments[] = {{"cs", r.cs}, {"ss", r.ss}, {"ds", r.ds}, {"es", r.es},
                    {"fs", r.fs}, {"gs", r.gs}, {"tr", r.tr}};
    for (const auto& [name, segment] : segments) {
        std::snprintf(line, sizeof line, "%s=%04x base=%016" PRIx64 " limit=%08x access=%03x\n", name,
                      segment.selector, segment.base, segment.limit, segment.access);
        text += line;
    }
    return text;
}

}  // namespace coremesh
