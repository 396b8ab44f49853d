// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/bus_master.hpp"

#include <algorithm>
#include <cstring>

namespace coremesh::ata {
namespace {

constexpr uint64_t kTableLimit = 1 << 16;
constexpr uint64_t kPiece = uint64_t{1} << 20;  // bytes in flight at once, whatever a guest asks for
constexpr uint32_t kEndOfTable = uint32_t{1} << 31;
constexpr size_t kRangeBytes = 8;  // of a TRIM

uint32_t word(const uint8_t* bytes) noexcept {
    return uint32_t{bytes[0]} | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16 | uint32_t{bytes[3]} << 24;
}

}  // namespace

// ---- RegionTable

RegionTable::RegionTable(BusMaster& memory, uint32_t table) noexcept
    : memory_(memory), at_(table & ~3u), end_(at_ - at_ % kTableLimit + kTableLimit) {}

RegionTable::Next RegionTable::next(Region& region) noexcept {
    if (ended_) return Next::kEnd;
    if (used_ == filled_) {
        if (at_ + kEntry > end_) return Next::kEnd;
        // What is behind the last descriptor is read in vain, and harms nothing: it is of the same page.
        const uint64_t chunk = std::min<uint64_t>(kChunk - at_ % kChunk, end_ - at_) / kEntry * kEntry;
        filled_ = std::max(kEntry, static_cast<uint32_t>(chunk));
        used_ = 0;
        if (!memory_.read(at_, chunk_.data(), filled_)) return Next::kNoRam;
        at_ += filled_;
    }
    const uint32_t address = word(&chunk_[used_]), control = word(&chunk_[used_ + 4]);
    used_ += kEntry;
    const uint32_t length = control & 0xFFFE;
    ended_ = control & kEndOfTable;
    region = {address & ~1u, length ? length : 1u << 16, ended_};
    return Next::kRegion;
}

// ---- Mover

Outcome Mover::move(const Transfer& transfer, BlockStore* store, uint64_t sectors, uint32_t table) noexcept {
    Outcome outcome;
    RegionTable regions(memory_, table);
    uint64_t left = transfer.length;
    batch_.clear();
    rest_.clear();
    batched_ = 0;
    at_ = transfer.kind == Transfer::Kind::kFromBuffer ? 0 : transfer.offset;
    while (left) {
        Region region;
        const RegionTable::Next next = regions.next(region);
        if (next == RegionTable::Next::kNoRam) {
            outcome.bus_error = true;
            return outcome;
        }
        if (next == RegionTable::Next::kEnd) break;
        uint64_t gpa = region.gpa, length = std::min<uint64_t>(region.length, left);
        outcome.table_ended = region.last && length == region.length;
        while (length) {
            const uint64_t piece = std::min(length, kPiece - batched_);
            batch_.push_back({gpa, piece});
            batched_ += piece;
            gpa += piece;
            length -= piece;
            left -= piece;
            if (batched_ == kPiece && !flush_batch(transfer, store, outcome)) return outcome;
        }
    }
    if (batched_ && !flush_batch(transfer, store, outcome)) return outcome;
    if (outcome.moved == transfer.length) {
        outcome.medium_error = end(transfer, store, sectors);
        outcome.complete = outcome.medium_error == 0;
    }
    return outcome;
}

bool Mover::flush_batch(const Transfer& transfer, BlockStore* store, Outcome& outcome) noexcept {
    bool no_ram = false;
    switch (transfer.kind) {
        case Transfer::Kind::kFromMedium:
            outcome.medium_error = store ? from_medium(*store, no_ram) : -ENOMEDIUM;
            break;
        case Transfer::Kind::kFromBuffer:
            no_ram = !scatter(&transfer.data[at_]);
            at_ += batched_;
            break;
        case Transfer::Kind::kToMedium:
            outcome.medium_error = store ? to_medium(*store, no_ram) : -ENOMEDIUM;
            break;
        case Transfer::Kind::kTrim: {
            const size_t before = rest_.size();
            rest_.resize(before + batched_);
            no_ram = !gather(&rest_[before]);
            break;
        }
    }
    outcome.bus_error = no_ram;
    if (no_ram || outcome.medium_error) return false;
    outcome.moved += batched_;
    batch_.clear();
    batched_ = 0;
    return true;
}

int Mover::from_medium(BlockStore& store, bool& no_ram) noexcept {
    if (places(true)) {
        const int error = store.read(at_, places_);
        if (error != -ENOTSUP) {
            for (const Segment& segment : batch_) memory_.wrote(segment.gpa, segment.length);
            at_ += batched_;
            return error;
        }
    }
    buffer_.resize(batched_);
    const int error = store.read(at_, buffer_.data(), batched_);
    if (error) return error;
    at_ += batched_;
    no_ram = !scatter(buffer_.data());
    return 0;
}

/// Whole sectors alone are stored; what is left of one waits for the next batch.
int Mover::to_medium(BlockStore& store, bool& no_ram) noexcept {
    if (rest_.empty() && batched_ % kSector == 0 && places(false)) {
        const int error = store.write(at_, places_);
        if (error != -ENOTSUP) {
            at_ += batched_;
            return error;
        }
    }
    const size_t before = rest_.size();
    buffer_ = rest_;
    buffer_.resize(before + batched_);
    if (!gather(&buffer_[before])) {
        no_ram = true;
        return 0;
    }
    const size_t whole = buffer_.size() / kSector * kSector;
    rest_.assign(buffer_.begin() + static_cast<std::ptrdiff_t>(whole), buffer_.end());
    if (!whole) return 0;
    const int error = store.write(at_, buffer_.data(), whole);
    at_ += whole;
    return error;
}

/// All that will be moved was moved.
int Mover::end(const Transfer& transfer, BlockStore* store, uint64_t sectors) noexcept {
    if (transfer.kind == Transfer::Kind::kToMedium) return transfer.through ? store->flush() : 0;
    if (transfer.kind != Transfer::Kind::kTrim) return 0;
    if (!store) return -ENOMEDIUM;
    // No range is discarded if one of them is beyond the end of the disk.
    for (const bool apply : {false, true}) {
        for (size_t i = 0; i + kRangeBytes <= rest_.size(); i += kRangeBytes) {
            const uint64_t entry = uint64_t{word(&rest_[i + 4])} << 32 | word(&rest_[i]);
            const uint64_t lba = entry & ((uint64_t{1} << 48) - 1), count = entry >> 48;
            if (!apply) {
                if (lba > sectors || count > sectors - lba) return -EINVAL;
            } else if (count) {
                if (const int error = store->discard(lba * kSector, count * kSector)) return error;
            }
        }
    }
    return 0;
}

/// Whether all of the batch is RAM that the host's kernel can move to or from; then places_ says where.
bool Mover::places(bool to_write) noexcept {
    places_.clear();
    for (const Segment& segment : batch_) {
        uint8_t* const place = memory_.direct(segment.gpa, segment.length, to_write);
        if (!place) return false;
        places_.push_back({place, segment.length});
    }
    return true;
}

bool Mover::scatter(const uint8_t* data) noexcept {
    for (const Segment& segment : batch_) {
        if (!memory_.write(segment.gpa, data, segment.length)) return false;
        data += segment.length;
    }
    return true;
}

bool Mover::gather(uint8_t* data) noexcept {
    for (const Segment& segment : batch_) {
        if (!memory_.read(segment.gpa, data, segment.length)) return false;
        data += segment.length;
    }
    return true;
}

}  // namespace coremesh::ata
