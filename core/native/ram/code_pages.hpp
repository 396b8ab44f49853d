// SPDX-License-Identifier: GPL-2.0-or-later
// Which engines translated code from which page, and what happens when that page is written.
//
// A page that holds translated code is read-only in the guest view. A write to it by another vCPU, a device
// or the vCPU itself goes: take the owners; post an invalidation to each and kick it; make the page writable;
// let the write go on. Post, kick, *then* write: on x86 a core that can see the new bytes (or anything
// written after them) then sees the kick at its next block head (SDM 3A, 9.1.3 and 9.2). Nobody is stopped.
//
// A page is in one of three kinds:
//   guarded  the usual one: protected from the first translation until the next write
//   mixing   written too often; every engine has been asked to flush its TLB entry of the page and to check
//   its
//            stores to it from then on. Until the last one has answered it is still guarded
//   mixed    never protected again: stores are checked in software against a map of the bytes translated
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
    /// Ask every engine to flush its TLB entries of the page, to take the slow path for stores to it from
    /// then on (CodePages::checks_stores is already true), and then to call acknowledge_mixed. Asked again
    /// while the page goes on being written before all have answered. No lock is held.
    virtual void page_becomes_mixed(uint64_t ram_page) noexcept = 0;
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
        unsigned mixed_after = 16;
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

    /// Before the first byte of the page is read for a translation. On return every later write to the page
    /// posts to this engine. One load when the engine already owns the page. False: the host could not
    /// protect the page (out of kernel memory); nothing may be translated from it.
    [[nodiscard]] bool begin_translation(unsigned engine, uint64_t page) noexcept {
        const uint64_t word = owners_[page * words_ + engine / 64].load(std::memory_order_acquire);
        if (word >> (engine % 64) & 1) [[likely]]
            return true;
        return take_page(engine, page);
    }
    /// After the block was translated: the bytes first..last of the page (0..4095, inclusive) are in it.
    /// Until this call all of a mixed page counts as code. Costs one load on other pages.
    void note_code_bytes(unsigned engine, uint64_t page, unsigned first, unsigned last) noexcept;

    // mixed pages

    /// Stores to this page must take the slow path: CheckedStore, or announce_write before and after. Any
    /// thread.
    bool checks_stores(uint64_t page) const noexcept { return kind_of(page) != Kind::guarded; }
    /// The page has become mixed: it is never protected again. Any thread.
    bool is_mixed(uint64_t page) const noexcept { return kind_of(page) == Kind::mixed; }
    /// The engine has flushed its TLB entries of the page. On its own thread, or on another's while it is
    /// parked and has no entries. The last of them makes the page mixed. Repeated calls do no harm.
    void acknowledge_mixed(unsigned engine, uint64_t page) noexcept;
    /// Whether a store to first..last would hit translated code. Any thread; a hint unless the lock is held.
    bool touches_code(uint64_t page, unsigned first, unsigned last) const noexcept;
    OwnerSet owners(uint64_t page) const noexcept;

    // writes that do not fault: devices, loaders, stores to mixed pages. Any thread

    /// Copies through the protocol view, page by page: invalidate, then write, under the page's lock.
    void write(uint64_t offset, const void* from, uint64_t length) noexcept;
    /// Invalidates what the write would hit. A caller that does not hold a CheckedStore must call it before
    /// *and* after its write: an engine may translate in between, and is found by the second call.
    bool announce_write(uint64_t offset, uint64_t length) noexcept;

    CodeCounters counters() const noexcept;
    unsigned engines() const noexcept { return engines_; }
    /// Runs of protected pages now (mprotect only, else 0).
    uint64_t runs() const noexcept { return protected_.runs(); }

  private:
    friend class CheckedStore;
    enum class Kind : uint32_t { guarded = 0, mixing = 1, mixed = 2 };

    /// Only touched once a page is mixing or mixed. All under the page's lock but for note_code_bytes and
    /// hints.
    struct MixedPage {
        std::atomic<uint64_t> bytes[kPage / 64];         ///< which bytes are in some engine's translation
        std::atomic<uint64_t> owners[kMaxEngines / 64];  ///< the owners of a mixed page (owners_ stays 0)
        std::atomic<uint64_t> translating[kMaxEngines / 64];  ///< engines between begin and note
        std::atomic<uint64_t> answered[kMaxEngines / 64];     ///< engines that have flushed their TLB
    };

    bool on_fault(uintptr_t address, void* ucontext) noexcept override;

    bool take_page(unsigned engine, uint64_t page) noexcept;
    bool invalidate(uint64_t page, unsigned first, unsigned last) noexcept;
    bool post_all(std::atomic<uint64_t>* words, uint64_t page) noexcept;
    bool count_fault(uint64_t page) noexcept;

    Kind kind_of(uint64_t page) const noexcept {
        return static_cast<Kind>(state_[page].load(std::memory_order_acquire) & 3);
    }
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
    LazyArray<std::atomic<uint64_t>>
        owners_;                ///< words_ a page; a bit set implies: protected (never on mixed pages)
    ProtectedPages protected_;  ///< what the kernel was told
    LazyArray<std::atomic<uint32_t>> state_;  ///< kind (2 bits), fault count (8), time of the last fault (22)
    LazyArray<MixedPage> mixed_;

    PageLocks locks_;
    std::atomic<uint64_t> hand_{0};  ///< where make_room looks next; under all locks

    mutable struct {
        std::atomic<uint64_t> faults{0}, spurious{0}, self_writes{0}, invalidations{0}, protects{0},
            evictions{0}, mixed_pages{0};
    } count_;

    FaultRange range_;  ///< last: the handler finds a complete object
};

/// A store to a page whose stores are checked: invalidates what it hits, then keeps translators of the page
/// out until it ends. In between write through `host()` only, at most `length` bytes (they may cross into a
/// second page), and call nothing of CodePages.
class CheckedStore {
  public:
    CheckedStore(CodePages& code, uint64_t offset, unsigned length) noexcept;
    ~CheckedStore();
    CheckedStore(const CheckedStore&) = delete;
    CheckedStore& operator=(const CheckedStore&) = delete;

    /// The protocol view's address of the first byte.
    uint8_t* host() const noexcept { return code_.protocol_ + offset_; }
    /// Whether translated code was hit (and its owners posted and kicked).
    bool hit() const noexcept { return hit_; }

  private:
    CodePages& code_;
    uint64_t offset_;
    uint64_t first_page_;
    uint64_t last_page_;
    bool hit_;
};

}  // namespace coremesh
