// SPDX-License-Identifier: GPL-2.0-or-later
// How each page of the guest view is mapped, as the kernel was told, and how many mappings that costs.
//
// With mprotect each run of neighbouring pages that are mapped alike is a mapping of its own;
// vm.max_map_count bounds them. With userfaultfd there is no such cost and nothing is counted.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/lazy_array.hpp"
#include "ram/page_locks.hpp"
#include "ram/view_guard.hpp"

namespace coremesh {

class MappedPages {
  public:
    struct Run {
        uint64_t first;
        uint64_t end;  ///< one past the last
    };

    /// `max_runs`: 0 takes it from vm.max_map_count. Throws PlatformError.
    MappedPages(ViewGuard& guard, uint64_t pages, uint64_t max_runs);

    Access of(uint64_t page) const noexcept {
        const uint64_t word = bits_[page / kPerWord].load(std::memory_order_relaxed);
        return static_cast<Access>((word >> shift_of(page) & 3) ^ static_cast<uint64_t>(initial_));
    }

    /// The locks of the pages are held, and all are mapped alike, or `to` is kNone. 0 or an errno value;
    /// ENOMEM where the kernel has no room for another mapping: a page in the middle of a run splits it. Only
    /// a whole run never needs one.
    int set(uint64_t page, Access to) noexcept { return set(Run{page, page + 1}, to); }
    int set(Run pages, Access to) noexcept;
    /// The kernel may have unmapped a page by itself: tells it again. The page's lock is held.
    int repeat(uint64_t page) noexcept { return guard_.change(page, 1, Access::kNone, of(page)); }

    // All locks are held.

    /// The pages around this one that are mapped as it is.
    Run run_around(uint64_t page) const noexcept;
    /// The first page at or after `page` that is mapped otherwise than at the start, or pages().
    uint64_t next(uint64_t page) const noexcept;

    Access initial() const noexcept { return initial_; }
    /// Only mprotect has a budget.
    bool limited() const noexcept { return max_edges_ != 0; }
    bool full() const noexcept { return limited() && edges() + 1 >= max_edges_; }
    /// Two edges to a run, where it begins and where it ends; one where two runs meet.
    uint64_t edges() const noexcept { return edges_.load(std::memory_order_relaxed); }
    uint64_t runs() const noexcept { return (edges() + 1) / 2; }
    uint64_t pages() const noexcept { return pages_; }

  private:
    static constexpr uint64_t kPerWord = 32;
    static constexpr unsigned shift_of(uint64_t page) noexcept { return page % kPerWord * 2; }
    void note(uint64_t page, Access to) noexcept;
    uint64_t edges_around(Run pages) const noexcept;

    ViewGuard& guard_;
    const uint64_t pages_;
    const Access initial_;
    const uint64_t max_edges_;
    LazyArray<std::atomic<uint64_t>> bits_;  ///< two a page: Access, exclusive or initial_
    PiMutex map_lock_;  ///< the kernel call, bits_ and edges_ together, when edges are counted; taken after
                        ///< the pages' locks
    std::atomic<uint64_t> edges_{0};
};

}  // namespace coremesh
