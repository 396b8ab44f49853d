// SPDX-License-Identifier: GPL-2.0-or-later
// The order of threads on a host that has more of them than processors.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

namespace coremesh {

/// This thread goes before vCPUs from now on, where the host lets it: a guest's driver spins until the thread
/// has run, and would use up its share of the processor for nothing. On Linux a nice value is the thread's,
/// not the process's (setpriority(2), C library/kernel differences).
inline bool go_first() noexcept { return setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), -10) == 0; }

}  // namespace coremesh
