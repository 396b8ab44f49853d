// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/drive.hpp"

#include <algorithm>
#include <utility>

namespace coremesh::ata {
namespace {

/// More than any command has at the data port: a whole answer to a packet.
constexpr size_t kLargestBuffer = size_t{1} << 17;

constexpr uint32_t ones(unsigned size) noexcept { return size >= 4 ? ~0u : (1u << 8 * size) - 1; }

}  // namespace

void Drive::hard_reset() {
    state_.transfer_mode = 0;
    soft_reset();
}

void Drive::soft_reset() {
    state_.intrq = false;
    state_.phase = Phase::kIdle;
    state_.command = 0;
    state_.buffer.clear();
    state_.position = state_.burst = 0;
    state_.lba = 0;
    state_.left = 0;
    state_.status = ready();
    state_.error = 0x01;  // the diagnostic code: passed
    state_.task_file.sign(signature());
}

bool Drive::load(const DriveState& state) {
    if (state.phase > Phase::kDma || state.position > state.burst || state.burst > state.buffer.size() ||
        state.buffer.size() > kLargestBuffer) {
        return false;
    }
    // A burst that is over has been acted upon: the next access would run past its end.
    const bool at_port = state.phase == Phase::kDataIn || state.phase == Phase::kDataOut;
    if (at_port && state.position == state.burst) return false;
    state_ = state;
    return true;
}

void Drive::execute(uint8_t command) {
    state_.command = command;
    state_.intrq = false;
    state_.error = 0;
    state_.status = status::kReady;
    state_.phase = Phase::kIdle;
    begin(static_cast<Command>(command));
}

uint32_t Drive::read_data(unsigned size) {
    // Without data the port gives all ones, as an undriven bus does.
    if (state_.phase != Phase::kDataIn) return ones(size);
    const uint32_t end = std::min(state_.position + size, state_.burst);
    uint32_t value = 0;
    for (unsigned shift = 0; state_.position < end; ++state_.position, shift += 8) {
        value |= uint32_t{state_.buffer[state_.position]} << shift;
    }
    if (end == state_.burst) emptied();
    return value;
}

void Drive::write_data(unsigned size, uint32_t value) {
    // What no command asked for is lost.
    if (state_.phase != Phase::kDataOut) return;
    const uint32_t end = std::min(state_.position + size, state_.burst);
    for (; state_.position < end; ++state_.position, value >>= 8) {
        state_.buffer[state_.position] = static_cast<uint8_t>(value);
    }
    if (end == state_.burst) filled();
}

void Drive::offer(std::vector<uint8_t>&& data) {
    state_.buffer = std::move(data);
    state_.position = 0;
    state_.burst = static_cast<uint32_t>(state_.buffer.size());
    state_.phase = Phase::kDataIn;
    state_.status = status::kReady | status::kDrq;
    state_.intrq = true;
}

void Drive::demand(uint32_t length, bool interrupt) {
    state_.buffer.assign(length, 0);
    state_.position = 0;
    state_.burst = length;
    state_.phase = Phase::kDataOut;
    state_.status = status::kReady | status::kDrq;
    state_.intrq = interrupt;
}

void Drive::work() noexcept {
    state_.phase = Phase::kWork;
    state_.status = status::kBsy | status::kDsc;
}

void Drive::await_dma() noexcept {
    state_.phase = Phase::kDma;
    state_.status = status::kReady | status::kDrq;
}

void Drive::complete(bool interrupt) noexcept {
    state_.phase = Phase::kIdle;
    state_.status = status::kReady;
    state_.intrq = interrupt;
}

void Drive::abort(uint8_t error) noexcept {
    state_.phase = Phase::kIdle;
    state_.error = error;
    state_.status = status::kReady | status::kErr;
    state_.intrq = true;
}

void Drive::set_transfer_mode() noexcept {
    constexpr uint8_t kSetTransferMode = 0x03;
    if (state_.task_file.features() != kSetTransferMode) return abort();
    const uint8_t mode = state_.task_file.last[kCount];
    // PIO default and flow control modes, multiword DMA, Ultra DMA: as far as the identification has them.
    if (mode <= 0x01 || (mode >= 0x08 && mode <= 0x0C)) {
        state_.transfer_mode = 0;
    } else if ((mode >= 0x20 && mode <= 0x22) || (mode >= 0x40 && mode <= 0x45)) {
        state_.transfer_mode = mode;
    } else {
        return abort();
    }
    complete();
}

Settings Drive::settings() const noexcept {
    return {state_.multiple, state_.per_track, state_.heads, state_.transfer_mode, state_.write_cache};
}

}  // namespace coremesh::ata
