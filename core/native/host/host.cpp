// SPDX-License-Identifier: GPL-2.0-or-later
#include "host/host.hpp"

#include <algorithm>
#include <cstring>
#include <thread>
#include <unistd.h>

#include "bus/device_meter.hpp"
#include "ram/fault_handler.hpp"

namespace coremesh {
namespace {

/// With at most this number of vCPUs a core, any number of timers is served.
constexpr size_t kFew = 4;
/// Timer interrupts a second that more of them are served: ten vCPUs a core that Linux ticks at 250 Hz. Where
/// hundreds share the caches one costs 30 to 60 us.
constexpr uint64_t kTimersPerCore = 2500;

unsigned cores_of(const Host::Options& options) {
    return std::max(options.cores != 0 ? options.cores : std::thread::hardware_concurrency(), 1U);
}

/// With those of the machine's other hosts on this computer.
uint64_t vcpus_around(const Host::Options& options) { return std::max(options.neighbours, options.vcpus); }

/// This host's part of what the computer serves.
uint64_t timers_per_second(const Host::Options& options) {
    const uint64_t cores = cores_of(options), vcpus = vcpus_around(options);
    if (vcpus <= kFew * cores) return 0;
    return std::max<uint64_t>(kTimersPerCore * cores * options.vcpus / vcpus, 1);
}

/// A full buffer is emptied and what is in use is translated again: some 15 MiB for a kernel and a shell, 200
/// for a distribution up to its login. A buffer holds all of that where an eighth of the host's memory, which
/// is for all of its vCPUs together, is enough. What was never filled takes no memory.
constexpr uint64_t kLeastCodeBuffer = 32 << 20, kMostCodeBuffer = 512 << 20;

uint32_t code_buffer_size(const Host::Options& options) {
    if (options.code_buffer_bytes) return options.code_buffer_bytes;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    const uint64_t memory = pages > 0 && page > 0 ? uint64_t(pages) * uint64_t(page) : 0;
    const uint64_t share = memory / 8 / std::max(options.vcpus, 1U);
    return static_cast<uint32_t>(std::clamp(share, kLeastCodeBuffer, kMostCodeBuffer));
}

}  // namespace

Host::Host(Options options)
    : VcpuEnvironment(ram_, bus_, gate_, vcpus_around(options) > cores_of(options),
                      code_buffer_size(options)),
      options_(std::move(options)),
      ram_(options_.ram, options_.protection, options_.mesh.has_value()),
      clock_(options_.tsc_hz, 0, options_.mesh.has_value()),
      timers_(clock_, timers_per_second(options_)),
      platform_(options_.make_platform(PlatformParts{bus_, clock_, timers_})) {
    if (const char* difference = platform_->engine_functions().selfcheck()) {
        throw PlatformError(std::string("the linked translator does not match its headers (") + difference +
                            "): build coremesh again from a clean tree");
    }
    // A host may have the devices alone; the table has room for one engine at least.
    ram_.track_code(*this, std::max(options_.vcpus, 1U));
    if (options_.mesh) {
        MeshOwner& owner = *this;
        mesh_ = std::make_unique<Mesh>(*options_.mesh, ram_, clock_, *platform_, owner);
        ram_.set_page_sink(this);
        if (!mesh_->has_devices()) bus_.connect(mesh_->remote_node());
    }
    VcpuEnvironment& around = *this;
    for (unsigned index = 0; index < options_.vcpus; ++index) {
        vcpu_list_.push_back(std::make_unique<Vcpu>(
            around, index, [&](CoreVcpu& vcpu) { return platform_->make_core(index, vcpu); }));
    }
}

Host::~Host() {
    stop();
    timers_.stop();
    vcpu_list_.clear();
    mesh_.reset();
    ram_.forget_code();
}

void Host::connect(std::shared_ptr<DeviceBackend> node) {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kMade) throw StateError("a device node is connected before start()");
    bus_.connect(std::move(node));
}

void Host::start_link(std::shared_ptr<link::Link> link) {
    std::lock_guard lock(mutex_);
    if (!mesh_ || phase_ != Phase::kMade || mesh_->attached()) {
        throw StateError("a link is started once, before start(), and only on a machine of several hosts");
    }
    ensure_fault_handlers();
    mesh_->attach(std::move(link), mesh_->has_devices() ? bus_.shared_node() : nullptr);
    mesh_->start();
}

bool Host::joined(std::chrono::duration<double> timeout) { return !mesh_ || mesh_->joined(timeout); }

Host::Saved Host::save() {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kRunning) throw StateError("pause the machine before saving its state");
    if (phase_ == Phase::kStopped || ending_)
        throw StateError("the machine has ended: there is nothing to go on");
    Saved saved;
    for (auto& vcpu : vcpu_list_) saved.vcpus.push_back(vcpu->core().save(vcpu->state()));
    saved.tsc = clock_.tsc();  // last: no event of the state is later
    return saved;
}

void Host::load(const Saved& saved) {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kMade || mesh_) {
        throw StateError("a state is loaded before start(), and into a machine of one host");
    }
    if (saved.vcpus.size() != vcpu_list_.size()) throw std::invalid_argument("vcpus");
    clock_.set(saved.tsc);
    for (size_t i = 0; i < vcpu_list_.size(); ++i) vcpu_list_[i]->begin_as(core(i).load(saved.vcpus[i]));
}

void Host::start() {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kMade) throw StateError("this machine was started before");
    if (mesh_) {
        if (!mesh_->joined(std::chrono::seconds(0))) {
            throw StateError("the other hosts were not heard yet: wait for joined() before start()");
        }
        mesh_->guest_runs();
    }
    ensure_fault_handlers();
    for (auto& vcpu : vcpu_list_) vcpu->start();
    phase_ = Phase::kRunning;
}

void Host::pause() {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kPaused) return;
    if (restarting_ && phase_ == Phase::kRunning) {  // the gate is closed, and stays so after the reset
        phase_ = Phase::kPaused;
        return;
    }
    if (phase_ != Phase::kRunning) throw StateError("only a running machine can be paused");
    gate_.pause([this] { kick_insiders(nullptr); }, [this] { return anybody_inside(nullptr); });
    phase_ = Phase::kPaused;
}

void Host::resume() {
    std::lock_guard lock(mutex_);
    if (phase_ == Phase::kRunning) return;
    if (phase_ != Phase::kPaused) throw StateError("only a paused machine can be resumed");
    if (!restarting_) gate_.end_pause();
    phase_ = Phase::kRunning;
}

void Host::stop() {
    std::unique_lock lock(mutex_);
    if (phase_ == Phase::kStopped) return;
    const bool started = phase_ != Phase::kMade;
    for (auto& vcpu : vcpu_list_) vcpu->post_stop();
    if (mesh_) mesh_->cancel();  // a vCPU that waits for another host sees the request now
    if (phase_ == Phase::kPaused || restarting_) gate_.end_pause();
    phase_ = Phase::kStopped;
    lock.unlock();
    if (started) {
        for (auto& vcpu : vcpu_list_) vcpu->join();
    }
    if (mesh_) mesh_->stop();
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
    if (phase_ == Phase::kRunning && !restarting_) {
        throw StateError("pause the machine before looking at its registers");
    }
}

// ---- memory that is steered, and the reset
// -------------------------------------------------------------------------

void Host::steer_here(uint64_t steering) noexcept {
    ram_.steer(steering);
    for (auto& vcpu : vcpu_list_) vcpu->post_steer();
}

void Host::steer(uint64_t steering) noexcept {
    steer_here(steering);
    if (mesh_ && mesh_->attached()) mesh_->orders().give(Order::Kind::kSteer, steering);
}

void Host::park_here() noexcept {
    {
        const std::lock_guard lock(mutex_);
        if (restarting_ || phase_ == Phase::kStopped) return;
        restarting_ = true;
        if (phase_ != Phase::kRunning) return;
    }
    // Without the lock: a vCPU may wait for a page, and the end of that wait be told under it.
    gate_.pause([this] { kick_insiders(nullptr); }, [this] { return anybody_inside(nullptr); });
}

void Host::reset_here() noexcept {
    for (auto& vcpu : vcpu_list_) vcpu->reset();
    for (const auto& [vcpu, words] : first_registers_) core(vcpu).set_registers(words.data());
}

void Host::set_registers(size_t vcpu, std::vector<uint64_t> words) {
    core(vcpu).set_registers(words.data());
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::kMade) first_registers_.emplace_back(vcpu, std::move(words));
}

void Host::run_here() noexcept {
    const std::lock_guard lock(mutex_);
    if (!restarting_) return;
    restarting_ = false;
    if (ending_ && (ending_->kind == "triple-fault" || ending_->kind == "reset")) ending_.reset();
    if (phase_ == Phase::kRunning) gate_.end_pause();
}

bool Host::begin_restart() noexcept {
    park_here();
    return !mesh_ || mesh_->orders().give(Order::Kind::kPark);
}

bool Host::reset_vcpus() noexcept {
    reset_here();
    return !mesh_ || mesh_->orders().give(Order::Kind::kReset);
}

bool Host::end_restart() noexcept {
    const bool done = !mesh_ || mesh_->orders().give(Order::Kind::kRun);
    run_here();
    return done;
}

void Host::obey(HostId from, const Order& order) noexcept {
    switch (order.kind) {
        case Order::Kind::kSteer:
            return steer_here(order.value);
        case Order::Kind::kPark:
            return park_here();
        case Order::Kind::kReset:
            return reset_here();
        case Order::Kind::kRun:
            return run_here();
        case Order::Kind::kRestart: {
            const bool faulted = order.value >> 32 == static_cast<uint64_t>(VcpuFailure::Kind::kTripleFault);
            stopped_by_itself(faulted ? VcpuFailure::Kind::kTripleFault : VcpuFailure::Kind::kReset,
                              static_cast<unsigned>(order.value), from);
            return;
        }
        case Order::Kind::kDone:
            return;
    }
}

void Host::stopped_by_itself(VcpuFailure::Kind kind, unsigned vcpu, HostId host) noexcept {
    end({kind == VcpuFailure::Kind::kTripleFault ? "triple-fault" : "reset", vcpu, "", host});
}

// ---- what vCPUs ask
// --------------------------------------------------------------------------------------------

void Host::kick_insiders(const Vcpu* except) noexcept {
    for (auto& vcpu : vcpu_list_) {
        if (vcpu.get() != except && vcpu->inside()) vcpu->post_park();
    }
}

bool Host::anybody_inside(const Vcpu* except) const noexcept {
    for (const auto& vcpu : vcpu_list_) {
        if (vcpu.get() != except && vcpu->inside()) return true;
    }
    return false;
}

void Host::begin_exclusive(Vcpu& vcpu) noexcept {
    gate_.begin_exclusive(
        vcpu.inside_word(), [&] { kick_insiders(&vcpu); }, [&] { return anybody_inside(&vcpu); });
}

void Host::end_exclusive(Vcpu& vcpu) noexcept {
    if (gate_.end_exclusive(vcpu.inside_word())) vcpu.post_park();
}

/// The first reason stays. What the vCPUs do is looked at now: after this they are told to stop.
void Host::end(Ending ending) noexcept {
    {
        std::lock_guard lock(mutex_);
        if (!ending_) {
            ending.vcpus = glances();
            ending_ = std::move(ending);
        }
    }
    ended_.notify_all();
}

std::vector<VcpuGlance> Host::glances() {
    std::vector<VcpuGlance> all;
    for (auto& vcpu : vcpu_list_) all.push_back(vcpu->glance());
    return all;
}

void Host::report(const VcpuFailure& failure) noexcept {
    static const char* const kinds[] = {"triple-fault", "reset", "internal-error"};
    const HostId self = mesh_ ? mesh_->self() : HostId{0};
    if (options_.restarts && failure.kind != VcpuFailure::Kind::kInternalError) {
        if (!mesh_ || mesh_->has_devices()) return stopped_by_itself(failure.kind, failure.vcpu, self);
        return mesh_->orders().ask_restart(uint64_t(failure.kind) << 32 | failure.vcpu);
    }
    end({kinds[static_cast<int>(failure.kind)], failure.vcpu, failure.text, self});
    // After a triple fault no vCPU may continue: the others would only wait for this one.
    for (auto& vcpu : vcpu_list_) vcpu->post_stop();
}

// ---- several hosts
// -------------------------------------------------------------------------------------------------

namespace {

coherence::Operation::Kind kind_of(cm_operation operation) noexcept {
    using Kind = coherence::Operation::Kind;
    switch (operation) {
        case CM_OPERATION_COMPARE_SWAP:
            return Kind::kCompareSwap;
        case CM_OPERATION_EXCHANGE:
            return Kind::kExchange;
        case CM_OPERATION_ADD:
            return Kind::kAdd;
        case CM_OPERATION_AND:
            return Kind::kAnd;
        case CM_OPERATION_OR:
            return Kind::kOr;
        case CM_OPERATION_XOR:
            break;
    }
    return Kind::kXor;
}

}  // namespace

uint64_t Host::place_of(uintptr_t host_pc) noexcept {
    Vcpu* const vcpu = Vcpu::current();
    return vcpu ? vcpu->engine_functions().guest_pc(vcpu->engine(), host_pc) : 0;
}

bool Host::hold_pages(uint64_t first, uint64_t second) noexcept {
    return !mesh_ || mesh_->memory().hold(first, second);
}

void Host::release_pages() noexcept {
    if (mesh_) mesh_->memory().release();
}

bool Host::transact(cm_operation operation, uint64_t ram_offset, unsigned size, const void* operand,
                    const void* expected, void* old) noexcept {
    const uint64_t page = ram_offset / GuestRam::kPage;
    if (mesh_->memory().here(page)) return false;
    coherence::Operation wanted;
    wanted.kind = kind_of(operation);
    wanted.size = static_cast<uint8_t>(size);
    wanted.offset = static_cast<uint16_t>(ram_offset % GuestRam::kPage);
    std::memcpy(&wanted.operand, operand, sizeof wanted.operand);
    std::memcpy(&wanted.expected, expected, sizeof wanted.expected);
    coherence::Wide found;
    Vcpu* const vcpu = Vcpu::current();
    if (vcpu) vcpu->waits_for(page);
    const bool executed = mesh_->memory().transact_elsewhere(page, wanted, found, place_of(0));
    if (vcpu) vcpu->waits_for(Vcpu::kNoPage);
    if (!executed) return false;
    std::memcpy(old, &found, sizeof found);
    return true;
}

void Host::page_needed(const FaultContext& fault, uint64_t ram_page, Access want) noexcept {
    Vcpu* const vcpu = Vcpu::current();
    const bool atomic =
        vcpu && want == Access::kWrite && vcpu->engine_functions().is_locked_operation(fault.host_pc);
    if (vcpu) vcpu->waits_for(ram_page);
    const bool here = mesh_->memory().obtain(ram_page, want, atomic, place_of(fault.host_pc));
    if (here && vcpu) vcpu->waits_for(Vcpu::kNoPage);
    // The machine stops: the page will never come, and the instruction cannot be finished.
    if (here || !vcpu) return;
    vcpu->engine_functions().interrupted(fault.ucontext);
    vcpu->engine_functions().abandon(vcpu->engine());
}

void Host::mesh_broken(const Breach& breach) noexcept {
    end({breach.fenced ? "fenced" : "host-lost", 0, breach.reason, breach.host});
    for (auto& vcpu : vcpu_list_) vcpu->post_stop();
}

bool Host::read_ram(uint64_t gpa, void* to, uint64_t length) {
    if (!mesh_ || length == 0) return ram_.read(gpa, to, length);
    const auto offset = ram_.offset_of(gpa, length);
    return offset && mesh_->memory().read(*offset, to, length);
}

bool Host::write_ram(uint64_t gpa, const void* from, uint64_t length) {
    if (!mesh_ || length == 0) return ram_.write(gpa, from, length);
    const auto offset = ram_.writable_offset_of(gpa, length);
    return offset && mesh_->memory().write(*offset, from, length);
}

bool Host::load_ram(uint64_t gpa, const void* from, uint64_t length) {
    if (!mesh_ || length == 0) return ram_.load(gpa, from, length);
    const auto offset = ram_.offset_of(gpa, length);
    if (!offset) return false;
    for (const coherence::HomeRange& range : mesh_->layout().homes) {
        if (range.host != mesh_->self()) continue;
        const uint64_t first = std::max(*offset, range.first * GuestRam::kPage);
        const uint64_t end = std::min(*offset + length, range.end * GuestRam::kPage);
        if (first >= end) continue;
        const auto* bytes = static_cast<const uint8_t*>(from) + (first - *offset);
        if (!mesh_->memory().write(first, bytes, end - first)) return false;
    }
    return true;
}

std::optional<coherence::Wide> Host::transact_at(uint64_t gpa, coherence::Operation operation) {
    const auto offset = operation.kind == coherence::Operation::Kind::kLoad
                            ? ram_.offset_of(gpa, operation.size)
                            : ram_.writable_offset_of(gpa, operation.size);
    operation.offset = static_cast<uint16_t>(gpa % GuestRam::kPage);
    if (!offset || !coherence::valid(operation)) return std::nullopt;
    if (!mesh_) {
        ram_.code_written_by_host(gpa, operation.size);
        const coherence::Wide old =
            coherence::execute(operation, ram_.protocol_base() + (*offset & ~(GuestRam::kPage - 1)));
        ram_.code_written_by_host(gpa, operation.size);
        return old;
    }
    coherence::Wide old;
    if (!mesh_->memory().transact(*offset / GuestRam::kPage, operation, old)) return std::nullopt;
    return old;
}

void Host::thread_begins() noexcept {
    if (const Vcpu* const vcpu = Vcpu::current()) {
        // To the devices of this process a vCPU has the machine's number; to another host's, that of its
        // lane.
        thread_vcpu = vcpu->index() + (mesh_ && mesh_->has_devices() ? mesh_->first_vcpu() : 0);
    }
    if (bus_.node()) bus_.node()->thread_begins();
}

void Host::thread_ends() noexcept {
    if (bus_.node()) bus_.node()->thread_ends();
}

void Host::code_written(unsigned engine, uint64_t ram_page) noexcept {
    vcpu_list_[engine]->post_code_written(ram_page);
}

void Host::self_write(const FaultContext& fault) noexcept {
    Vcpu* vcpu = Vcpu::current();
    // Also without code that was posted in this fault: on several hosts the page may have been away, and the
    // block under way was posted when it went.
    if (!vcpu) return;
    vcpu->engine_functions().interrupted(fault.ucontext);
    vcpu->engine_functions().self_write(vcpu->engine(), fault.host_pc, fault.offset, fault.ucontext);
}

}  // namespace coremesh
