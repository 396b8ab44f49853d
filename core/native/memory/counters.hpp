// SPDX-License-Identifier: GPL-2.0-or-later
// What the memory-transaction service counts beside the protocol (coherence/counters.hpp).
#pragma once

#include "base/counters.hpp"

namespace coremesh {

#define COREMESH_MEMORY_COUNTERS(X)                                      \
    X(waits, "times", "a thread slept until a page was here")            \
    X(wait_ns, "ns", "that threads waited for pages, together")          \
    X(own_receives, "times", "a thread that waited received itself")     \
    X(pages_sent_zero, "pages", "sent as zeros: a byte")                 \
    X(pages_sent_sparse, "pages", "sent as the words that are not zero") \
    X(pages_sent_raw, "pages", "sent as they are")                       \
    X(page_bytes, "bytes", "of pages sent")                              \
    X(malformed, "messages", "of the page protocol that could not be read")

COREMESH_SHARED_COUNTERS(Memory, COREMESH_MEMORY_COUNTERS)

}  // namespace coremesh
