// SPDX-License-Identifier: GPL-2.0-or-later
// This host's access to each page, readable by any thread without a lock.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/access.hpp"
#include "coherence/homes.hpp"
#include "base/lazy_array.hpp"

namespace coremesh::coherence {

/// A byte a page: an Access. At the start a host may write the pages of which it is the home, and no others.
class AccessTable {
  public:
    AccessTable(const Homes& homes, HostId self) : pages_(homes.pages()), bytes_(pages_) {
        for (const HomeRange& range : homes.ranges()) {
            if (range.host != self) continue;
            for (uint64_t page = range.first; page < range.end; ++page) set(page, Access::kWrite);
        }
    }

    /// Any thread.
    Access get(uint64_t page) const noexcept {
        if (page >= pages_) return Access::kNone;
        return bytes_[page].load(std::memory_order_acquire);
    }
    /// The bytes of all pages, for what reads them without a call (cm_ram_layout).
    const uint8_t* bytes() const noexcept { return reinterpret_cast<const uint8_t*>(&bytes_[0]); }
    /// Under the protocol lock.
    void set(uint64_t page, Access access) noexcept { bytes_[page].store(access, std::memory_order_release); }

  private:
    static_assert(sizeof(std::atomic<Access>) == 1 && std::atomic<Access>::is_always_lock_free);

    uint64_t pages_;
    LazyArray<std::atomic<Access>> bytes_;
};

}  // namespace coremesh::coherence
