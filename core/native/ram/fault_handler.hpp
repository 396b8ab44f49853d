// SPDX-License-Identifier: GPL-2.0-or-later
// The process's SIGSEGV and SIGBUS handlers, and which host addresses they answer for.
//
// A fault outside the registered ranges belongs to another handler (Python's faulthandler, Ray's crash
// reporter, a plain bug) and goes to the handler that was there before ours, or to the default action. None
// is swallowed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coremesh {

class FaultTarget {
  public:
    /// In the faulting thread, inside the signal handler, no lock held. True: let the instruction run again.
    /// False: not ours. May leave by siglongjmp: the handler runs with SA_NODEFER and blocks no signal, so no
    /// mask needs to be restored (sigsetjmp(env, 0) is enough), and holds nothing.
    virtual bool on_fault(uintptr_t address, void* ucontext) noexcept = 0;

  protected:
    ~FaultTarget() = default;
};

/// The registration of one range for one signal and si_code, for as long as it lives. Any thread; look-up in
/// the handler is lock-free. Throws PlatformError when all 64 places are taken. On destruction no thread may
/// still be faulting in the range.
class FaultRange {
  public:
    FaultRange(const uint8_t* begin, size_t length, int signal, int code, FaultTarget& target);
    ~FaultRange();
    FaultRange(const FaultRange&) = delete;
    FaultRange& operator=(const FaultRange&) = delete;

  private:
    unsigned slot_;
};

/// Installs our handlers, or puts them back in front when other code replaced them since (Python's
/// faulthandler.enable() does): the handler found there now is then the one that foreign faults go to.
/// FaultRange calls it; call it again before vCPUs start. Any thread.
void ensure_fault_handlers();

}  // namespace coremesh
