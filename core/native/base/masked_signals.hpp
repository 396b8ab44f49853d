// SPDX-License-Identifier: GPL-2.0-or-later
// Threads of ours that signals of the process leave alone.
#pragma once

#include <pthread.h>
#include <csignal>

namespace coremesh {

/// While it exists, signals of the process (Ctrl-C, profilers) are for its other threads. A thread that is
/// created meanwhile inherits that for its whole life. Faults are not masked: they are each thread's own. One
/// thread.
class MaskedSignals {
  public:
    MaskedSignals() noexcept {
        sigset_t most;
        sigfillset(&most);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&most, fault);
        pthread_sigmask(SIG_SETMASK, &most, &before_);
    }
    ~MaskedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    MaskedSignals(const MaskedSignals&) = delete;
    MaskedSignals& operator=(const MaskedSignals&) = delete;

  private:
    sigset_t before_{};
};

}  // namespace coremesh
