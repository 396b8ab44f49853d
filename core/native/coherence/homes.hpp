// SPDX-License-Identifier: GPL-2.0-or-later
// Which host is the home of which page.
#pragma once

#include <cstdint>
#include <vector>

#include "coherence/messages.hpp"

namespace coremesh::coherence {

/// Pages [first, end) of RAM have their directory, and at the start their bytes, on `host`.
struct HomeRange {
    uint64_t first;
    uint64_t end;
    HostId host;
};

class Homes {
  public:
    /// The ranges in any order. std::invalid_argument unless they cover [0, pages) exactly once, with hosts
    /// below `hosts`.
    Homes(std::vector<HomeRange> ranges, uint64_t pages, unsigned hosts);

    /// page < pages(). Any thread.
    HostId of(uint64_t page) const noexcept;
    uint64_t pages() const noexcept { return pages_; }
    const std::vector<HomeRange>& ranges() const noexcept { return ranges_; }

  private:
    std::vector<HomeRange> ranges_;
    uint64_t pages_;
};

}  // namespace coremesh::coherence
