// SPDX-License-Identifier: GPL-2.0-or-later
// One host's share of a machine: its vCPUs, its RAM, its interrupt fabric.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "guest/platform.hpp"
#include "host/mesh.hpp"
#include "vcpu/vcpu.hpp"

namespace coremesh {

/// Why a host came to rest.
struct Ending {
    /// "triple-fault", "reset" (INIT of the BSP), "internal-error", "stopped"; in a machine of several hosts
    /// "host-lost" (host 0 says which) and "fenced" (this host has lost its lease).
    std::string kind;
    unsigned vcpu = 0;
    std::string detail;
    unsigned host = 0;  ///< "host-lost": which
    /// What each vCPU did when the machine ended, before it was told to stop.
    std::vector<VcpuGlance> vcpus = {};
};

/// A call that the host's present state does not allow.
class StateError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

/// All methods may be called by any thread that is not a vCPU's.
class Host final : private VcpuEnvironment, private CodeSink, private PageSink, private MeshOwner {
  public:
    struct Options {
        RamLayout ram;
        unsigned vcpus = 0;          ///< of this host
        MakePlatform make_platform;  ///< of the guest's architecture
        uint64_t tsc_hz = 0;         ///< 0: the host's own rate
        Protection protection = Protection::automatic;
        std::optional<Mesh::Options> mesh;  ///< when the machine has other hosts
        uint32_t code_buffer_bytes = 0;     ///< of translations, for each vCPU; 0: by the host's memory
        /// A vCPU that stops by itself (GuestCore::Left::kReset, or what an engine calls shutdown) ends no
        /// other one: wait() tells of it, and a restart may follow.
        bool restarts = false;
        /// The machine's vCPUs that share this computer's cores, this host's among them, and how many cores
        /// they may use; 0: its own alone, all cores.
        unsigned neighbours = 0, cores = 0;
    };

    explicit Host(Options options);
    ~Host();

    /// The device node of this process; on host 0. Elsewhere the node is behind the link.
    void connect(std::shared_ptr<DeviceBackend> node);
    /// Several hosts: starts the traffic with them. Before start(), after connect().
    void start_link(std::shared_ptr<link::Link> link);
    /// Waits until all hosts have been heard and share one time. False at the timeout.
    bool joined(std::chrono::duration<double> timeout);

    /// DMA: copies as a coherent participant. False: not memory in one run of the file (ram_layout.hpp), ROM
    /// that would be written, or the machine stops.
    bool read_ram(uint64_t gpa, void* to, uint64_t length);
    bool write_ram(uint64_t gpa, const void* from, uint64_t length);
    /// Before start(): lays down what of an image, RAM or ROM, belongs to the pages homed here; elsewhere
    /// others do.
    bool load_ram(uint64_t gpa, const void* from, uint64_t length);
    /// A memory transaction on guest-physical memory, wherever the page is; `operation.offset` is set here.
    /// Nothing when it is not RAM within one page (of ROM: a load), or the machine stops.
    std::optional<coherence::Wide> transact_at(uint64_t gpa, coherence::Operation operation);
    /// Null on a machine of one host.
    Mesh* mesh() noexcept { return mesh_.get(); }

    Bus& bus() noexcept { return Host::bus_; }
    GuestRam& ram() noexcept { return ram_; }
    GuestPlatform& platform() noexcept { return *platform_; }

    /// All vCPUs at one moment between two instructions, and the machine's clock after it.
    struct Saved {
        uint64_t tsc = 0;
        std::vector<CoreState> vcpus;
    };
    /// While paused, or before start(). Devices must be quiet too: an interrupt of theirs that comes
    /// meanwhile is in the state or is not. Throws StateError when the machine runs or has ended.
    Saved save();
    /// Before start(), of a host made with the same vCPUs; time goes on from `saved.tsc` now. Throws
    /// StateError for a host that was started or is one of several, std::invalid_argument that names what
    /// does not fit: the host is to be thrown away then.
    void load(const Saved& saved);

    /// Steers the shadows of RAM (RamLayout::steer), on all hosts: every vCPU follows at its next block head,
    /// before it can see anything that the caller does after this. From a device, on any thread.
    void steer(uint64_t steering) noexcept;

    /// The machine's reset, on host 0, in three steps; between the first and the last no vCPU of any host
    /// runs, and RAM and registers may be set. Any thread but a vCPU's and a device's.
    /// False: the machine stops.
    bool begin_restart() noexcept;
    bool reset_vcpus() noexcept;
    bool end_restart() noexcept;

    void start();
    void pause();
    void resume();
    /// Ends all vCPU threads and returns when they are gone. Idempotent.
    void stop();
    /// The ending, or nothing after `timeout`.
    std::optional<Ending> wait(std::chrono::duration<double> timeout);

    size_t vcpus() const noexcept { return vcpu_list_.size(); }
    Vcpu& vcpu(size_t index) { return *vcpu_list_.at(index); }
    GuestCore& core(size_t index) { return vcpu_list_.at(index)->core(); }
    /// While no guest code runs. What is set before `start` is set again at each restart: the host of the
    /// bootstrap processor need not be the one that gives the orders.
    void set_registers(size_t vcpu, std::vector<uint64_t> words);
    /// Throws StateError while guest code may run.
    void require_at_rest() const;
    /// What each vCPU does at this moment. Any thread.
    std::vector<VcpuGlance> glances();
    bool paused() const noexcept { return phase_ == Phase::kPaused; }
    uint64_t tsc_hz() const noexcept { return clock_.hz(); }
    Protection protection() const noexcept { return ram_.protection(); }

  private:
    void end(Ending ending) noexcept;
    void steer_here(uint64_t steering) noexcept;
    void park_here() noexcept;
    void reset_here() noexcept;
    void run_here() noexcept;
    void stopped_by_itself(VcpuFailure::Kind kind, unsigned vcpu, HostId host) noexcept;
    enum class Phase { kMade, kRunning, kPaused, kStopped };

    // VcpuEnvironment
    void begin_exclusive(Vcpu& vcpu) noexcept override;
    void end_exclusive(Vcpu& vcpu) noexcept override;
    bool hold_pages(uint64_t first, uint64_t second) noexcept override;
    void release_pages() noexcept override;
    bool transact(cm_operation operation, uint64_t ram_offset, unsigned size, const void* operand,
                  const void* expected, void* old) noexcept override;
    const uint8_t* page_access() const noexcept override {
        return mesh_ ? mesh_->memory().access_bytes() : nullptr;
    }
    void store_elsewhere(uint64_t gpa, const void* from, unsigned size) noexcept override {
        write_ram(gpa, from, size);
    }
    void report(const VcpuFailure& failure) noexcept override;
    void thread_begins() noexcept override;
    void thread_ends() noexcept override;
    void kick_insiders(const Vcpu* except) noexcept;
    bool anybody_inside(const Vcpu* except) const noexcept;
    // CodeSink
    void code_written(unsigned engine, uint64_t ram_page) noexcept override;
    void self_write(const FaultContext& fault) noexcept override;
    // PageSink
    void page_needed(const FaultContext& fault, uint64_t ram_page, Access want) noexcept override;
    /// Where in the guest's code this thread's vCPU is (cm_engine_guest_pc); 0 on other threads.
    static uint64_t place_of(uintptr_t host_pc) noexcept;
    // MeshOwner
    void mesh_broken(const Breach& breach) noexcept override;
    void obey(HostId from, const Order& order) noexcept override;

    Options options_;
    GuestRam ram_;
    Bus bus_;
    Clock clock_;
    TimerQueue timers_;
    std::unique_ptr<GuestPlatform> platform_;
    Gate gate_;
    std::unique_ptr<Mesh> mesh_;
    std::vector<std::pair<size_t, std::vector<uint64_t>>> first_registers_;  // set before `start`
    std::vector<std::unique_ptr<Vcpu>> vcpu_list_;

    mutable std::mutex mutex_;  // what follows
    std::condition_variable ended_;
    Phase phase_ = Phase::kMade;
    bool restarting_ = false;  ///< the gate is closed for a reset, whatever the phase
    std::optional<Ending> ending_;
};

}  // namespace coremesh
