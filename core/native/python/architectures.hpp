// SPDX-License-Identifier: GPL-2.0-or-later
// The architectures of guests that this library has.
#pragma once

#include <nanobind/nanobind.h>

#include <span>

#include "host/host.hpp"

namespace coremesh {

/// The guest's architecture for one host: how many cores it has there, and what makes its parts.
struct Platform {
    unsigned cores;
    MakePlatform make;
};

struct Architecture {
    const char* name;  ///< as core/engine.py has it
    const cm_engine_functions& engine;
    /// What makes its Platform; before the class of hosts.
    void (*bind_platform)(nanobind::module_& m);
    /// What a host does only with this architecture.
    void (*bind_host)(nanobind::class_<Host>& host);
};

/// A new architecture is a folder beside `x86`, and a name in architectures.cpp.
std::span<const Architecture* const> architectures() noexcept;

}  // namespace coremesh
