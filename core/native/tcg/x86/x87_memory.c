// SPDX-License-Identifier: GPL-2.0-or-later
// Memory operands of x87, MMX and SSE state: up to 512 bytes, at any address.
//
// What the TLB does not serve at once (x87.h): the engine's own functions, which raise the guest's faults.
#if defined(__x86_64__)

#include "x87.h"

// Outside 64-bit code addresses wrap at 4 GiB (SDM vol. 3A, 5.3.1).
static target_ulong linear(const CPUX86State* env, target_ulong address) {
    return env->hflags & HF_CS64_MASK ? address : (uint32_t)address;
}

void cm_x87_load_slowly(CPUX86State* env, target_ulong address, void* into, unsigned size, uintptr_t ra) {
    uint8_t* to = into;
    for (unsigned done = 0; done < size;) {
        const target_ulong at = linear(env, address + done);
        const unsigned left = size - done;
        if (left >= 8) {
            const uint64_t value = cpu_ldq_data_ra(env, at, ra);
            memcpy(to + done, &value, 8), done += 8;
        } else if (left >= 4) {
            const uint32_t value = cpu_ldl_data_ra(env, at, ra);
            memcpy(to + done, &value, 4), done += 4;
        } else {
            const uint16_t value = (uint16_t)cpu_lduw_data_ra(env, at, ra);
            memcpy(to + done, &value, 2), done += 2;
        }
    }
}

void cm_x87_probe_store(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    const int index = cpu_mmu_index(env, false);
    for (unsigned done = 0; done < size;) {
        const target_ulong at = linear(env, address + done);
        const unsigned room = TARGET_PAGE_SIZE - (unsigned)(at & ~TARGET_PAGE_MASK);
        const unsigned part = size - done < room ? size - done : room;
        probe_write(env, at, (int)part, index, ra);
        done += part;
    }
}

void cm_x87_store_slowly(CPUX86State* env, target_ulong address, const void* bytes, unsigned size,
                         uintptr_t ra) {
    const uint8_t* from = bytes;
    if (size > 8) cm_x87_probe_store(env, address, size, ra);
    for (unsigned done = 0; done < size;) {
        const target_ulong at = linear(env, address + done);
        const unsigned left = size - done;
        if (left >= 8) {
            uint64_t value;
            memcpy(&value, from + done, 8), done += 8;
            cpu_stq_data_ra(env, at, value, ra);
        } else if (left >= 4) {
            uint32_t value;
            memcpy(&value, from + done, 4), done += 4;
            cpu_stl_data_ra(env, at, value, ra);
        } else {
            uint16_t value;
            memcpy(&value, from + done, 2), done += 2;
            cpu_stw_data_ra(env, at, value, ra);
        }
    }
}

#endif
