// SPDX-License-Identifier: GPL-2.0-or-later
// Which engines translated code from which page, and what happens when that page is written.
//
// A page that holds translated code is read-only in the guest view. A write to it by another vCPU, a device
// or the vCPU itself goes: take the owners; post an invalidation to each and kick it; make the page writable;
// let the write go on. Post, kick, *then* write: on x86 a core that can see the new bytes (or anything
// written after them) then sees the kick at its next block head (SDM 3A, 9.1.3 and 9.2). Nobody is stopped.
//
// A page that is written again and again, because it mixes code with hot data, would fault for ever. After
// some faults it is left writable for good: it is *mixed*, and blocks translated from it have to compare
// their own bytes before they run.
//
// README.md in this folder has the reasons and the races one by one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "ram/fault_handler.hpp"
#include "ram/lazy_array.hpp"
#include "ram/page_locks.hpp"
#include "ram/protected_pages.hpp"
#include "ram/ram_layout.hpp"

namespace coremesh {

/// A write to a protected page, as seen by the handler in the faulting thread.
struct FaultContext {
    uint64_t gpa;       ///< guest-physical address of the first byte that faulted
    uint64_t ram_page;  ///< RAM offset >> 12
    uintptr_t host_pc;  ///< of the faulting instruction, in translated code or in a function of the engine
    void* ucontext;     ///< ucontext_t*
    bool had_code;      ///< some engine owned translations of the page until this fault
};

/// The engines' side. All methods are called from any thread, also inside a signal handler: no allocation, no
/// lock that may be held while guest memory is touched, no exception.
class CodeSink {
  public:
    /// Post "drop what you translated from this page" to the engine's mailbox and kick it. Called with the
    /// page's lock held: must not call CodePages or touch the guest view.
    virtual void code_written(unsigned engine, uint64_t ram_page) noexcept = 0;
    /// Last thing in the handler, in the faulting thread: owners are posted and kicked, the page is writable,
    /// no lock is held, no signal is blocked. May leave by siglongjmp (a precise restart of self-modifying
    /// code). On return the store is executed; the value says whether the thread's own code was hit, and is
    /// only counted.
    virtual bool self_write(const FaultContext& fault) noexcept = 0;

  protected:
    ~CodeSink() = default;
};

struct CodeCounters {
    uint64_t faults = 0;         ///< write faults on protected pages
    uint64_t spurious = 0;       ///< faults on pages that had just become writable
    uint64_t self_writes = 0;    ///< faults for which self_write said so
    uint64_t invalidations = 0;  ///< posts of code_written, whatever the reason
    uint64_t protects = 0;       ///< pages made read-only
    uint64_t evictions = 0;      ///< pages given up to stay below vm.max_map_count (mprotect only)
    uint64_t mixed_pages = 0;    ///< pages that have become mixed
};

class CodePages final : private FaultTarget {
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
        /// mprotect only: runs of protected pages allowed (each costs two mappings); 0 = from
        /// vm.max_map_count.
        uint64_t max_runs = 0;
    };

    /// The two views of a RAM of this layout, and what guards the first. Throws PlatformError, and
    /// std::invalid_argument unless 1 <= engines <= 256.
    CodePages(uint8_t* guest, uint8_t* protocol, RamLayout layout, WriteGuard& guard, CodeSink& sink,
              unsigned engines, Options options);
    ~CodePages();

    // translation: on the engine's own thread

    /// Before the first byte of the page is read for a translation. True: the page is guarded, every later
    /// write to it posts to this engine; one load when the engine already owns the page. False: it is not,
    /// because it is mixed or the host could not protect it: the block must compare its bytes each time
    /// before it runs.
    [[nodiscard]] bool begin_translation(unsigned engine, uint64_t page) noexcept {
        const uint64_t word = owners_[page * words_ + engine / 64].load(std::memory_order_acquire);
        if (word >> (engine % 64) & 1) [[likely]]
            return true;
        return take_page(engine, page);
    }
    /// Whether the page was written so often that it is not guarded any more. Any thread.
    bool is_mixed(uint64_t page) const noexcept {
        return state_[page].load(std::memory_order_acquire) & kMixed;
    }
    /// Engines that translated from the page since it was last written. None of a mixed page. Any thread.
    OwnerSet owners(uint64_t page) const noexcept;

    // writes that do not fault: devices, loaders. Any thread

    /// Copies through the protocol view, page by page: invalidate, then write, under the page's lock.
    void write(uint64_t offset, const void* from, uint64_t length) noexcept;
    /// Invalidates the code of the pages. A caller that writes by itself must call it before *and* after its
    /// write: an engine may translate in between, and is found by the second call.
    bool announce_write(uint64_t offset, uint64_t length) noexcept;

    CodeCounters counters() const noexcept;
    unsigned engines() const noexcept { return engines_; }
    /// Runs of protected pages now (mprotect only, else 0).
    uint64_t runs() const noexcept { return protected_.runs(); }

  private:
    static constexpr uint32_t kMixed = 1;

    bool on_fault(uintptr_t address, void* ucontext) noexcept override;

    bool take_page(unsigned engine, uint64_t page) noexcept;
    bool post_owners(uint64_t page) noexcept;
    bool has_owners(uint64_t page) const noexcept;
    void count_fault(uint64_t page) noexcept;
    void make_room() noexcept;
    bool open_run(uint64_t page) noexcept;
    bool open(ProtectedPages::Run run) noexcept;

    uint8_t* const guest_;
    uint8_t* const protocol_;
    const RamLayout layout_;
    CodeSink& sink_;
    const unsigned engines_;
    const unsigned words_;  ///< 64-bit words of an owner set
    const Options options_;

    // Per page. Written under the page's lock, read anywhere.
    LazyArray<std::atomic<uint64_t>> owners_;  ///< words_ a page; a bit set implies that it is protected
    ProtectedPages protected_;                 ///< what the kernel was told
    LazyArray<std::atomic<uint32_t>> state_;  ///< mixed (1 bit), fault count (8), time of the last fault (23)

    PageLocks locks_;
    std::atomic<uint64_t> hand_{0};  ///< where make_room looks next; under all locks

    mutable struct {
        std::atomic<uint64_t> faults{0}, spurious{0}, self_writes{0}, invalidations{0}, protects{0},
            evictions{0}, mixed_pages{0};
    } count_;

    FaultRange range_;  ///< last: the handler finds a complete object
};

}  // namespace coremesh
