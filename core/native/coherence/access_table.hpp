// SPDX-License-Identifier: GPL-2.0-or-later
// This host's access to each page, readable by any thread without a lock.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/access.hpp"
#include "coherence/homes.hpp"
#include "base/lazy_array.hpp"

namespace coremesh::coherence {

/// A byte a page, touched only where the access has ever changed: zero means "as at the start".
class AccessTable {
  public:
    AccessTable(const Homes& homes, HostId self) : homes_(homes), self_(self), bytes_(homes.pages()) {}

    /// Any thread.
    Access get(uint64_t page) const noexcept {
        if (page >= homes_.pages()) return Access::kNone;
        const uint8_t byte = bytes_[page].load(std::memory_order_acquire);
        if (byte != 0) return static_cast<Access>(byte - 1);
        return homes_.of(page) == self_ ? Access::kWrite : Access::kNone;
    }
    /// Under the protocol lock.
    void set(uint64_t page, Access access) noexcept {
        bytes_[page].store(static_cast<uint8_t>(static_cast<uint8_t>(access) + 1), std::memory_order_release);
    }

  private:
    const Homes& homes_;
    HostId self_;
    LazyArray<std::atomic<uint8_t>> bytes_;
};

}  // namespace coremesh::coherence
