// SPDX-License-Identifier: GPL-2.0-or-later
// The pages that this host's threads fight for most: counts in a small fixed table.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coherence/counters.hpp"

namespace coremesh::coherence {

/// 64 sets of 8. A page that is new to a full set takes the place of its least contended one: a page with
/// many counts stays, the many with few come and go (their counts are lost, which is what a list of the most
/// contended can afford).
class ContendedPages {
  public:
    static constexpr size_t kSets = 64;
    static constexpr size_t kWays = 8;

    ContendedPage& of(uint64_t page) noexcept {
        Set& set = set_of(page);
        ContendedPage* least = &set[0];
        for (ContendedPage& entry : set) {
            if (entry.total() != 0 && entry.page == page) return entry;
            if (entry.total() < least->total()) least = &entry;
        }
        *least = ContendedPage{};
        least->page = page;
        return *least;
    }

    /// Counts the place in the guest's code that used the page, if the page is one of these.
    void used(uint64_t page, uint64_t place) noexcept {
        for (ContendedPage& entry : set_of(page)) {
            if (entry.total() != 0 && entry.page == page) entry.used(place);
        }
    }

    std::vector<ContendedPage> most(size_t count) const {
        std::vector<ContendedPage> all;
        for (const Set& set : sets_) {
            for (const ContendedPage& entry : set) {
                if (entry.total() != 0) all.push_back(entry);
            }
        }
        std::sort(all.begin(), all.end(), [](const ContendedPage& a, const ContendedPage& b) {
            return a.total() != b.total() ? a.total() > b.total() : a.page < b.page;
        });
        if (all.size() > count) all.resize(count);
        return all;
    }

  private:
    using Set = std::array<ContendedPage, kWays>;

    Set& set_of(uint64_t page) noexcept { return sets_[(page * 0x9e3779b97f4a7c15u) >> 58]; }

    std::array<Set, kSets> sets_{};
};

}  // namespace coremesh::coherence
