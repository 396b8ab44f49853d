// SPDX-License-Identifier: GPL-2.0-or-later
// What the page table counts.
#pragma once

#include "base/counters.hpp"

namespace coremesh {

#define COREMESH_PAGE_COUNTERS(X)                                                            \
    X(faults, "times", "write faults on pages guarded for their code")                       \
    X(spurious, "times", "faults on pages that had just become accessible")                  \
    X(invalidations, "times", "a vCPU was told to drop its translations from a page")        \
    X(protects, "pages", "made read-only for their code")                                    \
    X(mixed_pages, "pages", "have become mixed: code and data that is written all the time") \
    X(evictions, "pages", "given up to stay below vm.max_map_count (mprotect only)")         \
    /* A RAM of several hosts. */                                                            \
    X(pages_needed, "times", "a fault asked the page protocol for a page")                   \
    X(pages_mapped_late, "times", "faults on pages that were granted but not mapped")        \
    X(pages_granted, "pages", "of which this host was allowed more")                         \
    X(pages_revoked, "pages", "of which this host lost some access or all")

COREMESH_SHARED_COUNTERS(Page, COREMESH_PAGE_COUNTERS)

}  // namespace coremesh
