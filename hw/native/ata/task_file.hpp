// SPDX-License-Identifier: GPL-2.0-or-later
// A drive's copy of the command block: what a command's address, count and features are.
#pragma once

#include <array>
#include <cstdint>

#include "hw/native/ata/registers.hpp"

namespace coremesh::ata {

/// Registers 1 to 5 are two bytes deep: a write moves the byte before it one down (ATA/ATAPI-6, 6.20). 48-bit
/// commands take both bytes, 28-bit commands the last one.
struct TaskFile {
    std::array<uint8_t, 7> last{}, previous{};

    void write(unsigned at, uint8_t value) noexcept {
        previous[at] = last[at];
        last[at] = value;
    }
    /// The last byte, or with `hob` the one before.
    uint8_t read(unsigned at, bool hob) const noexcept { return (hob && at != kHead ? previous : last)[at]; }

    /// What a reset leaves in count, low, mid, high: they tell what kind of device this is (section 9.12).
    void sign(const std::array<uint8_t, 4>& signature) noexcept {
        last = {0,
                0,
                signature[0],
                signature[1],
                signature[2],
                signature[3],
                static_cast<uint8_t>(last[kHead] & device::kDev)};
        previous = {};
    }

    uint8_t features() const noexcept { return last[kError]; }

    /// Zero stands for one more than the largest.
    uint32_t sectors(bool wide) const noexcept {
        const uint32_t count = wide ? previous[kCount] << 8 | last[kCount] : last[kCount];
        return count ? count : wide ? 1u << 16 : 1u << 8;
    }

    /// The first sector of a command; -1 for a cylinder, head and sector that no disk has.
    int64_t address(bool wide, unsigned heads, unsigned per_track) const noexcept {
        const int64_t low = last[kHigh] << 16 | last[kMid] << 8 | last[kLow];
        if (wide) return int64_t{previous[kHigh] << 16 | previous[kMid] << 8 | previous[kLow]} << 24 | low;
        const int64_t head = last[kHead] & device::kHeadBits;
        if (last[kHead] & device::kLba) return head << 24 | low;
        const unsigned sector = last[kLow];
        if (sector < 1 || sector > per_track || head >= heads) return -1;
        return ((low >> 8) * heads + head) * per_track + sector - 1;
    }

    /// Shows the host the address `lba`, as a command that failed there does.
    void put_address(uint64_t lba, bool wide) noexcept {
        for (unsigned i = 0; i < 3; ++i) {
            last[kLow + i] = static_cast<uint8_t>(lba >> 8 * i);
            if (wide) previous[kLow + i] = static_cast<uint8_t>(lba >> (24 + 8 * i));
        }
        if (!wide) {
            last[kHead] =
                static_cast<uint8_t>((last[kHead] & ~device::kHeadBits) | (lba >> 24 & device::kHeadBits));
        }
    }
};

}  // namespace coremesh::ata
