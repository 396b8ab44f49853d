// SPDX-License-Identifier: GPL-2.0-or-later
// What a host may do with a page of guest RAM: the three states of the page protocol.
#pragma once

#include <cstdint>

namespace coremesh {

/// Ordered: a page that may be written may be read. I, S and M of the protocol (coherence/README.md).
enum class Access : uint8_t {
    kNone = 0,   ///< Invalid: another host may have written the page
    kRead = 1,   ///< Shared: the same bytes as every other copy; no host may write
    kWrite = 2,  ///< Modified: the only copy in the machine
};

}  // namespace coremesh
