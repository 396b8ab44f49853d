// SPDX-License-Identifier: GPL-2.0-or-later
// What is told when a page is used in a way that it may not be: the engines that translated from it, and the
// protocol that brings pages to this host.
#pragma once

#include <cstdint>

#include "base/access.hpp"

namespace coremesh {

/// An access that the host's page protection refused, as seen by the handler in the faulting thread.
struct FaultContext {
    uint64_t offset;    ///< RAM offset of the first byte that faulted
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
    /// page's lock held: must not call PageTable or touch the guest view.
    virtual void code_written(unsigned engine, uint64_t ram_page) noexcept = 0;
    /// Last thing in the handler, in the faulting thread: owners are posted and kicked, the page is writable,
    /// no lock is held, no signal is blocked. May leave by siglongjmp (a precise restart of self-modifying
    /// code). On return the store is executed.
    virtual void self_write(const FaultContext& fault) noexcept = 0;

  protected:
    ~CodeSink() = default;
};

/// The page protocol's side; only a RAM that several hosts share has one.
class PageSink {
  public:
    /// An instruction of this thread needs `want` of the page, and the host does not have it. In the signal
    /// handler, in the faulting thread, no lock held, no signal blocked. It may call the page table, take
    /// locks that no thread holds while touching the guest view, sleep, and leave by siglongjmp, for which
    /// the state of the floating-point unit is its own care: the kernel gave the handler one of its own. It
    /// may come too late or return too early: on return the page table is looked at again, the instruction
    /// runs again, and faults again if it must. The fault may be one of a translator that reads code, or of
    /// any function of the engine (`fault.host_pc` says which): leave by a jump only where that is safe.
    virtual void page_needed(const FaultContext& fault, uint64_t ram_page, Access want) noexcept = 0;

  protected:
    ~PageSink() = default;
};

}  // namespace coremesh
