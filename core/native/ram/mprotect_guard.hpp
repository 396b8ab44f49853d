// SPDX-License-Identifier: GPL-2.0-or-later
// The guest view under mprotect: works everywhere, and splits the mapping (vm.max_map_count bounds the
// pieces).
#pragma once

#include "ram/view_guard.hpp"

namespace coremesh {

class MprotectGuard final : public ViewGuard {
  public:
    /// Throws PlatformError.
    MprotectGuard(const RamViews& views, bool coherent);

    int fault_signal() const noexcept override;
    int fault_code() const noexcept override;
    int change(uint64_t first_page, uint64_t pages, Access from, Access to) noexcept override;

  private:
    uint8_t* const view_;
};

}  // namespace coremesh
