// SPDX-License-Identifier: GPL-2.0-or-later
// Where guest memory is in the guest-physical address space, and where each byte of it is in the memory file.
//
// The list is declared by the machine's board (core/memory_layout.py) and handed down; nothing here or below
// knows any particular board's. A *RAM offset* is a position in the memory file, a *RAM page* an offset >>
// 12, in ROM as in RAM.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

namespace coremesh {

/// A list of regions that no machine can have. The text names the region and what is allowed.
class RamSizeError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

/// Bytes [gpa, gpa + bytes) for the guest, [offset, offset + bytes) in the file.
struct RamRegion {
    uint64_t gpa, bytes, offset;
    /// Executed and read like RAM; what a guest or a bus master writes to it is dropped.
    bool rom = false;
};

class RamLayout {
  public:
    static constexpr uint64_t kPage = 4096;
    static constexpr size_t kMaxRegions = 64;
    /// The engine's guests have 40 bits of physical address.
    static constexpr uint64_t kAddressEnd = uint64_t{1} << 40;

    /// In any order. Throws RamSizeError unless all numbers are multiples of 4096, no two regions share an
    /// address, and the offsets cover [0, size()) once.
    explicit RamLayout(std::vector<RamRegion> regions);

    /// By rising guest-physical address.
    const std::vector<RamRegion>& regions() const noexcept { return regions_; }
    /// Bytes of the memory file.
    uint64_t size() const noexcept { return size_; }
    uint64_t pages() const noexcept { return size_ / kPage; }

    /// The RAM offset of [gpa, gpa + length), or nothing unless all of it is memory, of regions that follow
    /// each other in the file as they do in the guest's addresses. length >= 1.
    std::optional<uint64_t> offset_of(uint64_t gpa, uint64_t length = 1) const noexcept;
    /// The same, and nothing if a byte of it is ROM.
    std::optional<uint64_t> writable_offset_of(uint64_t gpa, uint64_t length = 1) const noexcept;
    /// The guest-physical address of an offset below size().
    uint64_t gpa_of(uint64_t offset) const noexcept;

  private:
    std::optional<uint64_t> find(uint64_t gpa, uint64_t length, bool rom) const noexcept;

    std::vector<RamRegion> regions_;
    uint64_t size_ = 0;
};

}  // namespace coremesh
