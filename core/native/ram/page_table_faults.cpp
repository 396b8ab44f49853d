// SPDX-License-Identifier: GPL-2.0-or-later
// The page table's part in the signal handler: what a fault means, and what makes it go away.
#include <cerrno>
#include <ctime>
#include <mutex>

#include "ram/fault_cause.hpp"
#include "ram/page_table.hpp"

namespace coremesh {
namespace {

constexpr unsigned kLostAfter = 16;
constexpr unsigned kHopeless = 256;

struct Streak {
    uint64_t page;
    int64_t since_ms;
    unsigned count;
};
[[gnu::tls_model("initial-exec")]] thread_local Streak streak{};

/// If our table already allows the access, another thread fixed it first: the instruction runs again.
/// Unless it comes back at once, and again: then the cause is another (the kernel has unmapped the page by
/// itself; a jump into guest memory; no memory left for the file). How often it came back within 10 ms.
unsigned times_in_a_row(uint64_t page) noexcept {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);  // in the vDSO: async-signal-safe
    const int64_t now = int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1000000;
    if (streak.page != page || now - streak.since_ms > 10) streak = {page, now, 0};
    return ++streak.count;
}

}  // namespace

bool PageTable::on_fault(uintptr_t address, void* ucontext) noexcept {
    const uint64_t offset = address - reinterpret_cast<uintptr_t>(guest_);
    const uint64_t page = offset / kPage;
    // A RAM of one host is guarded against writes only.
    const Access want = coherent_ && !is_write(ucontext) ? Access::kRead : Access::kWrite;
    FaultContext fault{offset, page, program_counter(ucontext), ucontext, false};
    const bool needed = access(page) < want;
    if (needed) {
        if (!ask(fault, want)) return false;
        streak.count = 0;  // a page that comes and goes is no page that stays away
    }
    for (int attempt = 0;; attempt++) {
        if (coherent_ && mapped_.full()) make_room();
        switch (resolve(page, want, needed, fault.had_code)) {
            case Outcome::kRetry:
                if (coherent_ && want == Access::kWrite) tell_writer(fault);
                return true;
            case Outcome::kSpurious:
                return times_in_a_row(page) <= kHopeless;
            case Outcome::kMapped:
                map_ahead(page);
                if (want == Access::kWrite) tell_writer(fault);
                return true;
            case Outcome::kLost:
                return times_in_a_row(page) <= kHopeless && ask(fault, Access::kWrite);
            case Outcome::kFailed:
                return false;
            case Outcome::kNoRoom:
                if (coherent_ && attempt < 4) {
                    make_room();
                    continue;
                }
                // A page in the middle of a protected run cannot be taken out of it without another mapping.
                // The whole run can. Not ours to solve otherwise: passed on, the process ends where it
                // faulted.
                if (coherent_ || !open_run(page)) return false;
                [[fallthrough]];
            case Outcome::kOpened:
                tell_writer(fault);
                return true;
        }
    }
}

/// No lock is held: the sink may not come back.
void PageTable::tell_writer(const FaultContext& fault) noexcept { sink_.self_write(fault); }

/// False when there is no sink to ask. No lock is held: the sink may sleep, or not come back.
bool PageTable::ask(const FaultContext& fault, Access want) noexcept {
    PageSink* const sink = page_sink_.load();
    if (!sink) return false;
    count_.pages_needed.fetch_add(1, std::memory_order_relaxed);
    sink->page_needed(fault, fault.ram_page, want);
    return true;
}

/// The page as it is under its lock. `needed`: the sink was just asked for it.
PageTable::Outcome PageTable::resolve(uint64_t page, Access want, bool needed, bool& had_code) noexcept {
    const std::lock_guard hold(locks_.of(page));
    const Access granted = access(page);
    const Access now = mapped_.of(page);
    if (granted < want)
        return Outcome::kRetry;  // it is gone again, or did not come: the instruction asks anew
    if (now >= want) {
        if (needed) return Outcome::kRetry;
        count_.spurious.fetch_add(1, std::memory_order_relaxed);
        if (!coherent_) return Outcome::kSpurious;
        // The kernel may have unmapped it to swap it out. To map it for reading by a copy is not safe now: it
        // is mapped for writing, once it is clear that this is no race lost.
        if (reads_by_copy_ && now == Access::kRead) {
            if (times_in_a_row(page) < kLostAfter) return Outcome::kSpurious;
            if (granted < Access::kWrite) return Outcome::kLost;
            post_owners(page);
            mapped_.set(page, Access::kWrite);
        }
        mapped_.repeat(page);
        return Outcome::kSpurious;
    }
    int error = 0;
    bool opened = false;
    if (want == Access::kWrite && (now == Access::kRead || has_owners(page))) {
        opened = true;
        count_.faults.fetch_add(1, std::memory_order_relaxed);
        const bool posted = post_owners(page);
        had_code |= posted;
        error = mapped_.set(page, Access::kWrite);
        if (posted) count_write(page);
    } else {
        count_.pages_mapped_late.fetch_add(1, std::memory_order_relaxed);
        Access to = limit(page, granted);
        if (reads_by_copy_ && to == Access::kRead) {
            if (granted < Access::kWrite) return Outcome::kLost;
            post_owners(page);
            to = Access::kWrite;
        }
        error = mapped_.set(page, to);
    }
    if (error) return error == ENOMEM && mapped_.limited() ? Outcome::kNoRoom : Outcome::kFailed;
    return opened ? Outcome::kOpened : Outcome::kMapped;
}

}  // namespace coremesh
