// SPDX-License-Identifier: GPL-2.0-or-later
// Numbered records that come and go without allocation once there have been as many as there ever are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace coremesh::coherence {

/// Record 0 is never given out: a zero says "none" in the page tables. References stay valid.
template <typename T>
class Pool {
  public:
    explicit Pool(size_t expected) : records_(1) { free_.reserve(expected); }

    /// A record as new.
    uint32_t take() {
        ++in_use_;
        if (free_.empty()) {
            records_.emplace_back();
            if (free_.capacity() < records_.size()) free_.reserve(records_.size() * 2);
            return static_cast<uint32_t>(records_.size() - 1);
        }
        const uint32_t number = free_.back();
        free_.pop_back();
        records_[number] = T{};
        return number;
    }
    void give(uint32_t number) noexcept {
        --in_use_;
        free_.push_back(number);  // reserved in take()
    }
    T& operator[](uint32_t number) noexcept { return records_[number]; }
    const T& operator[](uint32_t number) const noexcept { return records_[number]; }
    size_t in_use() const noexcept { return in_use_; }

  private:
    std::deque<T> records_;
    std::vector<uint32_t> free_;
    size_t in_use_ = 0;
};

}  // namespace coremesh::coherence
