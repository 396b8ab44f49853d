// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/protected_pages.hpp"

#include <algorithm>
#include <bit>
#include <mutex>

namespace coremesh {
namespace {

/// Three quarters of what the kernel allows, for the rest of the process lives by it too; each run is two
/// mappings.
uint64_t run_budget(const WriteGuard& guard, uint64_t asked) {
    if (guard.kind() != Protection::mprotect) return 0;
    if (asked) return asked;
    const uint64_t usable = map_count_limit() / 4 * 3;
    const uint64_t used = map_count();
    return std::max<uint64_t>(64, usable > used ? (usable - used) / 2 : 0);
}

uint64_t bit_of(uint64_t page) { return uint64_t{1} << (page % 64); }

}  // namespace

ProtectedPages::ProtectedPages(WriteGuard& guard, uint64_t pages, uint64_t max_runs)
    : guard_(guard), pages_(pages), max_runs_(run_budget(guard, max_runs)), bits_(pages / 64 + 1) {}

int ProtectedPages::protect(uint64_t page) noexcept {
    // The neighbours have other locks, and whether this page joins their runs is for one thread at a time to
    // say.
    std::unique_lock hold(map_lock_, std::defer_lock);
    if (limited()) hold.lock();
    const int error = guard_.protect(page, 1);
    if (error) return error;
    bits_[page / 64].fetch_or(bit_of(page), std::memory_order_relaxed);
    if (limited()) {
        const int joined = (page > 0 && test(page - 1)) + (page + 1 < pages_ && test(page + 1));
        runs_.fetch_add(static_cast<uint64_t>(1 - joined), std::memory_order_relaxed);
    }
    return 0;
}

int ProtectedPages::unprotect(uint64_t page) noexcept {
    std::unique_lock hold(map_lock_, std::defer_lock);
    if (limited()) hold.lock();
    const int error = guard_.unprotect(page, 1);
    if (error) return error;
    bits_[page / 64].fetch_and(~bit_of(page), std::memory_order_relaxed);
    if (limited()) {
        const int split = (page > 0 && test(page - 1)) + (page + 1 < pages_ && test(page + 1));
        runs_.fetch_add(static_cast<uint64_t>(split - 1), std::memory_order_relaxed);
    }
    return 0;
}

ProtectedPages::Run ProtectedPages::run_around(uint64_t page) const noexcept {
    Run run{page, page + 1};
    while (run.first > 0 && test(run.first - 1)) run.first--;
    while (run.end < pages_ && test(run.end)) run.end++;
    return run;
}

int ProtectedPages::unprotect(Run run) noexcept {
    const int error = guard_.unprotect(run.first, run.end - run.first);
    if (error) return error;
    for (uint64_t page = run.first; page < run.end; page++) {
        bits_[page / 64].fetch_and(~bit_of(page), std::memory_order_relaxed);
    }
    if (limited()) runs_.fetch_sub(1, std::memory_order_relaxed);
    return 0;
}

uint64_t ProtectedPages::next(uint64_t page) const noexcept {
    while (page < pages_) {
        const uint64_t bits = bits_[page / 64].load(std::memory_order_relaxed) >> (page % 64);
        if (bits) return page + static_cast<unsigned>(std::countr_zero(bits));
        page = (page / 64 + 1) * 64;
    }
    return pages_;
}

}  // namespace coremesh
