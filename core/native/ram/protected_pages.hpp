// SPDX-License-Identifier: GPL-2.0-or-later
// Which pages of the guest view the kernel was told to protect, and how many mappings that costs.
//
// With mprotect each run of neighbouring protected pages is a mapping of its own and splits off another
// behind it; vm.max_map_count bounds them. With userfaultfd there is no such cost and nothing is counted.
#pragma once

#include <atomic>
#include <cstdint>

#include "ram/lazy_array.hpp"
#include "ram/page_locks.hpp"
#include "ram/protection.hpp"

namespace coremesh {

class ProtectedPages {
  public:
    struct Run {
        uint64_t first;
        uint64_t end;  ///< one past the last
    };

    /// `max_runs`: 0 takes it from vm.max_map_count. Throws PlatformError.
    ProtectedPages(WriteGuard& guard, uint64_t pages, uint64_t max_runs);

    bool test(uint64_t page) const noexcept {
        return bits_[page / 64].load(std::memory_order_relaxed) >> (page % 64) & 1;
    }

    /// The page's lock is held. 0 or an errno value; ENOMEM where the kernel has no room for another mapping.
    /// That can hit unprotect too: a page in the middle of a run splits it.
    int protect(uint64_t page) noexcept;
    int unprotect(uint64_t page) noexcept;

    /// All locks are held. A whole run needs no other mapping to be made writable.
    Run run_around(uint64_t page) const noexcept;
    int unprotect(Run run) noexcept;
    /// The first protected page at or after `page`, or pages().
    uint64_t next(uint64_t page) const noexcept;

    /// Only mprotect has a budget.
    bool limited() const noexcept { return max_runs_ != 0; }
    bool full() const noexcept { return limited() && runs() >= max_runs_; }
    uint64_t runs() const noexcept { return runs_.load(std::memory_order_relaxed); }
    uint64_t pages() const noexcept { return pages_; }

  private:
    WriteGuard& guard_;
    const uint64_t pages_;
    const uint64_t max_runs_;
    LazyArray<std::atomic<uint64_t>> bits_;
    PiMutex map_lock_;  ///< the kernel call, bits_ and runs_ together, when runs are counted; taken after a
                        ///< page's lock
    std::atomic<uint64_t> runs_{0};
};

}  // namespace coremesh
