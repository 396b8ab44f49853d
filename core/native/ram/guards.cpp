// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/guards.hpp"

#include "ram/mprotect_guard.hpp"
#include "ram/userfaultfd_guard.hpp"

namespace coremesh {

std::unique_ptr<ViewGuard> make_view_guard(Protection protection, const RamViews& views, bool coherent) {
    if (protection == Protection::mprotect) return std::make_unique<MprotectGuard>(views, coherent);
    return std::make_unique<UserfaultfdGuard>(protection, views, coherent);
}

}  // namespace coremesh
