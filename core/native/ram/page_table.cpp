// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/page_table.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <string>

#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic ignored \
    "-Wtsan"  // it does not know fences; announce_write needs one, for no data of ours
#endif

namespace coremesh {
namespace {

uint64_t now_ms() noexcept {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);  // in the vDSO: async-signal-safe
    return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

/// A page that another host will write, and that the kernel does not take from the guest: to go on would be
/// to let two hosts write it.
[[noreturn]] void end_incoherent() noexcept {
    static constexpr char text[] = "coremesh: the kernel does not take a page of guest memory back\n";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text, sizeof(text) - 1);
    std::abort();
}

unsigned checked_engines(unsigned engines) {
    if (engines == 0 || engines > PageTable::kMaxEngines) {
        throw std::invalid_argument(std::to_string(engines) + " engines: give 1 to " +
                                    std::to_string(PageTable::kMaxEngines));
    }
    return engines;
}

}  // namespace

PageTable::PageTable(uint8_t* guest, uint8_t* protocol, uint64_t pages, ViewGuard& guard, CodeSink& sink,
                     unsigned engines, Options options)
    : guest_(guest),
      protocol_(protocol),
      pages_(pages),
      sink_(sink),
      engines_(checked_engines(engines)),
      words_((engines + 63) / 64),
      coherent_(guard.coherent()),
      maps_freely_(guard.kind() == Protection::mprotect),
      reads_by_copy_(guard.kind() == Protection::userfaultfd_copy),
      owners_(pages * words_),
      granted_(coherent_ ? pages : 1),
      mapped_(guard, pages, options.max_runs),
      heat_(pages, options.mixed_after, options.decay_ms),
      range_(guest, pages * kPage, guard.fault_signal(), guard.fault_code(), *this) {}

PageTable::~PageTable() = default;

// translation

bool PageTable::take_page(unsigned engine, uint64_t page) noexcept {
    const auto bit = uint64_t{1} << (engine % 64);
    for (int attempt = 0;; attempt++) {
        if (mapped_.full()) make_room();
        int error = 0;
        {
            const std::lock_guard hold(locks_.of(page));
            if (is_mixed(page)) return false;
            // Mapped now and protected, it need not be mapped for reading later, which would move it.
            if (reads_by_copy_ && access(page) == Access::kWrite && mapped_.of(page) == Access::kNone) {
                error = mapped_.set(page, Access::kWrite);
            }
            if (!error && mapped_.of(page) == Access::kWrite) {
                error = mapped_.set(page, Access::kRead);
                count_.protects.fetch_add(!error, std::memory_order_relaxed);
            }
            if (!error) {
                // After the protection: a thread that finds this bit set may read the bytes without the lock.
                owners_[page * words_ + engine / 64].fetch_or(bit, std::memory_order_release);
                return true;
            }
        }
        if (error != ENOMEM || !mapped_.limited() || attempt == 3) return false;
        make_room();
    }
}

// invalidation

/// The page's lock is held.
bool PageTable::post_owners(uint64_t page) noexcept {
    std::atomic<uint64_t>* const words = &owners_[page * words_];
    uint64_t posted = 0;
    for (unsigned word = 0; word < words_; word++) {
        if (words[word].load(std::memory_order_relaxed) == 0) continue;
        // Taken before it is posted: an engine that drains the post and translates again then finds its bit
        // clear, and comes to the lock. One that still finds it set gets the post after.
        for (uint64_t bits = words[word].exchange(0); bits; bits &= bits - 1) {
            sink_.code_written(word * 64 + static_cast<unsigned>(std::countr_zero(bits)), page);
            posted++;
        }
    }
    if (posted) count_.invalidations.fetch_add(posted, std::memory_order_relaxed);
    return posted != 0;
}

bool PageTable::has_owners(uint64_t page) const noexcept {
    for (unsigned word = 0; word < words_; word++) {
        if (owners_[page * words_ + word].load()) return true;
    }
    return false;
}

PageTable::OwnerSet PageTable::owners(uint64_t page) const noexcept {
    OwnerSet set{};
    for (unsigned word = 0; word < words_; word++) set[word] = owners_[page * words_ + word].load();
    return set;
}

bool PageTable::announce_write(uint64_t offset, uint64_t length) noexcept {
    // The second call of a caller: its write before this fence, the look at the owners after. An engine sets
    // its bit and then reads the bytes. One of the two sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool hit = false;
    for (uint64_t page = offset / kPage; page <= (offset + length - 1) / kPage; page++) {
        if (!has_owners(page)) continue;
        const std::lock_guard hold(locks_.of(page));
        hit |= post_owners(page);
    }
    return hit;
}

void PageTable::write(uint64_t offset, const void* from, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(from);
    while (length > 0) {
        const uint64_t page = offset / kPage;
        const uint64_t piece = std::min(length, (page + 1) * kPage - offset);
        // The lock until the bytes are there: no engine begins to translate between the post and the write.
        // The protocol view never faults, so the rule of page_locks.hpp is kept.
        const std::lock_guard hold(locks_.of(page));
        post_owners(page);
        std::memcpy(protocol_ + offset, bytes, piece);
        offset += piece;
        bytes += piece;
        length -= piece;
    }
}

/// The page's lock is held and its owners are posted: from here on it may stay writable.
void PageTable::count_write(uint64_t page) noexcept {
    if (heat_.count(page, now_ms())) count_.mixed_pages.fetch_add(1, std::memory_order_relaxed);
}

// grants

/// How a page with this grant may be mapped. The page's lock is held.
Access PageTable::limit(uint64_t page, Access granted) const noexcept {
    return granted == Access::kWrite && has_owners(page) ? Access::kRead : granted;
}

void PageTable::set_access(uint64_t first, uint64_t count, Access to) noexcept {
    if (!coherent_ || count == 0) return;
    const uint64_t end = first + count;
    if (to > Access::kNone && mapped_.full()) make_room();
    {
        const PageLocks::Run hold(locks_, first, count);
        if (change(first, end, to) == 0) return note_grant(first, end, to);
    }
    const PageLocks::Run hold = locks_.all();
    revoke_runs(first, end, to);
    note_grant(first, end, to);
}

/// How the page is to be mapped when `to` is granted. The page's lock is held.
Access PageTable::target(uint64_t page, Access to, bool map) const noexcept {
    const Access now = mapped_.of(page);
    if (to == Access::kNone) return to;
    if (now == Access::kNone && !(map && access(page) < to)) return now;  // its first fault will map it
    return limit(page, to);
}

/// Posts, and maps the pages. The pages' locks are held. 0, or the errno of a revocation that failed: those
/// before it are done. A page that could not be mapped as granted is left to its first fault.
int PageTable::change(uint64_t first, uint64_t end, Access to) noexcept {
    // What is mapped for reading by a copy is mapped while no thread is looking at it, which is now.
    const bool map = end - first == 1 || maps_freely_ || (reads_by_copy_ && to == Access::kRead);
    for (uint64_t page = first; page < end; page++) {
        if (to == Access::kNone && access(page) != to && post_owners(page)) count_write(page);
        // Mapped while it is still writable, it need not be mapped for reading later, which would move it.
        if (reads_by_copy_ && to == Access::kRead && access(page) == Access::kWrite &&
            mapped_.of(page) == Access::kNone) {
            mapped_.set(page, Access::kWrite);
        }
    }
    for (uint64_t page = first; page < end;) {
        const Access now = mapped_.of(page);
        const Access then = target(page, to, map);
        // Taking away everything is one call, whatever is mapped.
        const auto alike = [&](uint64_t other) {
            return to == Access::kNone ? now != to
                                       : mapped_.of(other) == now && target(other, to, map) == then;
        };
        const uint64_t start = page++;
        while (page < end && alike(page)) page++;
        if (then == now) continue;
        const int error = mapped_.set({start, page}, then);
        if (error && then < now) return error;
    }
    return 0;
}

/// The kernel has no mapping left with which to split a run: the whole run goes. What else is granted of it
/// is mapped again when it is used. All locks are held.
void PageTable::revoke_runs(uint64_t first, uint64_t end, Access to) noexcept {
    for (uint64_t page = first; page < end; page++) {
        if (mapped_.of(page) <= to) continue;
        const auto run = mapped_.run_around(page);
        if (mapped_.set(run, Access::kNone) != 0) end_incoherent();
        count_.evictions.fetch_add(run.end - run.first, std::memory_order_relaxed);
    }
}

/// The page was granted for writing long ago and touched for the first time. When the one before it was
/// too, the guest goes through memory, and the next ones are mapped in the same breath.
void PageTable::map_ahead(uint64_t page) noexcept {
    constexpr uint64_t kAhead = 16;
    if (page == 0 || mapped_.of(page - 1) == Access::kNone || page + 1 == pages_) return;
    const uint64_t first = page + 1;
    const uint64_t end = std::min(first + kAhead, pages_);
    const PageLocks::Run hold(locks_, first, end - first);
    uint64_t stop = first;
    while (stop < end && access(stop) == Access::kWrite && mapped_.of(stop) == Access::kNone &&
           !has_owners(stop)) {
        stop++;
    }
    if (stop > first) mapped_.set({first, stop}, Access::kWrite);
}

void PageTable::note_grant(uint64_t first, uint64_t end, Access to) noexcept {
    uint64_t more = 0, less = 0;
    for (uint64_t page = first; page < end; page++) {
        const Access before = access(page);
        more += before < to;
        less += before > to;
        if (before != to) granted_[page].store(static_cast<uint8_t>(to), std::memory_order_release);
    }
    if (more) count_.pages_granted.fetch_add(more, std::memory_order_relaxed);
    if (less) count_.pages_revoked.fetch_add(less, std::memory_order_relaxed);
}

// the budget of mappings (mprotect)

/// All locks are held. Of a RAM of one host it is writable then: as far as the owners can tell, every page of
/// the run was written.
bool PageTable::give_up(MappedPages::Run run) noexcept {
    if (!coherent_) {
        for (uint64_t page = run.first; page < run.end; page++) post_owners(page);
    }
    if (mapped_.set(run, mapped_.initial()) != 0) return false;
    count_.evictions.fetch_add(run.end - run.first, std::memory_order_relaxed);
    return true;
}

bool PageTable::open_run(uint64_t page) noexcept {
    const PageLocks::Run hold = locks_.all();
    return mapped_.of(page) == Access::kWrite || give_up(mapped_.run_around(page));
}

/// Gives up a sixteenth of the runs: going round the memory, and short ones before long ones, for a mapping
/// costs the same however many pages it guards.
void PageTable::make_room() noexcept {
    const PageLocks::Run hold = locks_.all();
    const uint64_t now = mapped_.edges();
    const uint64_t goal = now - std::min(now, now / 16 + 2);
    for (const uint64_t longest : {uint64_t{16}, pages_}) {
        const uint64_t start = hand_.load(std::memory_order_relaxed);
        uint64_t page = mapped_.next(start);
        for (bool wrapped = false; mapped_.edges() > goal;) {
            if (page == pages_) {
                if (wrapped) break;
                wrapped = true;
                page = mapped_.next(0);
                continue;
            }
            const auto run = mapped_.run_around(page);
            if (run.end - run.first <= longest) give_up(run);
            if (wrapped && run.end > start) break;
            page = mapped_.next(run.end);
            hand_.store(run.end, std::memory_order_relaxed);
        }
    }
}

}  // namespace coremesh
