// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/cdrom.hpp"

#include <algorithm>
#include <utility>

namespace coremesh::ata {
namespace {

constexpr uint32_t kPieceBlocks = 16;  // read from the medium at once, for the data port
constexpr uint8_t kDmaFeature = 0x01;

}  // namespace

Cdrom::Cdrom(uint32_t blocks) : Drive(true), blocks_(blocks) { Cdrom::hard_reset(); }

const std::array<uint8_t, 4>& Cdrom::signature() const noexcept {
    static constexpr std::array<uint8_t, 4> kSignature{0x01, 0x01, 0x14, 0xEB};
    return kSignature;
}

void Cdrom::soft_reset() {
    state_.limit = 0;
    state_.dma = state_.in_packet = false;
    Drive::soft_reset();
}

bool Cdrom::load(const DriveState& state) {
    if (state.lba > blocks_ || state.left > blocks_ - state.lba) return false;
    // A packet, or what one is answered with: nothing else is waited for.
    if (state.phase == Phase::kDma && !state.left && state.buffer.empty()) return false;
    if (state.phase == Phase::kDataIn && state.in_packet && state.limit < 2) return false;
    const bool has_packet = state.phase == Phase::kDataOut || (state.phase == Phase::kWork && !state.left);
    if (has_packet && static_cast<Command>(state.command) != Command::kIdentifyPacketDevice &&
        (static_cast<Command>(state.command) != Command::kPacket || state.buffer.size() != kPacketBytes)) {
        return false;
    }
    return Drive::load(state);
}

// ---- commands

void Cdrom::begin(Command command) {
    switch (command) {
        case Command::kPacket:
            return begin_packet();
        case Command::kIdentifyPacketDevice:
            state_.in_packet = false;
            state_.left = 0;
            return work();
        case Command::kIdentifyDevice:
        case Command::kReadSectors:
            // A packet device answers these with its signature (section 9.12), by which drivers know it.
            state_.task_file.sign(signature());
            return abort();
        case Command::kSetFeatures:
            return set_transfer_mode();
        case Command::kCheckPowerMode:
            state_.task_file.last[kCount] = 0xFF;
            return complete();
        case Command::kStandbyImmediate:
        case Command::kIdleImmediate:
        case Command::kStandby:
        case Command::kIdle:
        case Command::kSleep:
            return complete();
        default:
            return abort();
    }
}

void Cdrom::begin_packet() {
    state_.dma = state_.task_file.features() & kDmaFeature;
    state_.limit = static_cast<uint16_t>(state_.task_file.last[kHigh] << 8 | state_.task_file.last[kMid]);
    state_.left = 0;
    state_.in_packet = false;
    state_.task_file.last[kCount] = reason::kCod;
    demand(kPacketBytes, false);
}

Job Cdrom::job() const {
    Job job;
    job.settings = settings();
    if (command() == Command::kIdentifyPacketDevice) {
        job.kind = Job::Kind::kIdentify;
    } else if (state_.left) {
        job.kind = Job::Kind::kRead;
        job.offset = state_.lba * kBlock;
        job.length = uint64_t{std::min(state_.left, kPieceBlocks)} * kBlock;
    } else {
        job.kind = Job::Kind::kPacket;
        job.data = state_.buffer;
    }
    return job;
}

void Cdrom::worked(JobResult&& result) {
    if (command() == Command::kIdentifyPacketDevice) return offer(std::move(result.data));
    if (!state_.left) return answer(std::move(result.answer));
    const uint32_t done = std::min(state_.left, kPieceBlocks);
    state_.lba += done;
    state_.left -= done;
    state_.buffer = std::move(result.data);
    burst(0);
}

void Cdrom::answer(PacketAnswer&& answer) {
    if (answer.sense_key) return check(answer.sense_key);
    if (answer.data.empty() && !answer.blocks) return finish();
    if (!state_.dma && state_.limit < 2) {
        // No data can pass in bursts of no bytes (section 8.23.5: the limit may not be zero).
        end();
        return abort();
    }
    state_.buffer = std::move(answer.data);
    state_.lba = answer.lba;
    state_.left = answer.blocks;
    state_.in_packet = true;
    if (state_.dma) {
        await_dma();
    } else if (state_.left) {
        work();
    } else {
        burst(0);
    }
}

/// Lets the host read the buffer from `at`, as much as it said it takes.
void Cdrom::burst(uint32_t at) noexcept {
    const auto length =
        std::min(static_cast<uint32_t>(state_.buffer.size()) - at, uint32_t{state_.limit} & ~1u);
    state_.task_file.last[kCount] = reason::kIo;
    state_.task_file.last[kMid] = static_cast<uint8_t>(length);
    state_.task_file.last[kHigh] = static_cast<uint8_t>(length >> 8);
    state_.position = at;
    state_.burst = at + length;
    state_.phase = Phase::kDataIn;
    state_.status = status::kDrdy | status::kDrq;
    state_.intrq = true;
}

void Cdrom::emptied() {
    if (!state_.in_packet) {
        complete(false);
    } else if (state_.burst < state_.buffer.size()) {
        burst(state_.burst);
    } else if (state_.left) {
        work();
    } else {
        finish();
    }
}

void Cdrom::end() noexcept {
    state_.in_packet = false;
    state_.left = 0;
    state_.task_file.last[kCount] = reason::kCod | reason::kIo;
}

void Cdrom::finish() noexcept {
    end();
    complete();
    state_.status = status::kDrdy;
}

/// CHECK CONDITION: the sense data tells more.
void Cdrom::check(uint8_t sense_key) noexcept {
    end();
    abort(static_cast<uint8_t>(error::kAbrt | sense_key << error::kSenseShift));
    state_.status = status::kDrdy | status::kErr;
}

// ---- the bus master

Transfer Cdrom::transfer() const {
    Transfer transfer;
    if (state_.left) {
        transfer.offset = state_.lba * kBlock;
        transfer.length = uint64_t{state_.left} * kBlock;
    } else {
        transfer.kind = Transfer::Kind::kFromBuffer;
        transfer.data = state_.buffer;
        transfer.length = transfer.data.size();
    }
    return transfer;
}

void Cdrom::transferred(uint64_t, bool complete_) {
    finish();
    state_.intrq = complete_;
}

}  // namespace coremesh::ata
