// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/homes.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace coremesh::coherence {

Homes::Homes(std::vector<HomeRange> ranges, uint64_t pages, unsigned hosts)
    : ranges_(std::move(ranges)), pages_(pages) {
    std::erase_if(ranges_, [](const HomeRange& range) { return range.first == range.end; });
    std::sort(ranges_.begin(), ranges_.end(),
              [](const HomeRange& a, const HomeRange& b) { return a.first < b.first; });
    uint64_t next = 0;
    for (const HomeRange& range : ranges_) {
        if (range.host >= hosts) {
            throw std::invalid_argument("pages have their home on host " + std::to_string(range.host) +
                                        " of " + std::to_string(hosts));
        }
        if (range.first != next || range.end < range.first) {
            throw std::invalid_argument("the homes of pages leave a gap or overlap at page " +
                                        std::to_string(range.first));
        }
        next = range.end;
    }
    if (next != pages_) {
        throw std::invalid_argument("the homes of pages end at " + std::to_string(next) + ", RAM at " +
                                    std::to_string(pages_));
    }
}

HostId Homes::of(uint64_t page) const noexcept {
    // A handful of ranges: hosts, perhaps twice.
    const auto after =
        std::upper_bound(ranges_.begin(), ranges_.end(), page,
                         [](uint64_t wanted, const HomeRange& range) { return wanted < range.end; });
    return after == ranges_.end() ? HostId{0} : after->host;
}

}  // namespace coremesh::coherence
