// SPDX-License-Identifier: GPL-2.0-or-later
// The bus master's walk through a table of physical region descriptors, and the bytes that it moves by it.
//
// Source: Programming Interface for Bus Master IDE Controller, revision 1.0 (1994), section 1.2; Intel
// 82371SB datasheet, section 2.7. All of it runs without a lock: it may wait for the medium, and for a page
// that another host has. The guest can change the table meanwhile, so each descriptor is read once.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bus/bus_master.hpp"
#include "hw/native/ata/drive.hpp"
#include "hw/native/block_store.hpp"

namespace coremesh::ata {

/// One descriptor: 2 to 65,536 bytes; `last` if the table ends with it.
struct Region {
    uint32_t gpa, length;
    bool last;
};

/// The descriptors of one table, at most 8192: a table does not cross a boundary of 64 KiB.
class RegionTable {
  public:
    enum class Next : uint8_t { kRegion, kEnd, kNoRam };

    RegionTable(BusMaster& memory, uint32_t table) noexcept;
    Next next(Region& region) noexcept;

  private:
    static constexpr uint32_t kEntry = 8, kChunk = 256;

    BusMaster& memory_;
    uint64_t at_;
    const uint64_t end_;
    std::array<uint8_t, kChunk> chunk_;
    uint32_t used_ = 0, filled_ = 0;
    bool ended_ = false;
};

/// What became of a transfer, and what the bus master's status is to say of it.
struct Outcome {
    uint64_t moved = 0;
    bool complete = false;     ///< the drive's transfer is done
    bool table_ended = false;  ///< and so is the table, exactly
    bool bus_error = false;    ///< no RAM where the guest said
    int medium_error = 0;      ///< a negative errno, or 0
};

/// Moves transfers, one at a time; it keeps its buffers between them.
class Mover {
  public:
    explicit Mover(BusMaster& memory) noexcept : memory_(memory) {}

    /// @param store the drive's medium; may be null for a transfer from the drive's buffer.
    /// @param sectors of the medium, against which a TRIM is checked.
    Outcome move(const Transfer& transfer, BlockStore* store, uint64_t sectors, uint32_t table) noexcept;

  private:
    struct Segment {
        uint64_t gpa, length;
    };

    /// The bytes of the batch, and how it ended.
    bool flush_batch(const Transfer& transfer, BlockStore* store, Outcome& outcome) noexcept;
    int from_medium(BlockStore& store, bool& no_ram) noexcept;
    int to_medium(BlockStore& store, bool& no_ram) noexcept;
    int end(const Transfer& transfer, BlockStore* store, uint64_t sectors) noexcept;
    bool places(bool to_write) noexcept;
    bool scatter(const uint8_t* data) noexcept;
    bool gather(uint8_t* data) noexcept;

    BusMaster& memory_;
    std::vector<Segment> batch_;
    uint64_t batched_ = 0;
    uint64_t at_ = 0;  // of the medium, or of the drive's buffer
    std::vector<iovec> places_;
    std::vector<uint8_t> buffer_;
    std::vector<uint8_t> rest_;  // of a sector that is to be written; the ranges of a TRIM
};

}  // namespace coremesh::ata
