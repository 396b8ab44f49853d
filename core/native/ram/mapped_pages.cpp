// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/mapped_pages.hpp"

#include <algorithm>
#include <bit>
#include <mutex>

namespace coremesh {
namespace {

/// Three quarters of what the kernel allows, for the rest of the process lives by it too; each run is two
/// mappings.
uint64_t edge_budget(const ViewGuard& guard, uint64_t asked_runs) {
    if (guard.kind() != Protection::mprotect) return 0;
    if (asked_runs) return 2 * asked_runs;
    const uint64_t usable = map_count_limit() / 4 * 3;
    const uint64_t used = map_count();
    return std::max<uint64_t>(128, usable > used ? usable - used : 0);
}

}  // namespace

MappedPages::MappedPages(ViewGuard& guard, uint64_t pages, uint64_t max_runs)
    : guard_(guard),
      pages_(pages),
      initial_(guard.initial()),
      max_edges_(edge_budget(guard, max_runs)),
      bits_(pages / kPerWord + 1) {}

void MappedPages::note(uint64_t page, Access to) noexcept {
    const uint64_t change = static_cast<uint64_t>(of(page)) ^ static_cast<uint64_t>(to);
    bits_[page / kPerWord].fetch_xor(change << shift_of(page), std::memory_order_relaxed);
}

/// Places in and around the run where the mapping changes. Beyond the ends of memory all is as at the start.
uint64_t MappedPages::edges_around(Run pages) const noexcept {
    uint64_t count = 0;
    Access before = pages.first > 0 ? of(pages.first - 1) : initial_;
    for (uint64_t page = pages.first; page <= pages.end; page++) {
        const Access here = page < pages_ ? of(page) : initial_;
        count += here != before;
        before = here;
    }
    return count;
}

int MappedPages::set(Run pages, Access to) noexcept {
    // The neighbours have other locks, and whether this page joins their runs is for one thread at a time to
    // say.
    std::unique_lock hold(map_lock_, std::defer_lock);
    if (limited()) hold.lock();
    const int error = guard_.change(pages.first, pages.end - pages.first, of(pages.first), to);
    if (error) return error;
    const uint64_t before = limited() ? edges_around(pages) : 0;
    for (uint64_t page = pages.first; page < pages.end; page++) note(page, to);
    if (limited()) edges_.fetch_add(edges_around(pages) - before, std::memory_order_relaxed);
    return 0;
}

MappedPages::Run MappedPages::run_around(uint64_t page) const noexcept {
    const Access here = of(page);
    Run run{page, page + 1};
    while (run.first > 0 && of(run.first - 1) == here) run.first--;
    while (run.end < pages_ && of(run.end) == here) run.end++;
    return run;
}

uint64_t MappedPages::next(uint64_t page) const noexcept {
    while (page < pages_) {
        const uint64_t bits = bits_[page / kPerWord].load(std::memory_order_relaxed) >> shift_of(page);
        if (bits) return page + static_cast<unsigned>(std::countr_zero(bits)) / 2;
        page = (page / kPerWord + 1) * kPerWord;
    }
    return pages_;
}

}  // namespace coremesh
