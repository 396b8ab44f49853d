// SPDX-License-Identifier: GPL-2.0-or-later
// What the faulting instruction was about to do, from the context that the kernel gives a signal handler.
#pragma once

#include <ucontext.h>

#include <cstdint>

namespace coremesh {

inline uintptr_t program_counter(const void* ucontext) noexcept {
    const auto& machine = static_cast<const ucontext_t*>(ucontext)->uc_mcontext;
#if defined(__x86_64__)
    return static_cast<uintptr_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return machine.pc;
#endif
}

/// Whether it was to write, also when it reads first. x86: the page-fault error code, bit 1 (SDM 3A, 4.7).
/// Arm: the exception syndrome, WnR, bit 6 (DDI 0487, ESR_EL1, ISS of a data abort), in a record of its own.
inline bool is_write(const void* ucontext) noexcept {
    const auto& machine = static_cast<const ucontext_t*>(ucontext)->uc_mcontext;
#if defined(__x86_64__)
    return machine.gregs[REG_ERR] & 2;
#elif defined(__aarch64__)
    constexpr uint32_t kEsrMagic = 0x45535201;
    for (const uint8_t* at = machine.__reserved;;) {
        const auto* record = reinterpret_cast<const uint32_t*>(at);  // magic, size, then the record
        if (record[0] == kEsrMagic) return *reinterpret_cast<const uint64_t*>(at + 8) & 1 << 6;
        if (record[0] == 0 || record[1] == 0) return true;
        at += record[1];
    }
#endif
}

}  // namespace coremesh
