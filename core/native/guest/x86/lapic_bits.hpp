// SPDX-License-Identifier: GPL-2.0-or-later
// Names of the local APIC's register bits (SDM vol. 3A, chapter 11); private to the Lapic's own files.
#pragma once

#include <cstdint>

namespace coremesh::x86::lapic_bits {

// MSRs (vol. 4)
constexpr uint32_t kMsrApicBase = 0x1B;
constexpr uint32_t kMsrTscDeadline = 0x6E0;
constexpr uint32_t kMsrX2apicFirst = 0x800;
constexpr uint32_t kMsrX2apicLast = 0x8FF;

// IA32_APIC_BASE, figure 11-5 and 11-26
constexpr uint64_t kDefaultBase = 0xFEE0'0000;
constexpr uint64_t kBaseBootstrap = 1u << 8;
constexpr uint64_t kBaseX2apic = 1u << 10;
constexpr uint64_t kBaseEnable = 1u << 11;

// Register numbers: MMIO offset >> 4, x2APIC MSR - 0x800 (tables 11-1 and 11-6)
constexpr uint32_t kRegId = 0x02;
constexpr uint32_t kRegVersion = 0x03;
constexpr uint32_t kRegTaskPriority = 0x08;
constexpr uint32_t kRegArbitrationPriority = 0x09;
constexpr uint32_t kRegProcessorPriority = 0x0A;
constexpr uint32_t kRegEoi = 0x0B;
constexpr uint32_t kRegRemoteRead = 0x0C;
constexpr uint32_t kRegLogicalDestination = 0x0D;
constexpr uint32_t kRegDestinationFormat = 0x0E;
constexpr uint32_t kRegSpurious = 0x0F;
constexpr uint32_t kRegInService = 0x10;
constexpr uint32_t kRegTriggerMode = 0x18;
constexpr uint32_t kRegRequest = 0x20;
constexpr uint32_t kRegErrorStatus = 0x28;
constexpr uint32_t kRegCommandLow = 0x30;
constexpr uint32_t kRegCommandHigh = 0x31;
constexpr uint32_t kRegLvtTimer = 0x32;
constexpr uint32_t kRegLvtError = 0x37;
constexpr uint32_t kRegInitialCount = 0x38;
constexpr uint32_t kRegCurrentCount = 0x39;
constexpr uint32_t kRegDivide = 0x3E;
constexpr uint32_t kRegSelfIpi = 0x3F;

// Spurious-interrupt vector register, figure 11-23
constexpr uint32_t kSpuriousEnable = 1u << 8;
constexpr uint32_t kSpuriousSuppressEoi = 1u << 12;

// Local vector table, figure 11-8
constexpr uint32_t kLvtVector = 0xFF;
constexpr uint32_t kLvtMode = 7u << 8;
constexpr uint32_t kLvtStatus = 1u << 12;
constexpr uint32_t kLvtPolarity = 1u << 13;
constexpr uint32_t kLvtRemoteIrr = 1u << 14;
constexpr uint32_t kLvtLevel = 1u << 15;
constexpr uint32_t kLvtMasked = 1u << 16;
constexpr uint32_t kLvtTimerMode = 3u << 17;

// Interrupt command register, figures 11-12 and 11-28
constexpr uint32_t kCommandLogical = 1u << 11;
constexpr uint32_t kCommandStatus = 1u << 12;
constexpr uint32_t kCommandAssert = 1u << 14;
constexpr uint32_t kCommandLevel = 1u << 15;
constexpr uint32_t kCommandReserved = 0xFFF3'2000;

// Error status register, figure 11-9
constexpr uint32_t kErrorSendIllegalVector = 1u << 5;
constexpr uint32_t kErrorReceivedIllegalVector = 1u << 6;
constexpr uint32_t kErrorIllegalRegister = 1u << 7;

constexpr unsigned kFirstVector = 16;  // 0-15 are reserved for exceptions (11.5.2)

}  // namespace coremesh::x86::lapic_bits
