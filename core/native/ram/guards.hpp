// SPDX-License-Identifier: GPL-2.0-or-later
// The guard of a guest view, by the name of its kind.
#pragma once

#include <memory>

#include "ram/view_guard.hpp"

namespace coremesh {

/// `coherent`: no access to any page at first, else all. `protection` is not `automatic`. Throws
/// PlatformError.
std::unique_ptr<ViewGuard> make_view_guard(Protection protection, const RamViews& views, bool coherent);

}  // namespace coremesh
