// SPDX-License-Identifier: GPL-2.0-or-later
// Layouts of guest memory as machines have them.
#pragma once

#include "ram/ram_layout.hpp"

namespace coremesh {

/// RAM from address 0.
inline RamLayout one_block(uint64_t size) { return RamLayout({{0, size, 0}}); }

/// A PC's: what does not fit below `low` goes on at 4 GiB.
inline RamLayout two_blocks(uint64_t size, uint64_t low) {
    return RamLayout({{0, low, 0}, {uint64_t{4} << 30, size - low, low}});
}

}  // namespace coremesh
