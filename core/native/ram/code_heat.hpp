// SPDX-License-Identifier: GPL-2.0-or-later
// How often code pages were written of late, and which of them are mixed for good.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/lazy_array.hpp"

namespace coremesh {

class CodeHeat {
  public:
    /// A page becomes mixed with its `mixed_after`-th write (0: never); the count halves every `decay_ms`
    /// without one.
    CodeHeat(uint64_t pages, unsigned mixed_after, unsigned decay_ms)
        : mixed_after_(mixed_after), decay_ms_(std::max(1u, decay_ms)), state_(pages) {}

    bool is_mixed(uint64_t page) const noexcept {
        return state_[page].load(std::memory_order_acquire) & kMixed;
    }
    /// Counts a write at `now_ms`. The page's lock is held, and it is not mixed. Whether it has become so.
    bool count(uint64_t page, uint64_t now_ms) noexcept {
        const uint32_t state = state_[page].load(std::memory_order_relaxed);
        const auto now = static_cast<uint32_t>(now_ms / decay_ms_) & kTickMask;
        const uint32_t halvings = std::min((now - (state >> 9)) & kTickMask, 8u);
        const uint32_t count = std::min(((state >> 1 & 0xff) >> halvings) + 1, 255u);
        const bool too_often = mixed_after_ && count >= mixed_after_;
        state_[page].store(now << 9 | count << 1 | (too_often ? kMixed : 0), std::memory_order_release);
        return too_often;
    }

  private:
    static constexpr uint32_t kMixed = 1;
    static constexpr uint32_t kTickMask = (1u << 23) - 1;

    const unsigned mixed_after_;
    const unsigned decay_ms_;
    LazyArray<std::atomic<uint32_t>> state_;  ///< mixed (1 bit), count (8), time of the last write (23)
};

}  // namespace coremesh
