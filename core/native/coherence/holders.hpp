// SPDX-License-Identifier: GPL-2.0-or-later
// Which hosts have a page, as its home knows it.
#pragma once

#include <cstdint>

namespace coremesh::coherence {

struct Holders {
    bool writable;   ///< one host, and it may write; else `hosts` may read
    uint64_t hosts;  ///< bit n: host n
    bool busy;       ///< a transaction is under way
};

}  // namespace coremesh::coherence
