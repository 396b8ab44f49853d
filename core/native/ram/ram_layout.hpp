// SPDX-License-Identifier: GPL-2.0-or-later
// Where guest memory is in the guest-physical address space, and where each byte of it is in the memory file.
//
// The list is declared by the machine's board (core/memory_layout.py) and handed down; nothing here or below
// knows any particular board's. A *RAM offset* is a position in the memory file, a *RAM page* an offset >>
// 12, in ROM as in RAM.
#pragma once

#include <atomic>
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

/// A part of RAM whose addresses can lead to ROM instead: bytes [rom_offset, rom_offset + bytes) of the file.
/// The machine steers reads and writes, each for itself, while it runs (RamLayout::steer).
struct RamShadow {
    uint64_t gpa, bytes, rom_offset;
};

/// Where a region's accesses lead under a certain steering.
struct SteeredRegion {
    uint64_t gpa, bytes;
    uint64_t offset;        ///< of the bytes that are read and executed
    bool rom;               ///< what is written there is dropped, unless:
    bool stores_elsewhere;  ///< what is written goes to the RAM that is not read now
};

class RamLayout {
  public:
    static constexpr uint64_t kPage = 4096;
    static constexpr size_t kMaxRegions = 64;
    /// The engine's guests have 40 bits of physical address.
    static constexpr uint64_t kAddressEnd = uint64_t{1} << 40;
    /// Steering: two bits a shadow, by rising address.
    static constexpr size_t kMaxShadows = 32;
    static constexpr uint64_t kReadRam = 1, kWriteRam = 2;

    /// In any order. Throws RamSizeError unless all numbers are multiples of 4096, no two regions share an
    /// address, the offsets cover [0, size()) once, each shadow lies in a region of RAM, and the ROM of the
    /// shadows follows the regions in the file. At first every shadow shows its ROM.
    explicit RamLayout(std::vector<RamRegion> regions, std::vector<RamShadow> shadows = {});
    RamLayout(const RamLayout& other)
        : regions_(other.regions_),
          shadow_of_(other.shadow_of_),
          shadows_(other.shadows_),
          size_(other.size_),
          steering_(other.steering()) {}

    /// By rising guest-physical address; a shadow is a region of its own, with the offset of its RAM.
    const std::vector<RamRegion>& regions() const noexcept { return regions_; }
    const std::vector<RamShadow>& shadows() const noexcept { return shadows_; }

    /// Any thread. The next lookup of an address finds it so; engines have to be told.
    void steer(uint64_t steering) noexcept { steering_.store(steering, std::memory_order_seq_cst); }
    uint64_t steering() const noexcept { return steering_.load(std::memory_order_seq_cst); }
    /// regions()[index] as it is steered.
    SteeredRegion steered(size_t index, uint64_t steering) const noexcept;
    /// Whether a store to this address goes to other bytes than a load from it comes from.
    bool stores_elsewhere(uint64_t gpa) const noexcept;
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
    void split(const RamShadow& shadow);
    std::optional<uint64_t> find(uint64_t gpa, uint64_t length, bool write) const noexcept;

    std::vector<RamRegion> regions_;
    std::vector<int> shadow_of_;  // by region; -1: none
    std::vector<RamShadow> shadows_;
    uint64_t size_ = 0;
    std::atomic<uint64_t> steering_{0};
};

}  // namespace coremesh
