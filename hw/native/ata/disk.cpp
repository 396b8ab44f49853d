// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/disk.hpp"

#include <algorithm>
#include <utility>

namespace coremesh::ata {
namespace {

constexpr uint8_t kTrimFeature = 0x01;
constexpr uint8_t kActiveMode = 0xFF;  // CHECK POWER MODE
constexpr uint64_t kNarrowSectors = uint64_t{1} << 28;

enum class Kind : uint8_t { kOther, kRead, kWrite, kDmaRead, kDmaWrite, kVerify };

Kind kind_of(Command command) noexcept {
    switch (command) {
        case Command::kReadSectors:
        case Command::kReadSectorsNoRetry:
        case Command::kReadSectorsExt:
        case Command::kReadMultiple:
        case Command::kReadMultipleExt:
            return Kind::kRead;
        case Command::kWriteSectors:
        case Command::kWriteSectorsNoRetry:
        case Command::kWriteSectorsExt:
        case Command::kWriteMultiple:
        case Command::kWriteMultipleExt:
        case Command::kWriteMultipleFuaExt:
            return Kind::kWrite;
        case Command::kReadDma:
        case Command::kReadDmaNoRetry:
        case Command::kReadDmaExt:
            return Kind::kDmaRead;
        case Command::kWriteDma:
        case Command::kWriteDmaNoRetry:
        case Command::kWriteDmaExt:
        case Command::kWriteDmaFuaExt:
            return Kind::kDmaWrite;
        case Command::kReadVerify:
        case Command::kReadVerifyNoRetry:
        case Command::kReadVerifyExt:
            return Kind::kVerify;
        default:
            return Kind::kOther;
    }
}

bool has_multiple(Command command) noexcept {
    switch (command) {
        case Command::kReadMultiple:
        case Command::kReadMultipleExt:
        case Command::kWriteMultiple:
        case Command::kWriteMultipleExt:
        case Command::kWriteMultipleFuaExt:
            return true;
        default:
            return false;
    }
}

/// Commands that have nothing to do here. The heads of this disk are where they are wanted: RECALIBRATE and
/// SEEK are ranges of codes. Power commands also have codes of ATA-1, which some drivers still send.
bool does_nothing(uint8_t command) noexcept {
    if ((command >= 0x10 && command < 0x20) || (command >= 0x70 && command < 0x80)) return true;
    switch (command) {
        case 0x94:
        case 0x95:
        case 0x96:
        case 0x97:
        case 0x99:
            return true;
        default:
            return false;
    }
}

}  // namespace

Disk::Disk(uint64_t sectors, bool read_only, bool can_trim)
    : Drive(false), sectors_(sectors), read_only_(read_only), can_trim_(can_trim) {
    Disk::hard_reset();
}

const std::array<uint8_t, 4>& Disk::signature() const noexcept {
    static constexpr std::array<uint8_t, 4> kSignature{0x01, 0x01, 0x00, 0x00};
    return kSignature;
}

void Disk::hard_reset() {
    state_.multiple = 0;
    state_.write_cache = true;
    state_.per_track = kPerTrack;
    state_.heads = kHeads;
    Drive::hard_reset();
}

void Disk::soft_reset() {
    state_.block = 0;
    Drive::soft_reset();
}

bool Disk::load(const DriveState& state) {
    if (state.multiple > kMostMultiple || state.block > kMostMultiple || state.per_track == 0 ||
        state.heads == 0 || state.heads > kHeads) {
        return false;
    }
    // What is under way has passed the same check when it began.
    if (state.lba > sectors_ || state.left > sectors_ - state.lba) return false;
    const auto command = static_cast<Command>(state.command);
    const bool has_sectors = kind_of(command) != Kind::kOther;
    if (has_sectors && state.phase != Phase::kIdle && state.left && state.block == 0) return false;
    if (state.phase == Phase::kDma && state.left == 0) return false;
    const bool writes = kind_of(command) == Kind::kWrite || kind_of(command) == Kind::kDmaWrite;
    if (writes && read_only_ && state.phase != Phase::kIdle) return false;
    if (kind_of(command) == Kind::kWrite && (state.phase == Phase::kWork || state.phase == Phase::kDataOut) &&
        state.buffer.size() != uint64_t{std::min<uint32_t>(state.block, state.left)} * kSector) {
        return false;
    }
    return Drive::load(state);
}

// ---- commands

void Disk::begin(Command command) {
    switch (kind_of(command)) {
        case Kind::kRead:
        case Kind::kVerify:
            if (begin_sectors(false)) work();
            return;
        case Kind::kWrite:
            if (begin_sectors(true)) demand(burst_sectors() * kSector, false);
            return;
        case Kind::kDmaRead:
            if (begin_sectors(false)) await_dma();
            return;
        case Kind::kDmaWrite:
            if (begin_sectors(true)) await_dma();
            return;
        case Kind::kOther:
            break;
    }
    switch (command) {
        case Command::kIdentifyDevice:
            state_.left = 0;
            return work();
        case Command::kFlushCache:
        case Command::kFlushCacheExt:
            return flush();
        case Command::kDataSetManagement:
            return begin_trim();
        case Command::kSetFeatures:
            return set_features();
        case Command::kSetMultipleMode:
            return set_multiple();
        case Command::kInitializeDeviceParameters:
            return set_geometry();
        case Command::kCheckPowerMode:
        case Command::kCheckPowerModeOld:
            return check_power();
        case Command::kReadNativeMax:
        case Command::kReadNativeMaxExt:
            return native_max();
        case Command::kStandbyImmediate:
        case Command::kIdleImmediate:
        case Command::kStandby:
        case Command::kIdle:
        case Command::kSleep:
            return complete();
        default:
            return does_nothing(state_.command) ? complete() : abort();
    }
}

/// Takes address and count. False, and the command is over, for sectors that this disk has not.
bool Disk::begin_sectors(bool is_write) noexcept {
    const bool wide = is_wide(command());
    const int64_t lba = state_.task_file.address(wide, state_.heads, state_.per_track);
    const uint32_t count = state_.task_file.sectors(wide);
    state_.lba = 0;
    state_.left = 0;
    if (is_write && read_only_) {
        abort();
        return false;
    }
    if (lba < 0 || static_cast<uint64_t>(lba) > sectors_ || count > sectors_ - static_cast<uint64_t>(lba)) {
        abort(error::kIdnf);
        return false;
    }
    state_.block = has_multiple(command()) ? state_.multiple : 1;
    if (!state_.block) {  // READ MULTIPLE before SET MULTIPLE MODE
        abort();
        return false;
    }
    state_.lba = static_cast<uint64_t>(lba);
    state_.left = count;
    return true;
}

void Disk::flush() noexcept {
    state_.left = 0;
    if (read_only_) return complete();  // there is nothing to flush
    work();
}

void Disk::begin_trim() noexcept {
    const uint32_t blocks = state_.task_file.sectors(true);
    state_.lba = 0;
    state_.left = 0;
    // One block of ranges, as the identification says.
    if (state_.task_file.features() != kTrimFeature || blocks > 1 || !can_trim_) return abort();
    state_.left = blocks;
    await_dma();
}

void Disk::set_features() noexcept {
    const uint8_t feature = state_.task_file.features();
    switch (feature) {
        case 0x02:
        case 0x82:  // the write cache on and off
            state_.write_cache = feature == 0x02;
            // What is in the cache is written first.
            return state_.write_cache ? complete() : flush();
        case 0xAA:
        case 0x55:  // read look-ahead on and off
        case 0x66:
        case 0xCC:  // what a soft reset reverts
            return complete();
        default:
            return set_transfer_mode();
    }
}

void Disk::set_multiple() noexcept {
    const uint8_t count = state_.task_file.last[kCount];
    if (count > kMostMultiple || (count & (count - 1))) return abort();
    state_.multiple = count;
    complete();
}

void Disk::set_geometry() noexcept {
    const uint8_t per_track = state_.task_file.last[kCount];
    if (!per_track) return abort();
    state_.per_track = per_track;
    state_.heads = static_cast<uint8_t>((state_.task_file.last[kHead] & device::kHeadBits) + 1);
    complete();
}

void Disk::check_power() noexcept {
    state_.task_file.last[kCount] = kActiveMode;
    complete();
}

void Disk::native_max() noexcept {
    const bool wide = is_wide(command());
    const uint64_t last = (wide ? sectors_ : std::min(sectors_, kNarrowSectors - 1)) - 1;
    state_.task_file.put_address(last, wide);
    complete();
}

// ---- the medium

uint32_t Disk::burst_sectors() const noexcept { return std::min<uint32_t>(state_.block, state_.left); }

/// Whether what is written must be on the medium before the command is over.
bool Disk::through() const noexcept {
    return command() == Command::kWriteDmaFuaExt || command() == Command::kWriteMultipleFuaExt ||
           !state_.write_cache;
}

Job Disk::job() const {
    Job job;
    job.offset = state_.lba * kSector;
    job.settings = settings();
    switch (kind_of(command())) {
        case Kind::kRead:
            job.kind = Job::Kind::kRead;
            job.length = uint64_t{burst_sectors()} * kSector;
            break;
        case Kind::kWrite:
            job.kind = Job::Kind::kWrite;
            job.data = state_.buffer;
            job.length = job.data.size();
            job.through = through();
            break;
        case Kind::kVerify:
            job.kind = Job::Kind::kVerify;
            job.length = uint64_t{state_.left} * kSector;
            break;
        default:
            job.kind = command() == Command::kIdentifyDevice ? Job::Kind::kIdentify : Job::Kind::kFlush;
    }
    return job;
}

void Disk::advance() noexcept {
    const uint32_t done = burst_sectors();
    state_.lba += done;
    state_.left -= done;
}

void Disk::worked(JobResult&& result) {
    switch (kind_of(command())) {
        case Kind::kRead:
            advance();
            return offer(std::move(result.data));
        case Kind::kWrite:
            advance();
            return state_.left ? demand(burst_sectors() * kSector, true) : complete();
        default:
            if (command() == Command::kIdentifyDevice) return offer(std::move(result.data));
            return complete();
    }
}

void Disk::failed() {
    const Kind kind = kind_of(command());
    fail(kind != Kind::kRead && kind != Kind::kVerify);
}

void Disk::fail(bool is_write) noexcept {
    state_.task_file.put_address(state_.lba, is_wide(command()));
    if (is_write) {
        abort();
        state_.status |= status::kDf;
    } else {
        abort(error::kUnc);
    }
}

void Disk::emptied() {
    if (state_.left) {
        work();
    } else {
        complete(false);
    }
}

// ---- the bus master

Transfer Disk::transfer() const {
    Transfer transfer;
    transfer.offset = state_.lba * kSector;
    transfer.length = uint64_t{state_.left} * kSector;
    if (command() == Command::kDataSetManagement) {
        transfer.kind = Transfer::Kind::kTrim;
    } else if (kind_of(command()) == Kind::kDmaWrite) {
        transfer.kind = Transfer::Kind::kToMedium;
        transfer.through = through();
    } else {
        transfer.kind = Transfer::Kind::kFromMedium;
    }
    return transfer;
}

void Disk::transferred(uint64_t moved, bool complete_) {
    state_.lba += moved / kSector;
    state_.left -= static_cast<uint32_t>(moved / kSector);
    complete(complete_);
}

void Disk::transfer_failed(uint64_t moved) {
    if (command() == Command::kDataSetManagement) return abort();
    state_.lba += moved / kSector;
    state_.left -= static_cast<uint32_t>(moved / kSector);
    fail(kind_of(command()) == Kind::kDmaWrite);
}

}  // namespace coremesh::ata
