// SPDX-License-Identifier: GPL-2.0-or-later
// What a disk and a CD-ROM drive have in common: phases, the data buffer, the interrupt request.
//
// A drive is a pure state machine: no thread, no lock, no medium. Its channel calls it, and learns from the
// phase what is to be done outside: a `Job` on the medium, or the medium's end of a DMA transfer.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "hw/native/ata/task_file.hpp"

namespace coremesh::ata {

/// What a drive waits for.
enum class Phase : uint8_t {
    kIdle,     ///< a command
    kDataIn,   ///< the host to read the buffer at the data port
    kDataOut,  ///< the host to write it
    kWork,     ///< the medium
    kDma,      ///< the bus master
};

/// What IDENTIFY tells beside what never changes.
struct Settings {
    uint8_t multiple = 0, per_track = 0, heads = 0, transfer_mode = 0;
    bool write_cache = true;
};

/// What a packet is answered with: data, or `blocks` of the medium from `lba`, or why it fails.
struct PacketAnswer {
    uint8_t sense_key = 0;  ///< 0: it does not fail
    std::vector<uint8_t> data;
    uint32_t lba = 0, blocks = 0;
};

/// Work outside of the state machine, in phase kWork. It holds all that it needs.
struct Job {
    enum class Kind : uint8_t { kRead, kWrite, kVerify, kFlush, kIdentify, kPacket };
    Kind kind = Kind::kFlush;
    uint64_t offset = 0, length = 0;  ///< bytes of the medium
    bool through = false;             ///< a write is to be durable before the command is over
    std::vector<uint8_t> data;        ///< to be written; the packet
    Settings settings;
};

/// What became of a job.
struct JobResult {
    int error = 0;  ///< a negative errno, or 0
    std::vector<uint8_t> data;
    PacketAnswer answer;
};

/// The drive's end of one DMA transfer, in phase kDma. `length` is not 0.
struct Transfer {
    enum class Kind : uint8_t { kFromMedium, kFromBuffer, kToMedium, kTrim };
    Kind kind = Kind::kFromMedium;
    uint64_t offset = 0, length = 0;
    bool through = false;
    std::vector<uint8_t> data;  ///< kFromBuffer
};

/// All that a drive remembers, of either kind: what a saved machine takes along.
struct DriveState {
    TaskFile task_file;
    uint8_t status = 0, error = 0, command = 0;
    bool intrq = false;
    Phase phase = Phase::kIdle;
    std::vector<uint8_t> buffer;
    uint32_t position = 0, burst = 0;  ///< position <= burst <= the buffer's length
    uint8_t transfer_mode = 0;
    uint64_t lba = 0;
    uint32_t left = 0;  ///< sectors, or blocks of a CD
    // A disk's.
    uint8_t block = 0;  ///< sectors of a burst
    uint8_t multiple = 0, per_track = 0, heads = 0;
    bool write_cache = true;
    // A packet device's.
    uint16_t limit = 0;  ///< bytes of a burst, as the host wants it
    bool dma = false, in_packet = false;
};

/// The caller's lock, if it has one, is held in every call.
class Drive {
  public:
    explicit Drive(bool packet_device) noexcept : is_packet_device_(packet_device) {}
    virtual ~Drive() = default;
    Drive(const Drive&) = delete;
    Drive& operator=(const Drive&) = delete;

    bool is_packet_device() const noexcept { return is_packet_device_; }
    const DriveState& state() const noexcept { return state_; }
    /// False: it cannot be the state of this drive.
    virtual bool load(const DriveState& state);

    // ---- resets

    /// The RESET- pin: what software set goes, too.
    virtual void hard_reset();
    /// SRST, DEVICE RESET, or the diagnostic: any command ends, and the registers say what this is.
    virtual void soft_reset();

    // ---- the channel's side

    TaskFile& task_file() noexcept { return state_.task_file; }
    void set_intrq(bool requested) noexcept { state_.intrq = requested; }
    bool at_work() const noexcept { return state_.status & status::kAtWork; }
    /// The host wrote the command register.
    void execute(uint8_t command);
    uint32_t read_data(unsigned size);
    void write_data(unsigned size, uint32_t value);

    /// In phase kWork: what is to be done, and what became of it.
    virtual Job job() const = 0;
    virtual void worked(JobResult&& result) = 0;
    virtual void failed() = 0;
    /// In phase kDma: the drive's end of the transfer, and what became of it. `complete` if all of it was
    /// moved; otherwise the memory that the guest gave was too small or no RAM, and the host hears nothing:
    /// it learns that from the bus master's status.
    virtual Transfer transfer() const = 0;
    virtual void transferred(uint64_t moved, bool complete) = 0;
    virtual void transfer_failed(uint64_t moved) = 0;

  protected:
    virtual const std::array<uint8_t, 4>& signature() const noexcept = 0;
    /// The status after a reset.
    virtual uint8_t ready() const noexcept = 0;
    virtual void begin(Command command) = 0;
    /// The host has read, or written, a burst at the data port.
    virtual void emptied() = 0;
    virtual void filled() = 0;

    // ---- what commands end in

    void offer(std::vector<uint8_t>&& data);
    /// The host is to write `length` bytes at the data port.
    void demand(uint32_t length, bool interrupt);
    /// The medium's turn: busy until the job is done.
    void work() noexcept;
    /// The bus master's turn: DMARQ is asserted.
    void await_dma() noexcept;
    void complete(bool interrupt = true) noexcept;
    void abort(uint8_t error = error::kAbrt) noexcept;
    /// SET FEATURES (section 8.46): the transfer mode; a disk has more.
    void set_transfer_mode() noexcept;
    Settings settings() const noexcept;
    Command command() const noexcept { return static_cast<Command>(state_.command); }

    DriveState state_;

  private:
    const bool is_packet_device_;
};

}  // namespace coremesh::ata
