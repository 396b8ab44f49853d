// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/ram_layout.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <string>

namespace coremesh {
namespace {

std::string named(const RamRegion& region) {
    char text[120];
    std::snprintf(text, sizeof text,
                  "%s of %#" PRIx64 " bytes at guest address %#" PRIx64 ", offset %#" PRIx64,
                  region.rom ? "ROM" : "RAM", region.bytes, region.gpa, region.offset);
    return text;
}

void check_alone(const RamRegion& region) {
    if (region.bytes == 0 || (region.gpa | region.bytes | region.offset) % RamLayout::kPage) {
        throw RamSizeError(named(region) +
                           ": give address, size and offset as multiples of 4096, the size at least that");
    }
    if (region.gpa >= RamLayout::kAddressEnd || region.bytes > RamLayout::kAddressEnd - region.gpa) {
        throw RamSizeError(named(region) + ": guests have 40 bits of physical address; give at most " +
                           std::to_string(RamLayout::kAddressEnd >> 20) + " MiB in all");
    }
}

}  // namespace

RamLayout::RamLayout(std::vector<RamRegion> regions) : regions_(std::move(regions)) {
    if (regions_.empty() || regions_.size() > kMaxRegions) {
        throw RamSizeError(std::to_string(regions_.size()) + " regions of guest memory: give 1 to " +
                           std::to_string(kMaxRegions));
    }
    for (const RamRegion& region : regions_) check_alone(region);
    std::sort(regions_.begin(), regions_.end(),
              [](const RamRegion& a, const RamRegion& b) { return a.offset < b.offset; });
    for (const RamRegion& region : regions_) {
        if (region.offset != size_) {
            throw RamSizeError(named(region) + ": the region before it ends at offset " +
                               std::to_string(size_) + "; leave no gap and no overlap");
        }
        size_ += region.bytes;
    }
    std::sort(regions_.begin(), regions_.end(),
              [](const RamRegion& a, const RamRegion& b) { return a.gpa < b.gpa; });
    for (size_t i = 1; i < regions_.size(); ++i) {
        if (regions_[i].gpa < regions_[i - 1].gpa + regions_[i - 1].bytes) {
            throw RamSizeError(named(regions_[i - 1]) + " and " + named(regions_[i]) +
                               " have addresses in common: give each its own");
        }
    }
}

std::optional<uint64_t> RamLayout::find(uint64_t gpa, uint64_t length, bool rom) const noexcept {
    if (length == 0) return std::nullopt;
    for (size_t i = 0; i < regions_.size(); ++i) {
        const RamRegion& first = regions_[i];
        if (gpa - first.gpa >= first.bytes) continue;  // below it, the difference wraps to a large number
        for (uint64_t room = first.bytes - (gpa - first.gpa);; room += regions_[i].bytes) {
            if (regions_[i].rom && !rom) return std::nullopt;
            if (length <= room) return first.offset + (gpa - first.gpa);
            const RamRegion& last = regions_[i];
            if (++i == regions_.size() || regions_[i].gpa != last.gpa + last.bytes ||
                regions_[i].offset != last.offset + last.bytes) {
                return std::nullopt;
            }
        }
    }
    return std::nullopt;
}

std::optional<uint64_t> RamLayout::offset_of(uint64_t gpa, uint64_t length) const noexcept {
    return find(gpa, length, true);
}

std::optional<uint64_t> RamLayout::writable_offset_of(uint64_t gpa, uint64_t length) const noexcept {
    return find(gpa, length, false);
}

uint64_t RamLayout::gpa_of(uint64_t offset) const noexcept {
    for (const RamRegion& region : regions_) {
        if (offset - region.offset < region.bytes) return region.gpa + (offset - region.offset);
    }
    return ~uint64_t{0};
}

}  // namespace coremesh
