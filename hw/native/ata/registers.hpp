// SPDX-License-Identifier: GPL-2.0-or-later
// The registers and command codes of ATA, by the names of ATA/ATAPI-6 (T13/1410D); the bus master's registers
// are those of the Intel 82371SB (PIIX3) datasheet, section 2.7.
#pragma once

#include <cstdint>

namespace coremesh::ata {

constexpr uint32_t kSector = 512;

/// Offsets in a channel: the command block, device control, the bus master.
enum Offset : unsigned {
    kData = 0,
    kError = 1,  // features when written
    kCount = 2,  // the interrupt reason after PACKET
    kLow = 3,
    kMid = 4,
    kHigh = 5,
    kHead = 6,
    kStatus = 7,       // the command when written
    kControl = 8,      // the alternate status when read
    kBusCommand = 16,  // BMICOM
    kBusStatus = 18,   // BMISTA
    kBusTable = 20,    // BMIDTP, four bytes
    kChannelEnd = 24,
};

namespace status {
constexpr uint8_t kErr = 0x01, kDrq = 0x08, kDsc = 0x10, kDf = 0x20, kDrdy = 0x40, kBsy = 0x80;
constexpr uint8_t kAtWork = kBsy | kDrq;
constexpr uint8_t kReady = kDrdy | kDsc;
}  // namespace status

namespace error {
constexpr uint8_t kAbrt = 0x04, kIdnf = 0x10, kUnc = 0x40;
constexpr unsigned kSenseShift = 4;
}  // namespace error

namespace device {
constexpr uint8_t kHeadBits = 0x0F, kDev = 0x10, kLba = 0x40;
constexpr uint8_t kObsolete = 0xA0;  // ones on old drives, and software that compares
}  // namespace device

namespace control {
constexpr uint8_t kNien = 0x02, kSrst = 0x04, kHob = 0x80;
constexpr uint8_t kWritable = kNien | kSrst | kHob;
}  // namespace control

/// Interrupt reason.
namespace reason {
constexpr uint8_t kCod = 0x01, kIo = 0x02;
}  // namespace reason

namespace bus {
constexpr uint8_t kStart = 0x01, kToMemory = 0x08;  // BMICOM
constexpr uint8_t kCommandWritable = kStart | kToMemory;
constexpr uint8_t kActive = 0x01, kError = 0x02, kInterrupt = 0x04;  // BMISTA
constexpr uint8_t kCleared = kError | kInterrupt;                    // by a one that is written
constexpr uint8_t kStatusWritable = 0x60;                            // for software alone
constexpr uint32_t kTableWritable = 0xFFFF'FFFC;
}  // namespace bus

/// ATA/ATAPI-6, section 8; the older codes from ATA-1 that drives kept.
enum class Command : uint8_t {
    kNop = 0x00,
    kDataSetManagement = 0x06,
    kDeviceReset = 0x08,
    kReadSectors = 0x20,
    kReadSectorsNoRetry = 0x21,
    kReadSectorsExt = 0x24,
    kReadDmaExt = 0x25,
    kReadNativeMaxExt = 0x27,
    kReadMultipleExt = 0x29,
    kWriteSectors = 0x30,
    kWriteSectorsNoRetry = 0x31,
    kWriteSectorsExt = 0x34,
    kWriteDmaExt = 0x35,
    kWriteMultipleExt = 0x39,
    kWriteDmaFuaExt = 0x3D,
    kReadVerify = 0x40,
    kReadVerifyNoRetry = 0x41,
    kReadVerifyExt = 0x42,
    kExecuteDeviceDiagnostic = 0x90,
    kInitializeDeviceParameters = 0x91,
    kCheckPowerModeOld = 0x98,
    kPacket = 0xA0,
    kIdentifyPacketDevice = 0xA1,
    kReadMultiple = 0xC4,
    kWriteMultiple = 0xC5,
    kSetMultipleMode = 0xC6,
    kReadDma = 0xC8,
    kReadDmaNoRetry = 0xC9,
    kWriteDma = 0xCA,
    kWriteDmaNoRetry = 0xCB,
    kWriteMultipleFuaExt = 0xCE,
    kStandbyImmediate = 0xE0,
    kIdleImmediate = 0xE1,
    kStandby = 0xE2,
    kIdle = 0xE3,
    kCheckPowerMode = 0xE5,
    kSleep = 0xE6,
    kFlushCache = 0xE7,
    kFlushCacheExt = 0xEA,
    kIdentifyDevice = 0xEC,
    kSetFeatures = 0xEF,
    kReadNativeMax = 0xF8,
};

/// Whether a command takes 48-bit addresses.
constexpr bool is_wide(Command command) noexcept {
    switch (command) {
        case Command::kReadSectorsExt:
        case Command::kReadDmaExt:
        case Command::kReadNativeMaxExt:
        case Command::kReadMultipleExt:
        case Command::kWriteSectorsExt:
        case Command::kWriteDmaExt:
        case Command::kWriteMultipleExt:
        case Command::kWriteDmaFuaExt:
        case Command::kWriteMultipleFuaExt:
        case Command::kReadVerifyExt:
        case Command::kFlushCacheExt:
        case Command::kDataSetManagement:
            return true;
        default:
            return false;
    }
}

}  // namespace coremesh::ata
