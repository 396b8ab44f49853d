// SPDX-License-Identifier: GPL-2.0-or-later
// One channel of an IDE controller: two drives, their task files, the interrupt, half of a bus master. A pure
// state machine: accesses and the ends of work in; work to be done and the level of the interrupt line out.
//
// Source: ATA/ATAPI-6, section 9 (protocols); Intel 82371SB (PIIX3) datasheet, section 2.7; Programming
// Interface for Bus Master IDE Controller, revision 1.0.
#pragma once

#include <array>
#include <cstdint>
#include <variant>

#include "hw/native/ata/bus_master.hpp"
#include "hw/native/ata/drive.hpp"

namespace coremesh::ata {

/// What a saved machine takes along beside the drives.
struct ChannelState {
    uint8_t control = 0, bus_command = 0, bus_status = 0, selected = 0;
    uint32_t table = 0;
};

/// What is to be done outside, for one drive: on its medium, or between it and the guest's memory by a table.
struct Work {
    struct Dma {
        Transfer transfer;
        uint32_t table;
    };
    unsigned drive;
    std::variant<Job, Dma> what;
};

/// The caller's lock, if it has one, is held in every call. At most one piece of work is under way: between
/// `next` and the `done` that answers it the caller keeps away the accesses that `stops` names.
class Channel {
  public:
    static constexpr unsigned kDrives = 2;

    /// A drive may be null; they outlive the channel.
    explicit Channel(std::array<Drive*, kDrives> drives);

    const ChannelState& state() const noexcept { return state_; }
    /// False: it cannot be the state of a channel. The line has the level that it had.
    bool load(const ChannelState& state, bool line) noexcept;

    /// RESET-: to the drives as well.
    void reset();
    /// Whether the bus master may use the bus: the command register of the function that this is part of.
    void allow(bool allowed) noexcept { allowed_ = allowed; }

    /// Whether an access ends what is under way: then it must wait until nothing is any more. Afterwards
    /// nothing of it touches the guest's memory.
    bool stops(unsigned offset, unsigned size, uint32_t value) const noexcept;
    uint32_t read(unsigned offset, unsigned size);
    /// As `read` of the control register, which has no effect.
    uint8_t alternate_status() const noexcept { return read_task_file(kControl); }
    void write(unsigned offset, unsigned size, uint32_t value);

    /// Whether `next` has something.
    bool has_work() const noexcept { return ready() >= 0; }
    /// Only if `has_work`.
    Work next() const;
    void done(const Work& work, JobResult&& result);
    void done(const Work& work, const Outcome& outcome);

    /// Last of all, when everything else has its final value: the level of the interrupt line. Its rise is
    /// what sets the bus master's interrupt bit.
    bool settle_line() noexcept;
    bool line() const noexcept { return line_; }

    uint64_t commands() const noexcept { return commands_; }

  private:
    Drive* selected() const noexcept { return drives_[state_.selected]; }
    bool any_at_work() const noexcept;
    int ready() const noexcept;
    uint8_t read_task_file(unsigned offset) const noexcept;
    void write_control(uint8_t value);
    void write_task_file(unsigned offset, uint8_t value);
    void execute(uint8_t command);
    void restart_drives();
    uint32_t read_bus_master(unsigned offset, unsigned size) const noexcept;
    void write_bus_master(unsigned offset, unsigned size, uint32_t value) noexcept;
    void write_bus_command(uint8_t value) noexcept;

    const std::array<Drive*, kDrives> drives_;
    ChannelState state_;
    bool allowed_ = true, line_ = false;
    uint64_t commands_ = 0;
};

}  // namespace coremesh::ata
