// SPDX-License-Identifier: GPL-2.0-or-later
// What a vCPU asks of its architecture, and what the architecture may do to the vCPU. README.md has each item
// with what it is on x86, and what it would be on arm64.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/requests.hpp"
#include "base/state_entry.h"

struct cm_engine;
struct cm_engine_functions;

namespace coremesh {

/// What a vCPU does. kOff: it waits for another to start it.
enum class Activity : uint8_t { kOff, kRunning, kHalted, kStopped };

/// What waits for a core, for people.
struct CoreGlance {
    int requested;        ///< the interrupt that comes first; -1: none
    bool line;            ///< an interrupt without a number waits: on x86 an acknowledge cycle of the 8259A
    const char* request;  ///< on x86 "nmi", "init", "sipi"; "": none
};

/// What a core is between two instructions; the machine's clock is not part of it.
struct CoreState {
    /// Words that have names.
    struct Part {
        const char* name;
        const cm_state_entry* (*entry)(size_t index);  ///< what the words are; null behind the last
        std::vector<uint64_t> words;
    };
    std::vector<Part> parts;
    /// Registers that have numbers, and what a person calls them.
    const char* numbered_name;
    std::map<uint32_t, uint64_t> numbered;
};

/// A vCPU as its core sees it.
class CoreVcpu {
  public:
    /// The core's bits in it are those from kRequestOfCore.
    virtual Requests& requests() noexcept = 0;
    /// Any thread. Brings the vCPU to `GuestCore::pending` and `serve` soon, also when it sleeps. What was
    /// posted before is seen by that look.
    virtual void kick() noexcept = 0;
    /// The vCPU's thread, within an instruction, after an access to a device: what that has changed in where
    /// addresses lead is true for the next access.
    virtual void follow_steering() noexcept = 0;
    /// Where a core with I/O ports counts their accesses.
    virtual std::atomic<uint64_t>& port_accesses() noexcept = 0;

  protected:
    ~CoreVcpu() = default;
};

/// One core: its interrupts, its clock, its system registers. All is called on the vCPU's thread, or while
/// that thread rests, unless it says otherwise. These are the calls of the run loop, of an interrupt and of a
/// device access; what a guest instruction asks goes through the table of `engine_ops` without a detour.
class GuestCore {
  public:
    /// A table of functions, and the first argument of each; tcg/<target>/engine.h declares its type.
    struct EngineOps {
        const void* table;
        void* opaque;
    };

    virtual ~GuestCore() = default;

    /// Requests that may stay posted while the core runs on, because it cannot take them now.
    virtual uint32_t lasting_requests() const noexcept = 0;
    virtual EngineOps engine_ops() noexcept = 0;
    /// The engine's functions, compiled for this architecture (tcg/engine.h).
    virtual const cm_engine_functions& engine_functions() const noexcept = 0;
    /// Once, before anything else but engine_ops: the engine is open, in its power-on state. It outlives
    /// this.
    virtual void attach(cm_engine* engine) noexcept = 0;

    /// Any thread. Whether the core runs when the machine starts.
    virtual bool runs_at_start() const noexcept = 0;
    /// Whether an interrupt waits, deliverable or not. At each look of the main loop: a few loads.
    virtual bool pending() noexcept = 0;
    /// While the vCPU's thread waits at the gate: power-on state, as after attach; all that waited is gone.
    virtual void reset() noexcept = 0;
    /// Running, after a kick: drops requests that find a running core. True: leave the engine, for `left`.
    virtual bool serve() noexcept = 0;
    enum class Left { kGoesOn, kOff, kReset };
    /// The engine was left because `serve` said so. kReset: the machine restarts.
    virtual Left left() noexcept = 0;
    /// Halted or off: whether there is something for `wake`. Changes nothing.
    virtual bool wakes(Activity activity) noexcept = 0;
    /// The same, and takes it. True: the core runs now.
    virtual bool wake(Activity activity) noexcept = 0;

    /// An access to an address without memory. False: it is not the core's own, and goes to the bus.
    virtual bool read_own(uint64_t gpa, unsigned size, uint64_t& value) noexcept = 0;
    virtual bool write_own(uint64_t gpa, unsigned size, uint64_t value) noexcept = 0;

    /// Any thread: what waits for the core at this moment, and what it is called when it is off.
    virtual CoreGlance glance() noexcept = 0;
    virtual const char* off_name() const noexcept = 0;
    /// Any thread: its number among the machine's, and how many interrupt messages it has sent.
    virtual uint32_t id() const noexcept = 0;
    virtual uint64_t messages_sent() const noexcept = 0;

    // ---- while the vCPU is not inside guest code (before start, paused, stopped)

    /// The registers that a person or a loader sees: what they are, null behind the last, and their words.
    virtual const cm_state_entry* register_entry(size_t index) const noexcept = 0;
    virtual void registers(uint64_t* words) const = 0;
    /// Throws std::invalid_argument, and changes nothing, for a word that no register holds.
    virtual void set_registers(const uint64_t* words) = 0;
    virtual CoreState save(Activity activity) = 0;
    /// Before start, of a core just made; returns what it does. The machine's clock is set already. Throws
    /// std::invalid_argument that names the word which does not fit.
    virtual Activity load(const CoreState& state) = 0;
};

/// Makes the core of a vCPU, which outlives it.
using MakeCore = std::function<std::unique_ptr<GuestCore>(CoreVcpu&)>;

inline size_t register_words(const GuestCore& core) noexcept {
    size_t words = 0;
    for (size_t i = 0; const cm_state_entry* entry = core.register_entry(i); ++i) {
        words += cm_state_words(entry);
    }
    return words;
}

}  // namespace coremesh
