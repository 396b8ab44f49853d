// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/channel.hpp"

#include <utility>

namespace coremesh::ata {
namespace {

constexpr uint32_t ones(unsigned size) noexcept { return size >= 4 ? ~0u : (1u << 8 * size) - 1; }

/// The byte that an access of `size` bytes at `offset` writes to the register `at`; -1 if it writes none.
int byte_for(unsigned at, unsigned offset, unsigned size, uint32_t value) noexcept {
    return at >= offset && at < offset + size ? static_cast<int>(value >> 8 * (at - offset) & 0xFF) : -1;
}

}  // namespace

Channel::Channel(std::array<Drive*, kDrives> drives) : drives_(drives) { reset(); }

bool Channel::load(const ChannelState& state, bool line) noexcept {
    if (state.control & ~control::kWritable || state.bus_command & ~bus::kCommandWritable ||
        state.bus_status & ~(bus::kStatusWritable | bus::kCleared | bus::kActive) ||
        state.table & ~bus::kTableWritable || state.selected >= kDrives) {
        return false;
    }
    state_ = state;
    line_ = line;
    return true;
}

void Channel::reset() {
    state_ = {};
    for (Drive* drive : drives_) {
        if (drive) drive->hard_reset();
    }
}

// ---- accesses

bool Channel::stops(unsigned offset, unsigned size, uint32_t value) const noexcept {
    if (offset >= kBusCommand) {
        const int command = byte_for(kBusCommand, offset, size, value);
        return command >= 0 && state_.bus_command & bus::kStart && !(command & bus::kStart);
    }
    if (offset == kControl) return value & control::kSrst && !(state_.control & control::kSrst);
    return offset == kStatus && size == 1 && static_cast<Command>(value) == Command::kDeviceReset &&
           selected() && selected()->is_packet_device();
}

uint32_t Channel::read(unsigned offset, unsigned size) {
    if (offset >= kBusCommand) return read_bus_master(offset, size);
    Drive* const drive = selected();
    if (offset == kData) return drive ? drive->read_data(size) : ones(size);
    if (size > 1) return ones(size);  // the command block has single bytes behind its data port
    if (offset == kStatus && drive) drive->set_intrq(false);
    return read_task_file(offset);
}

uint8_t Channel::read_task_file(unsigned offset) const noexcept {
    const Drive* drive = selected();
    if (!drive) {
        // Device 0 answers for a device 1 that is not there: with a status of zero (section 9.16.1).
        drive = drives_[0];
        if (!drive || offset == kStatus || offset == kControl || offset == kError) return 0;
    }
    const DriveState& state = drive->state();
    if (offset == kStatus || offset == kControl) {
        return state_.control & control::kSrst ? status::kBsy : state.status;
    }
    if (offset == kError) return state.error;
    if (offset == kHead) return device::kObsolete | state.task_file.last[kHead];
    return state.task_file.read(offset, state_.control & control::kHob);
}

void Channel::write(unsigned offset, unsigned size, uint32_t value) {
    if (offset >= kBusCommand) {
        write_bus_master(offset, size, value);
    } else if (offset == kData) {
        if (Drive* const drive = selected()) drive->write_data(size, value);
    } else if (offset == kControl) {
        write_control(static_cast<uint8_t>(value));
    } else if (size == 1) {
        state_.control &= static_cast<uint8_t>(~control::kHob);
        write_task_file(offset, static_cast<uint8_t>(value));
    }
}

void Channel::write_control(uint8_t value) {
    const uint8_t before = std::exchange(state_.control, value & control::kWritable);
    if (before & control::kSrst && !(value & control::kSrst)) restart_drives();
}

/// A software reset ends, or the diagnostic was asked for: device 0 is selected, and each tests itself.
void Channel::restart_drives() {
    state_.selected = 0;
    for (Drive* drive : drives_) {
        if (!drive) continue;
        drive->task_file().last[kHead] = 0;
        drive->soft_reset();
    }
}

void Channel::write_task_file(unsigned offset, uint8_t value) {
    if (state_.control & control::kSrst) return;
    if (offset == kStatus) return execute(value);
    // A drive that is at work does not look at its registers (section 9.2).
    if (any_at_work()) return;
    for (Drive* drive : drives_) {
        if (drive) drive->task_file().write(offset, value);
    }
    if (offset == kHead) state_.selected = value & device::kDev ? 1 : 0;
}

void Channel::execute(uint8_t command) {
    Drive* const drive = selected();
    switch (static_cast<Command>(command)) {
        case Command::kExecuteDeviceDiagnostic:
            // Both devices test themselves; device 0 reports (section 8.11).
            if (any_at_work()) return;
            restart_drives();
            if (drives_[0]) drives_[0]->set_intrq(true);
            return;
        case Command::kDeviceReset:
            // The one command that a packet device takes at any time.
            if (drive && drive->is_packet_device()) return drive->soft_reset();
            break;
        default:
            break;
    }
    if (!drive || any_at_work()) return;
    ++commands_;
    drive->execute(command);
}

bool Channel::any_at_work() const noexcept {
    for (const Drive* drive : drives_) {
        if (drive && drive->at_work()) return true;
    }
    return false;
}

// ---- the bus master

uint32_t Channel::read_bus_master(unsigned offset, unsigned size) const noexcept {
    const uint64_t registers = uint64_t{state_.bus_command} |
                               uint64_t{state_.bus_status} << 8 * (kBusStatus - kBusCommand) |
                               uint64_t{state_.table} << 8 * (kBusTable - kBusCommand);
    return static_cast<uint32_t>(registers >> 8 * (offset - kBusCommand)) & ones(size);
}

void Channel::write_bus_master(unsigned offset, unsigned size, uint32_t value) noexcept {
    for (unsigned at = offset; at < offset + size && at < kChannelEnd; ++at, value >>= 8) {
        const auto byte = static_cast<uint8_t>(value);
        if (at == kBusCommand) {
            write_bus_command(byte);
        } else if (at == kBusStatus) {
            const uint8_t kept = state_.bus_status & ~(byte & bus::kCleared) & ~bus::kStatusWritable;
            state_.bus_status = kept | (byte & bus::kStatusWritable);
        } else if (at >= kBusTable) {
            const unsigned shift = 8 * (at - kBusTable);
            state_.table =
                ((state_.table & ~(0xFFu << shift)) | uint32_t{byte} << shift) & bus::kTableWritable;
        }
    }
}

void Channel::write_bus_command(uint8_t value) noexcept {
    const bool started = state_.bus_command & bus::kStart;
    state_.bus_command = value & bus::kCommandWritable;
    if (value & bus::kStart && !started) {
        state_.bus_status |= bus::kActive;
    } else if (started && !(value & bus::kStart)) {
        state_.bus_status &= static_cast<uint8_t>(~bus::kActive);
    }
}

// ---- work

/// The drive for which something can be done; -1 without one.
int Channel::ready() const noexcept {
    if (state_.control & control::kSrst) return -1;
    for (unsigned i = 0; i < kDrives; ++i) {
        if (!drives_[i]) continue;
        const Phase phase = drives_[i]->state().phase;
        if (phase == Phase::kWork) return static_cast<int>(i);
        // A bus master that is not allowed to use the bus waits, and so does the drive.
        if (phase == Phase::kDma && state_.bus_status & bus::kActive && allowed_) return static_cast<int>(i);
    }
    return -1;
}

Work Channel::next() const {
    const auto index = static_cast<unsigned>(ready());
    const Drive& drive = *drives_[index];
    if (drive.state().phase == Phase::kWork) return {index, drive.job()};
    return {index, Work::Dma{drive.transfer(), state_.table}};
}

void Channel::done(const Work& work, JobResult&& result) {
    Drive& drive = *drives_[work.drive];
    if (result.error) {
        drive.failed();
    } else {
        drive.worked(std::move(result));
    }
}

/// The bus master first, the drive second; the line follows in `settle_line`.
void Channel::done(const Work& work, const Outcome& outcome) {
    if (outcome.bus_error) state_.bus_status |= bus::kError;
    // Active stays set where the table has more than the drive took: only software ends that.
    if (!outcome.complete || outcome.table_ended) state_.bus_status &= static_cast<uint8_t>(~bus::kActive);
    Drive& drive = *drives_[work.drive];
    if (outcome.medium_error) {
        drive.transfer_failed(outcome.moved);
    } else {
        drive.transferred(outcome.moved, outcome.complete);
    }
}

bool Channel::settle_line() noexcept {
    const Drive* const drive = selected();
    const bool level = drive && drive->state().intrq && !(state_.control & (control::kNien | control::kSrst));
    if (level && !line_) state_.bus_status |= bus::kInterrupt;
    line_ = level;
    return level;
}

}  // namespace coremesh::ata
