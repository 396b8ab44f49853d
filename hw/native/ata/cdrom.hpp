// SPDX-License-Identifier: GPL-2.0-or-later
// An ATAPI CD-ROM drive: how packets of 12 bytes and their data pass the task file. What a packet means is
// decided outside, once for each (hw/ata/mmc.py).
//
// Source: ATA/ATAPI-6, section 8.23 (PACKET); SFF-8020i; MMC-3 (T10/1363D).
#pragma once

#include "hw/native/ata/drive.hpp"

namespace coremesh::ata {

/// Pure, as every drive.
class Cdrom final : public Drive {
  public:
    static constexpr uint32_t kBlock = 2048, kPacketBytes = 12;
    static constexpr uint8_t kMediumError = 3;  ///< sense key

    /// @param blocks of the medium; 0 without one.
    explicit Cdrom(uint32_t blocks);

    bool load(const DriveState& state) override;
    void soft_reset() override;
    Job job() const override;
    void worked(JobResult&& result) override;
    void failed() override { check(kMediumError); }
    Transfer transfer() const override;
    void transferred(uint64_t moved, bool complete) override;
    void transfer_failed(uint64_t) override { check(kMediumError); }

  protected:
    const std::array<uint8_t, 4>& signature() const noexcept override;
    uint8_t ready() const noexcept override { return 0; }
    void begin(Command command) override;
    void emptied() override;
    void filled() override { work(); }

  private:
    void begin_packet();
    void answer(PacketAnswer&& answer);
    void burst(uint32_t at) noexcept;
    void end() noexcept;
    void finish() noexcept;
    void check(uint8_t sense_key) noexcept;

    const uint32_t blocks_;
};

}  // namespace coremesh::ata
