// SPDX-License-Identifier: GPL-2.0-or-later
// An ATA disk: 28-bit and 48-bit addresses, PIO, DMA, TRIM.
//
// Source: ATA/ATAPI-6 (T13/1410D), sections 6 and 8; DATA SET MANAGEMENT: ATA8-ACS (T13/1699D), section 7.9.
#pragma once

#include "hw/native/ata/drive.hpp"

namespace coremesh::ata {

/// Pure, as every drive.
class Disk final : public Drive {
  public:
    static constexpr uint8_t kHeads = 16, kPerTrack = 63;
    /// Sectors in one burst of READ MULTIPLE and WRITE MULTIPLE.
    static constexpr uint8_t kMostMultiple = 16;

    /// @param sectors of 512 bytes; addresses at and above it are refused.
    Disk(uint64_t sectors, bool read_only, bool can_trim);

    bool load(const DriveState& state) override;
    void hard_reset() override;
    void soft_reset() override;
    Job job() const override;
    void worked(JobResult&& result) override;
    void failed() override;
    Transfer transfer() const override;
    void transferred(uint64_t moved, bool complete) override;
    void transfer_failed(uint64_t moved) override;

  protected:
    const std::array<uint8_t, 4>& signature() const noexcept override;
    uint8_t ready() const noexcept override { return status::kReady; }
    void begin(Command command) override;
    void emptied() override;
    void filled() override { work(); }

  private:
    bool begin_sectors(bool is_write) noexcept;
    void flush() noexcept;
    void begin_trim() noexcept;
    void set_features() noexcept;
    void set_multiple() noexcept;
    void set_geometry() noexcept;
    void check_power() noexcept;
    void native_max() noexcept;
    void advance() noexcept;
    void fail(bool is_write) noexcept;
    bool through() const noexcept;
    uint32_t burst_sectors() const noexcept;

    const uint64_t sectors_;
    const bool read_only_, can_trim_;
};

}  // namespace coremesh::ata
