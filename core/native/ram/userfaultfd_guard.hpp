// SPDX-License-Identifier: GPL-2.0-or-later
// The guest view under userfaultfd: faults are signals in the faulting thread, access is in the page tables.
#pragma once

#include "ram/view_guard.hpp"

namespace coremesh {

class UserfaultfdGuard final : public ViewGuard {
  public:
    /// `kind`: userfaultfd, or userfaultfd_copy for kernels that cannot map a page of the file for reading
    /// only (before Linux 6.4). Throws PlatformError.
    UserfaultfdGuard(Protection kind, const RamViews& views, bool coherent);
    ~UserfaultfdGuard() override;

    int fault_signal() const noexcept override;
    int fault_code() const noexcept override;
    int change(uint64_t first_page, uint64_t pages, Access from, Access to) noexcept override;

  private:
    int map(uint64_t first, uint64_t pages, bool writable) noexcept;
    int put_copy(uint64_t page) noexcept;
    int write_protect(uint64_t first, uint64_t pages, bool on) noexcept;
    uint64_t address(uint64_t page) const noexcept {
        return reinterpret_cast<uint64_t>(views_.guest) + page * kPage;
    }

    const RamViews views_;
    int file_ = -1;
};

}  // namespace coremesh
