// SPDX-License-Identifier: GPL-2.0-or-later
// The parts of the Python face, each in a file of its own.
#pragma once

#include <nanobind/nanobind.h>

#include "vcpu/host.hpp"

namespace coremesh {

/// What the type declarations say of dictionaries that go in and out.
using AnyDict = nanobind::typed<nanobind::dict, nanobind::str, nanobind::any>;

/// module_link.cpp: links between hosts, alone.
void bind_link(nanobind::module_& m);
/// module_mesh.cpp: what a host must be told of the others; before the class of hosts.
void bind_mesh_options(nanobind::module_& m);
/// module_mesh.cpp: what a host does only in a machine of several.
void bind_mesh(nanobind::class_<Host>& host);

}  // namespace coremesh
