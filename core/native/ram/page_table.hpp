// SPDX-License-Identifier: GPL-2.0-or-later
// The page table: what this host may do with each page of guest RAM, and which engines translated from it.
//
// Two facts limit what the guest view allows of a page, and one mechanism enforces both:
//
//   granted    what the page protocol lets this host do: nothing, read, write. A RAM of one host only has
//              everything, always
//   owners     engines that hold translations of the page's code; while there are any it is mapped read-only
//
// A write to a page with code goes: take the owners; post an invalidation to each and kick it; make the page
// writable; let the write go on. Post, kick, *then* write: on x86 a core that can see the new bytes (or
// anything written after them) then sees the kick at its next block head (SDM 3A, 9.1.3 and 9.2). No vCPU is
// stopped. A page that is taken from this host, because another will write it, goes the same way.
//
// A page with code that is written again and again, because it has hot data too, would fault for ever. After
// some faults it is left writable for good: it is *mixed*, and blocks translated from it have to compare
// their own bytes before they run.
//
// README.md in this folder has the reasons and the races one by one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/access.hpp"
#include "ram/code_heat.hpp"
#include "ram/fault_handler.hpp"
#include "base/lazy_array.hpp"
#include "ram/mapped_pages.hpp"
#include "ram/page_counters.hpp"
#include "ram/page_locks.hpp"
#include "ram/page_sinks.hpp"

namespace coremesh {

class PageTable final : private FaultTarget {
  public:
    static constexpr uint64_t kPage = 4096;
    static constexpr unsigned kMaxEngines = 256;
    using OwnerSet = std::array<uint64_t, kMaxEngines / 64>;

    struct Options {
        /// Faults after which a page becomes mixed; the count halves every `decay_ms` without one.
        /// A kernel that patches its own text at boot writes a page several dozen times and then never again;
        /// a page with hot data gets here within milliseconds.
        unsigned mixed_after = 200;
        unsigned decay_ms = 256;
        /// mprotect only: runs of pages mapped alike and not as at the start (each costs two mappings);
        /// 0 = from vm.max_map_count.
        uint64_t max_runs = 0;
    };

    /// The two views of `pages` pages, and what guards the first. Throws PlatformError, and
    /// std::invalid_argument unless 1 <= engines <= 256. `guard.coherent()`: nothing is granted at first.
    PageTable(uint8_t* guest, uint8_t* protocol, uint64_t pages, ViewGuard& guard, CodeSink& sink,
              unsigned engines, Options options);
    ~PageTable();

    // what this host may do with a page

    /// What was granted. Any thread; it may have changed by the time the caller looks.
    Access access(uint64_t page) const noexcept {
        return coherent_ ? static_cast<Access>(granted_[page].load(std::memory_order_acquire))
                         : Access::kWrite;
    }
    /// Grants or revokes; only of a coherent RAM. Any thread that is not using the guest view, also inside
    /// page_needed. When it returns after kNone or kRead no CPU can read or write the old way any more, and
    /// the protocol view holds all that was written: read it *after*. kNone first posts to the engines that
    /// translated from the page. Before more is granted than kNone the page's bytes are in the protocol view.
    /// A grant of one page maps it, unless the host lacks room for that; the first fault does it then.
    void set_access(uint64_t page, Access to) noexcept { set_access(page, 1, to); }
    /// The same for pages [first, first + count), with one kernel call for each run of pages that change
    /// alike. A grant of more than one page maps none: memory is committed as it is touched.
    void set_access(uint64_t first, uint64_t count, Access to) noexcept;
    /// What brings pages; null: a page that is not granted ends the process like any other bad access.
    void set_page_sink(PageSink* sink) noexcept { page_sink_.store(sink); }

    // translation: on the engine's own thread

    /// Before the first byte of the page is read for a translation. True: the page is guarded, every later
    /// write to it posts to this engine; one load when the engine already owns the page. False: it is not,
    /// because it is mixed or the host could not protect it: the block must compare its bytes each time
    /// before it runs. The page need not be granted: reading its bytes brings it, and until it is taken away
    /// again, which posts, no other host can write it.
    [[nodiscard]] bool begin_translation(unsigned engine, uint64_t page) noexcept {
        const uint64_t word = owners_[page * words_ + engine / 64].load(std::memory_order_acquire);
        if (word >> (engine % 64) & 1) [[likely]]
            return true;
        return take_page(engine, page);
    }
    /// Whether the page was written so often that it is not guarded any more. Any thread.
    bool is_mixed(uint64_t page) const noexcept { return heat_.is_mixed(page); }
    /// Engines that translated from the page since it was last written. None of a mixed page. Any thread.
    OwnerSet owners(uint64_t page) const noexcept;

    // writes that do not fault: devices, loaders. Any thread

    /// Copies through the protocol view, page by page: invalidate, then write, under the page's lock. Of a
    /// coherent RAM the caller has the pages granted for writing.
    void write(uint64_t offset, const void* from, uint64_t length) noexcept;
    /// Invalidates the code of the pages. A caller that writes by itself must call it before *and* after its
    /// write: an engine may translate in between, and is found by the second call.
    bool announce_write(uint64_t offset, uint64_t length) noexcept;

    PageCounters counters() const noexcept { return read_counters(count_); }
    unsigned engines() const noexcept { return engines_; }
    /// Runs of pages mapped not as at the start (mprotect only, else 0).
    uint64_t runs() const noexcept { return mapped_.runs(); }

  private:
    bool on_fault(uintptr_t address, void* ucontext) noexcept override;

    /// What a fault found, and what is left to do about it without the page's lock.
    enum class Outcome { kRetry, kSpurious, kMapped, kOpened, kLost, kNoRoom, kFailed };
    Outcome resolve(uint64_t page, Access want, bool needed, bool& had_code) noexcept;
    bool ask(const FaultContext& fault, Access want) noexcept;
    void tell_writer(const FaultContext& fault) noexcept;

    bool take_page(unsigned engine, uint64_t page) noexcept;
    bool post_owners(uint64_t page) noexcept;
    bool has_owners(uint64_t page) const noexcept;
    Access limit(uint64_t page, Access granted) const noexcept;
    void count_write(uint64_t page) noexcept;

    Access target(uint64_t page, Access to, bool map) const noexcept;
    int change(uint64_t first, uint64_t end, Access to) noexcept;
    void revoke_runs(uint64_t first, uint64_t end, Access to) noexcept;
    void map_ahead(uint64_t page) noexcept;
    void note_grant(uint64_t first, uint64_t end, Access to) noexcept;

    void make_room() noexcept;
    bool open_run(uint64_t page) noexcept;
    bool give_up(MappedPages::Run run) noexcept;

    uint8_t* const guest_;
    uint8_t* const protocol_;
    const uint64_t pages_;
    CodeSink& sink_;
    const unsigned engines_;
    const unsigned words_;  ///< 64-bit words of an owner set
    const bool coherent_;
    const bool maps_freely_;    ///< mapping commits no memory, so a grant of many pages maps them
    const bool reads_by_copy_;  ///< mapping for reading moves the page: no thread may be looking at it
    std::atomic<PageSink*> page_sink_{nullptr};

    // Per page. Written under the page's lock, read anywhere.
    LazyArray<std::atomic<uint64_t>> owners_;  ///< words_ a page; a bit set implies that it is not writable
    LazyArray<std::atomic<uint8_t>> granted_;  ///< Access; a coherent RAM only
    MappedPages mapped_;                       ///< what the kernel was told; never more than granted
    CodeHeat heat_;

    PageLocks locks_;
    std::atomic<uint64_t> hand_{0};  ///< where make_room looks next; under all locks

    mutable PageAtomics count_;

    FaultRange range_;  ///< last: the handler finds a complete object
};

}  // namespace coremesh
