// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel lets the guest view do with a page: nothing, read, or read and write.
//
// Three ways give the same thing, a synchronous signal in the thread whose access is refused. userfaultfd
// marks page-table entries and has no limit; mprotect splits the mapping, and the kernel allows a process
// only vm.max_map_count pieces. Before Linux 6.4 userfaultfd cannot map a page that is in the file for
// reading only; there a fresh copy is put in its place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/access.hpp"
#include "ram/protection.hpp"

namespace coremesh {

/// One memory file, mapped twice from its first byte.
struct RamViews {
    uint8_t* guest;     ///< what is guarded
    uint8_t* protocol;  ///< the same bytes, never guarded
    int file;
    uint64_t length;
};

/// The guard of one guest view. Calls are system calls: async-signal-safe, from any thread, and synchronous:
/// when access was taken, no CPU can use it without a fault.
class ViewGuard {
  public:
    static constexpr uint64_t kPage = 4096;

    virtual ~ViewGuard() = default;
    ViewGuard(const ViewGuard&) = delete;
    ViewGuard& operator=(const ViewGuard&) = delete;

    Protection kind() const noexcept { return kind_; }
    bool coherent() const noexcept { return coherent_; }
    /// How all pages are mapped at first.
    Access initial() const noexcept { return coherent_ ? Access::kNone : Access::kWrite; }
    /// The signal by which a refused access arrives, and its si_code.
    virtual int fault_signal() const noexcept = 0;
    virtual int fault_code() const noexcept = 0;
    /// Maps the pages, all of which are mapped as `from` (any mixture when `to` is kNone; kNone also for
    /// pages that the kernel may have unmapped by itself). A page that was never touched is made. 0 or an
    /// errno value (ENOMEM: the kernel has no room for another mapping, page table or page).
    virtual int change(uint64_t first_page, uint64_t pages, Access from, Access to) noexcept = 0;

  protected:
    ViewGuard(Protection kind, bool coherent) : kind_(kind), coherent_(coherent) {}

  private:
    const Protection kind_;
    const bool coherent_;
};

}  // namespace coremesh
