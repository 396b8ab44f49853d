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

RamLayout::RamLayout(std::vector<RamRegion> regions, std::vector<RamShadow> shadows)
    : regions_(std::move(regions)), shadows_(std::move(shadows)) {
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
    std::sort(shadows_.begin(), shadows_.end(),
              [](const RamShadow& a, const RamShadow& b) { return a.gpa < b.gpa; });
    if (shadows_.size() > kMaxShadows) throw RamSizeError("give at most 32 shadows of RAM");
    for (const RamShadow& shadow : shadows_) split(shadow);
    if (regions_.empty() || regions_.size() > kMaxRegions) {
        throw RamSizeError(std::to_string(regions_.size()) + " regions of guest memory: give 1 to " +
                           std::to_string(kMaxRegions));
    }
    std::sort(regions_.begin(), regions_.end(),
              [](const RamRegion& a, const RamRegion& b) { return a.gpa < b.gpa; });
    for (size_t i = 1; i < regions_.size(); ++i) {
        if (regions_[i].gpa < regions_[i - 1].gpa + regions_[i - 1].bytes) {
            throw RamSizeError(named(regions_[i - 1]) + " and " + named(regions_[i]) +
                               " have addresses in common: give each its own");
        }
    }
    shadow_of_.assign(regions_.size(), -1);
    for (size_t i = 0; i < regions_.size(); ++i) {
        for (size_t number = 0; number < shadows_.size(); ++number) {
            if (shadows_[number].gpa == regions_[i].gpa) shadow_of_[i] = static_cast<int>(number);
        }
    }
}

/// Makes the shadow's addresses a region of their own, and gives its ROM room behind all that is there.
void RamLayout::split(const RamShadow& shadow) {
    const RamRegion alone{shadow.gpa, shadow.bytes, shadow.rom_offset, true};
    check_alone(alone);
    if (shadow.rom_offset != size_) {
        throw RamSizeError(named(alone) + ": what is before it ends at offset " + std::to_string(size_) +
                           "; leave no gap and no overlap");
    }
    for (RamRegion& region : regions_) {
        const uint64_t before = shadow.gpa - region.gpa;
        if (region.rom || before >= region.bytes || region.bytes - before < shadow.bytes) continue;
        const RamRegion whole = region;
        const uint64_t after = whole.bytes - before - shadow.bytes;
        region = {shadow.gpa, shadow.bytes, whole.offset + before};
        if (before) regions_.push_back({whole.gpa, before, whole.offset});
        if (after)
            regions_.push_back({shadow.gpa + shadow.bytes, after, whole.offset + before + shadow.bytes});
        size_ += shadow.bytes;
        return;
    }
    throw RamSizeError(named(alone) + ": a shadow lies in one region of RAM, and no two share an address");
}

SteeredRegion RamLayout::steered(size_t index, uint64_t steering) const noexcept {
    const RamRegion& region = regions_[index];
    const int number = shadow_of_[index];
    if (number < 0) return {region.gpa, region.bytes, region.offset, region.rom, false};
    const uint64_t bits = steering >> 2 * number;
    const bool reads_ram = bits & kReadRam, writes_ram = bits & kWriteRam;
    return {region.gpa, region.bytes,
            reads_ram ? region.offset : shadows_[static_cast<size_t>(number)].rom_offset,
            !(reads_ram && writes_ram), !reads_ram && writes_ram};
}

bool RamLayout::stores_elsewhere(uint64_t gpa) const noexcept {
    for (size_t number = 0; number < shadows_.size(); ++number) {
        if (gpa - shadows_[number].gpa >= shadows_[number].bytes) continue;
        return (steering() >> 2 * number & (kReadRam | kWriteRam)) == kWriteRam;
    }
    return false;
}

std::optional<uint64_t> RamLayout::find(uint64_t gpa, uint64_t length, bool write) const noexcept {
    if (length == 0) return std::nullopt;
    const uint64_t steering = this->steering();
    uint64_t start = 0, follows = 0;  // offsets: of the first byte, and of the one that has to come next
    for (size_t i = 0; i < regions_.size(); ++i) {
        const RamRegion& region = regions_[i];
        const uint64_t inside = gpa - region.gpa;  // below it, the difference wraps to a large number
        if (inside >= region.bytes) continue;
        const SteeredRegion at = steered(i, steering);
        if (write && at.rom && !at.stores_elsewhere) return std::nullopt;
        const uint64_t offset = (write ? region.offset : at.offset) + inside;
        if (follows && offset != follows) return std::nullopt;
        if (!follows) start = offset;
        const uint64_t here = region.bytes - inside;
        if (length <= here) return start;
        length -= here;
        gpa += here;
        follows = offset + here;
    }
    return std::nullopt;
}

std::optional<uint64_t> RamLayout::offset_of(uint64_t gpa, uint64_t length) const noexcept {
    return find(gpa, length, false);
}

std::optional<uint64_t> RamLayout::writable_offset_of(uint64_t gpa, uint64_t length) const noexcept {
    return find(gpa, length, true);
}

uint64_t RamLayout::gpa_of(uint64_t offset) const noexcept {
    for (const RamRegion& region : regions_) {
        if (offset - region.offset < region.bytes) return region.gpa + (offset - region.offset);
    }
    for (const RamShadow& shadow : shadows_) {
        if (offset - shadow.rom_offset < shadow.bytes) return shadow.gpa + (offset - shadow.rom_offset);
    }
    return ~uint64_t{0};
}

}  // namespace coremesh
