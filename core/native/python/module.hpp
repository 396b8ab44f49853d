// SPDX-License-Identifier: GPL-2.0-or-later
// The parts of the Python face, each in a file of its own.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <optional>

#include "host/host.hpp"

namespace coremesh {

/// Gives the interpreter's lock up for a call that may last, and counts the threads inside.
///
/// A thread that comes back from such a call while the interpreter ends is ended by it: before Python 3.14 by
/// unwinding its stack, and where that meets a destructor C++ ends the process instead ("terminate called
/// without an active exception"). So core/engine.py lets no thread be inside when the interpreter ends.
class Unlocked {
  public:
    Unlocked() noexcept {
        inside.fetch_add(1, std::memory_order_relaxed);
        state_ = PyEval_SaveThread();
    }
    ~Unlocked() {
        PyEval_RestoreThread(state_);
        inside.fetch_sub(1, std::memory_order_relaxed);
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

    static inline std::atomic<unsigned> inside{0};

  private:
    PyThreadState* state_;
};

/// The host's floating-point flags belong to the guest while a vCPU thread runs; Python's are its own.
class FloatGuard {
  public:
    explicit FloatGuard(const cm_engine_functions& engine) : engine_(engine), saved_(engine.leave_floats()) {}
    ~FloatGuard() { engine_.return_floats(saved_); }
    FloatGuard(const FloatGuard&) = delete;
    FloatGuard& operator=(const FloatGuard&) = delete;

  private:
    const cm_engine_functions& engine_;
    uint32_t saved_;
};

/// The interpreter's lock, for a call into Python from any native thread.
class Interpreter {
  public:
    Interpreter() {
        if (guest_floats) floats_.emplace(*guest_floats);
        gil_.emplace();
    }
    Interpreter(const Interpreter&) = delete;
    Interpreter& operator=(const Interpreter&) = delete;

    /// A thread state kept for a thread's life: making one anew at each call costs more than the call. First
    /// and last on the thread.
    static void thread_begins() {
        PyGILState_Ensure();
        kept_ = PyEval_SaveThread();
    }
    static void thread_ends() {
        PyEval_RestoreThread(kept_);
        PyGILState_Release(PyGILState_UNLOCKED);
    }

    /// On threads whose floating-point flags are a guest's: its engine.
    static inline thread_local const cm_engine_functions* guest_floats = nullptr;

  private:
    static inline thread_local PyThreadState* kept_ = nullptr;
    std::optional<FloatGuard> floats_;
    std::optional<nanobind::gil_scoped_acquire> gil_;
};

/// What the type declarations say of dictionaries that go in and out.
using AnyDict = nanobind::typed<nanobind::dict, nanobind::str, nanobind::any>;

/// links.cpp: links between hosts, alone.
void bind_link(nanobind::module_& m);
/// mesh.cpp: what a host must be told of the others; before the class of hosts.
void bind_mesh_options(nanobind::module_& m);
/// hw/native: the hot paths of devices. Before the class of hosts.
void bind_devices(nanobind::module_& m);
/// mesh.cpp: what a host does only in a machine of several.
void bind_mesh(nanobind::class_<Host>& host);
/// state.cpp: saved state, as dictionaries of numbers and of lists of numbers.
void bind_state(nanobind::class_<Host>& host);
/// post_mortem.cpp: what the vCPUs do, and the last messages of the page protocol.
void bind_post_mortem(nanobind::class_<Host>& host);
nanobind::list to_list(const std::vector<VcpuGlance>& vcpus);
/// counters.cpp: what a host counts, by name, and the table of the names.
void bind_counters(nanobind::module_& m, nanobind::class_<Host>& host);

}  // namespace coremesh
