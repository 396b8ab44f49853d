// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/code_pages.hpp"

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cerrno>
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

constexpr uint32_t kTickMask = (1u << 23) - 1;

uint64_t now_ms() noexcept {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);  // in the vDSO: async-signal-safe
    return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

uintptr_t program_counter(const void* ucontext) noexcept {
    const auto& machine = static_cast<const ucontext_t*>(ucontext)->uc_mcontext;
#if defined(__x86_64__)
    return static_cast<uintptr_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return machine.pc;
#endif
}

/// A fault on a page that is writable for all we know is a race lost, and the store runs again. Unless it
/// comes back at once, and again: then the cause is another (a jump into guest memory; no memory left for the
/// file) and ours to pass on.
bool comes_back(uint64_t page) noexcept {
    struct Streak {
        uint64_t page;
        uint64_t since;
        unsigned count;
    };
    [[gnu::tls_model("initial-exec")]] static thread_local Streak streak{};
    const uint64_t now = now_ms();
    if (streak.page != page || now - streak.since > 10) streak = {page, now, 0};
    return ++streak.count > 256;
}

unsigned checked_engines(unsigned engines) {
    if (engines == 0 || engines > CodePages::kMaxEngines) {
        throw std::invalid_argument(std::to_string(engines) + " engines: give 1 to " +
                                    std::to_string(CodePages::kMaxEngines));
    }
    return engines;
}

}  // namespace

CodePages::CodePages(uint8_t* guest, uint8_t* protocol, RamLayout layout, WriteGuard& guard, CodeSink& sink,
                     unsigned engines, Options options)
    : guest_(guest),
      protocol_(protocol),
      layout_(layout),
      sink_(sink),
      engines_(checked_engines(engines)),
      words_((engines + 63) / 64),
      options_(options),
      owners_(layout.pages() * words_),
      protected_(guard, layout.pages(), options.max_runs),
      state_(layout.pages()),
      range_(guest, layout.size, guard.fault_signal(), guard.fault_code(), *this) {}

CodePages::~CodePages() = default;

// translation

bool CodePages::take_page(unsigned engine, uint64_t page) noexcept {
    const auto bit = uint64_t{1} << (engine % 64);
    for (int attempt = 0;; attempt++) {
        if (protected_.full()) make_room();
        int error = 0;
        {
            const std::lock_guard hold(locks_.of(page));
            if (is_mixed(page)) return false;
            if (!protected_.test(page)) {
                error = protected_.protect(page);
                count_.protects.fetch_add(!error, std::memory_order_relaxed);
            }
            if (!error) {
                // After the protection: whoever finds this bit set may read the bytes without the lock.
                owners_[page * words_ + engine / 64].fetch_or(bit, std::memory_order_release);
                return true;
            }
        }
        if (error != ENOMEM || !protected_.limited() || attempt == 3) return false;
        make_room();
    }
}

// invalidation

/// The page's lock is held.
bool CodePages::post_owners(uint64_t page) noexcept {
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

bool CodePages::has_owners(uint64_t page) const noexcept {
    for (unsigned word = 0; word < words_; word++) {
        if (owners_[page * words_ + word].load()) return true;
    }
    return false;
}

CodePages::OwnerSet CodePages::owners(uint64_t page) const noexcept {
    OwnerSet set{};
    for (unsigned word = 0; word < words_; word++) set[word] = owners_[page * words_ + word].load();
    return set;
}

bool CodePages::announce_write(uint64_t offset, uint64_t length) noexcept {
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

void CodePages::write(uint64_t offset, const void* from, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(from);
    while (length > 0) {
        const uint64_t page = offset / kPage;
        const uint64_t piece = std::min(length, (page + 1) * kPage - offset);
        // The lock until the bytes are there: nobody begins to translate between the post and the write. The
        // protocol view never faults, so the rule of page_locks.hpp is kept.
        const std::lock_guard hold(locks_.of(page));
        post_owners(page);
        std::memcpy(protocol_ + offset, bytes, piece);
        offset += piece;
        bytes += piece;
        length -= piece;
    }
}

// faults

bool CodePages::on_fault(uintptr_t address, void* ucontext) noexcept {
    const uint64_t offset = address - reinterpret_cast<uintptr_t>(guest_);
    const uint64_t page = offset / kPage;
    bool had_code = false;
    int error = 0;
    {
        const std::lock_guard hold(locks_.of(page));
        if (!protected_.test(page)) {
            count_.spurious.fetch_add(1, std::memory_order_relaxed);
            return !comes_back(page);
        }
        count_.faults.fetch_add(1, std::memory_order_relaxed);
        had_code = post_owners(page);
        error = protected_.unprotect(page);
        if (had_code) count_fault(page);
    }
    // ENOMEM: a page in the middle of a protected run cannot be taken out of it without another mapping. The
    // whole run can. Not ours to solve otherwise: passed on, the process ends where it faulted.
    if (error == ENOMEM && protected_.limited()) {
        if (!open_run(page)) return false;
    } else if (error) {
        return false;
    }
    if (sink_.self_write({layout_.gpa_of(offset), page, program_counter(ucontext), ucontext, had_code})) {
        count_.self_writes.fetch_add(1, std::memory_order_relaxed);
    }
    return true;
}

/// The page's lock is held, its owners are posted and it is writable: from here on it may stay so.
void CodePages::count_fault(uint64_t page) noexcept {
    const uint32_t state = state_[page].load(std::memory_order_relaxed);
    const auto now = static_cast<uint32_t>(now_ms() / std::max(1u, options_.decay_ms)) & kTickMask;
    const uint32_t halvings = std::min((now - (state >> 9)) & kTickMask, 8u);
    const uint32_t count = std::min(((state >> 1 & 0xff) >> halvings) + 1, 255u);
    const bool too_often = options_.mixed_after && count >= options_.mixed_after;
    if (too_often) count_.mixed_pages.fetch_add(1, std::memory_order_relaxed);
    state_[page].store(now << 9 | count << 1 | (too_often ? kMixed : 0), std::memory_order_release);
}

// the budget of mappings (mprotect)

/// All locks are held. As far as the owners can tell, every page of the run was written.
bool CodePages::open(ProtectedPages::Run run) noexcept {
    for (uint64_t page = run.first; page < run.end; page++) post_owners(page);
    if (protected_.unprotect(run) != 0) return false;
    count_.evictions.fetch_add(run.end - run.first, std::memory_order_relaxed);
    return true;
}

bool CodePages::open_run(uint64_t page) noexcept {
    locks_.lock_all();
    const bool opened = !protected_.test(page) || open(protected_.run_around(page));
    locks_.unlock_all();
    return opened;
}

/// Gives up a sixteenth of the runs: going round the memory, and short ones before long ones, for a mapping
/// costs the same however many pages it guards.
void CodePages::make_room() noexcept {
    locks_.lock_all();
    const uint64_t now = protected_.runs();
    const uint64_t goal = now - std::min(now, now / 16 + 1);
    for (const uint64_t longest : {uint64_t{16}, layout_.pages()}) {
        const uint64_t start = hand_.load(std::memory_order_relaxed);
        uint64_t page = protected_.next(start);
        for (bool wrapped = false; protected_.runs() > goal;) {
            if (page == layout_.pages()) {
                if (wrapped) break;
                wrapped = true;
                page = protected_.next(0);
                continue;
            }
            const auto run = protected_.run_around(page);
            if (run.end - run.first <= longest) open(run);
            if (wrapped && run.end > start) break;
            page = protected_.next(run.end);
            hand_.store(run.end, std::memory_order_relaxed);
        }
    }
    locks_.unlock_all();
}

CodeCounters CodePages::counters() const noexcept {
    CodeCounters now;
    now.faults = count_.faults.load(std::memory_order_relaxed);
    now.spurious = count_.spurious.load(std::memory_order_relaxed);
    now.self_writes = count_.self_writes.load(std::memory_order_relaxed);
    now.invalidations = count_.invalidations.load(std::memory_order_relaxed);
    now.protects = count_.protects.load(std::memory_order_relaxed);
    now.evictions = count_.evictions.load(std::memory_order_relaxed);
    now.mixed_pages = count_.mixed_pages.load(std::memory_order_relaxed);
    return now;
}

}  // namespace coremesh
