// SPDX-License-Identifier: GPL-2.0-or-later
// Where guest RAM is in the guest-physical address space, and where each byte of it is in the memory file.
#pragma once

#include <cstdint>
#include <optional>

namespace coremesh {

/// RAM is at guest-physical [0, low_size) and [4 GiB, 4 GiB + size - low_size); a RAM offset counts through
/// both.
struct RamLayout {
    static constexpr uint64_t kPage = 4096;
    static constexpr uint64_t kHighBase = uint64_t{4} << 30;

    uint64_t size;
    uint64_t low_size;

    uint64_t pages() const noexcept { return size / kPage; }

    /// The RAM offset of [gpa, gpa + length), or nothing unless all of it is RAM in one block. length >= 1.
    std::optional<uint64_t> offset_of(uint64_t gpa, uint64_t length = 1) const noexcept {
        if (length == 0) return std::nullopt;
        if (gpa < low_size) {
            if (length > low_size - gpa) return std::nullopt;
            return gpa;
        }
        if (gpa < kHighBase || gpa - kHighBase >= size - low_size) return std::nullopt;
        const uint64_t high = gpa - kHighBase;
        if (length > size - low_size - high) return std::nullopt;
        return low_size + high;
    }
    uint64_t gpa_of(uint64_t offset) const noexcept {
        return offset < low_size ? offset : kHighBase + (offset - low_size);
    }
};

}  // namespace coremesh
