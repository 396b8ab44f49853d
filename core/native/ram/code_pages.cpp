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

constexpr unsigned kLastByte = CodePages::kPage - 1;
constexpr uint32_t kTickMask = (1u << 22) - 1;

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
      mixed_(layout.pages()),
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
            if (kind_of(page) == Kind::mixed) {
                // owners_ stays zero, so that every translation comes here and is known to be under way.
                mixed_[page].owners[engine / 64].fetch_or(bit);
                mixed_[page].translating[engine / 64].fetch_or(bit);
                return true;
            }
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

void CodePages::note_code_bytes(unsigned engine, uint64_t page, unsigned first, unsigned last) noexcept {
    if (!is_mixed(page)) return;
    MixedPage& mixed = mixed_[page];
    for (unsigned word = first / 64; word <= last / 64; word++) {
        uint64_t bits = ~uint64_t{0};
        if (word == first / 64) bits &= ~uint64_t{0} << (first % 64);
        if (word == last / 64) bits &= ~uint64_t{0} >> (63 - last % 64);
        mixed.bytes[word].fetch_or(bits);
    }
    // Last: touches_code looks here first, and must find either this bit or those.
    mixed.translating[engine / 64].fetch_and(~(uint64_t{1} << (engine % 64)));
}

// invalidation

bool CodePages::post_all(std::atomic<uint64_t>* words, uint64_t page) noexcept {
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

/// The page's lock is held.
bool CodePages::invalidate(uint64_t page, unsigned first, unsigned last) noexcept {
    if (kind_of(page) != Kind::mixed) return post_all(&owners_[page * words_], page);
    if (!touches_code(page, first, last)) return false;
    MixedPage& mixed = mixed_[page];
    const bool posted = post_all(mixed.owners, page);
    // Everything translated from the page goes. An engine in the middle of a translation was among the
    // owners; the bits it still sets are of a block that its post removes: at worst a later store is looked
    // at once too often.
    for (unsigned word = 0; word < words_; word++) mixed.translating[word].store(0);
    for (auto& word : mixed.bytes) word.store(0);
    return posted;
}

bool CodePages::touches_code(uint64_t page, unsigned first, unsigned last) const noexcept {
    if (kind_of(page) != Kind::mixed) {
        for (unsigned word = 0; word < words_; word++) {
            if (owners_[page * words_ + word].load()) return true;
        }
        return false;
    }
    const MixedPage& mixed = mixed_[page];
    for (unsigned word = 0; word < words_; word++) {
        if (mixed.translating[word].load()) return true;
    }
    for (unsigned word = first / 64; word <= last / 64; word++) {
        uint64_t bits = mixed.bytes[word].load();
        if (word == first / 64) bits &= ~uint64_t{0} << (first % 64);
        if (word == last / 64) bits &= ~uint64_t{0} >> (63 - last % 64);
        if (bits) return true;
    }
    return false;
}

CodePages::OwnerSet CodePages::owners(uint64_t page) const noexcept {
    OwnerSet set{};
    const bool mixed = kind_of(page) == Kind::mixed;
    for (unsigned word = 0; word < words_; word++) {
        set[word] = (mixed ? mixed_[page].owners[word] : owners_[page * words_ + word]).load();
    }
    return set;
}

bool CodePages::announce_write(uint64_t offset, uint64_t length) noexcept {
    // The second call of a caller: its write before this fence, the look at the owners after. An engine sets
    // its bit and then reads the bytes. One of the two sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool hit = false;
    for (uint64_t end = offset + length; offset < end;) {
        const uint64_t page = offset / kPage;
        const uint64_t next = std::min(end, (page + 1) * kPage);
        const auto first = static_cast<unsigned>(offset % kPage);
        const auto last = static_cast<unsigned>((next - 1) % kPage);
        if (touches_code(page, first, last)) {
            const std::lock_guard hold(locks_.of(page));
            hit |= invalidate(page, first, last);
        }
        offset = next;
    }
    return hit;
}

void CodePages::write(uint64_t offset, const void* from, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(from);
    while (length > 0) {
        const uint64_t page = offset / kPage;
        const uint64_t piece = std::min(length, (page + 1) * kPage - offset);
        const auto first = static_cast<unsigned>(offset % kPage);
        // The lock until the bytes are there: nobody begins to translate between the post and the write. The
        // protocol view never faults, so the rule of page_locks.hpp is kept.
        const std::lock_guard hold(locks_.of(page));
        invalidate(page, first, first + static_cast<unsigned>(piece) - 1);
        std::memcpy(protocol_ + offset, bytes, piece);
        offset += piece;
        bytes += piece;
        length -= piece;
    }
}

CheckedStore::CheckedStore(CodePages& code, uint64_t offset, unsigned length) noexcept
    : code_(code),
      offset_(offset),
      first_page_(offset / CodePages::kPage),
      last_page_((offset + length - 1) / CodePages::kPage) {
    code_.locks_.lock_pair(first_page_, last_page_);
    const auto first = static_cast<unsigned>(offset % CodePages::kPage);
    const auto last = static_cast<unsigned>((offset + length - 1) % CodePages::kPage);
    if (first_page_ == last_page_) {
        hit_ = code_.invalidate(first_page_, first, last);
    } else {
        hit_ = code_.invalidate(first_page_, first, kLastByte);
        hit_ |= code_.invalidate(last_page_, 0, last);
    }
}

CheckedStore::~CheckedStore() { code_.locks_.unlock_pair(first_page_, last_page_); }

// faults

bool CodePages::on_fault(uintptr_t address, void* ucontext) noexcept {
    const uint64_t offset = address - reinterpret_cast<uintptr_t>(guest_);
    const uint64_t page = offset / kPage;
    bool had_code = false;
    bool request = false;
    int error = 0;
    {
        const std::lock_guard hold(locks_.of(page));
        if (!protected_.test(page)) {
            count_.spurious.fetch_add(1, std::memory_order_relaxed);
            return !comes_back(page);
        }
        count_.faults.fetch_add(1, std::memory_order_relaxed);
        had_code = invalidate(page, 0, kLastByte);
        error = protected_.unprotect(page);
        request = had_code && count_fault(page);
    }
    // ENOMEM: a page in the middle of a protected run cannot be taken out of it without another mapping. The
    // whole run can. Not ours to solve otherwise: passed on, the process ends where it faulted.
    if (error == ENOMEM && protected_.limited()) {
        if (!open_run(page)) return false;
    } else if (error) {
        return false;
    }
    if (request) sink_.page_becomes_mixed(page);
    if (sink_.self_write({layout_.gpa_of(offset), page, program_counter(ucontext), ucontext, had_code})) {
        count_.self_writes.fetch_add(1, std::memory_order_relaxed);
    }
    return true;
}

/// The page's lock is held. True when the page was written too often, and again whenever it was as often
/// anew: a sink whose mailbox was full may have lost the request.
bool CodePages::count_fault(uint64_t page) noexcept {
    const uint32_t state = state_[page].load(std::memory_order_relaxed);
    const auto now = static_cast<uint32_t>(now_ms() / std::max(1u, options_.decay_ms)) & kTickMask;
    const uint32_t halvings = std::min((now - (state >> 10)) & kTickMask, 8u);
    uint32_t count = std::min(((state >> 2 & 0xff) >> halvings) + 1, 255u);
    auto kind = static_cast<Kind>(state & 3);
    const bool too_often = kind != Kind::mixed && options_.mixed_after && count >= options_.mixed_after;
    if (too_often) {
        kind = Kind::mixing;
        count = 0;
    }
    state_[page].store(now << 10 | count << 2 | static_cast<uint32_t>(kind), std::memory_order_release);
    return too_often;
}

void CodePages::acknowledge_mixed(unsigned engine, uint64_t page) noexcept {
    const std::lock_guard hold(locks_.of(page));
    if (kind_of(page) != Kind::mixing) return;
    MixedPage& mixed = mixed_[page];
    mixed.answered[engine / 64].fetch_or(uint64_t{1} << (engine % 64));
    unsigned answers = 0;
    for (unsigned word = 0; word < words_; word++) answers += std::popcount(mixed.answered[word].load());
    if (answers < engines_) return;
    // No engine stores to the page unchecked any more. What was translated under protection has no map of
    // bytes: it goes.
    post_all(&owners_[page * words_], page);
    state_[page].store(static_cast<uint32_t>(Kind::mixed), std::memory_order_release);
    if (protected_.test(page))
        protected_.unprotect(page);  // if the kernel refuses, the next fault tries again
    count_.mixed_pages.fetch_add(1, std::memory_order_relaxed);
}

// the budget of mappings (mprotect)

/// All locks are held. As far as the owners can tell, every page of the run was written.
bool CodePages::open(ProtectedPages::Run run) noexcept {
    for (uint64_t page = run.first; page < run.end; page++) invalidate(page, 0, kLastByte);
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
