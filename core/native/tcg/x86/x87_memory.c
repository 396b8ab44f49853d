// SPDX-License-Identifier: GPL-2.0-or-later
// Memory operands of x87, MMX and SSE state: up to 512 bytes, at any address.
//
// What the TLB does not serve at once (x87.h): the engine's own functions, which raise the guest's faults.
#if defined(__x86_64__)

#include "platform.h"
#include "translator.h"
#include "x87.h"

enum { WIDEST_OPERAND = 10, FXSAVE_BYTES = 512 };

// Outside 64-bit code addresses wrap at 4 GiB (SDM vol. 3A, 5.3.1).
static target_ulong linear(const CPUX86State* env, target_ulong address) {
    return env->hflags & HF_CS64_MASK ? address : (uint32_t)address;
}

// The fault of an address that is not canonical comes before that of a page that is missing.
static bool ends_canonical(const CPUX86State* env, target_ulong address, unsigned size) {
    return !(env->hflags & HF_CS64_MASK) || cm_is_canonical(address + size - 1);
}

// Of an image of the state the processor looks at its first word alone; the rest wraps.
static void check_end(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    if (size <= WIDEST_OPERAND && !(env->hflags & HF_CS64_MASK))
        cm_check_end_of_segment(env, address, size, ra);
}

// Faults as the bare processor does, of which no manual tells: of an image of the state it asks for the first
// word and the last byte before all others.
static void probe(CPUX86State* env, target_ulong address, unsigned size, MMUAccessType kind, uintptr_t ra) {
    const int index = cpu_mmu_index(env, false);
    check_end(env, address, size, ra);
    if (size > WIDEST_OPERAND && ends_canonical(env, address, size)) {
        probe(env, address, size == 14 || size == 94 ? 2 : 4, kind, ra);
    }
    if (size > WIDEST_OPERAND || !ends_canonical(env, address, size)) {
        probe_access(env, linear(env, address + size - 1), 1, kind, index, ra);
    }
    for (unsigned done = 0; done < size;) {
        const target_ulong at = linear(env, address + done);
        const unsigned room = TARGET_PAGE_SIZE - (unsigned)(at & ~TARGET_PAGE_MASK);
        const unsigned part = size - done < room ? size - done : room;
        probe_access(env, at, (int)part, kind, index, ra);
        done += part;
    }
}

void cm_x87_probe_store(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    probe(env, address, size, MMU_DATA_STORE, ra);
}

// Of FXSAVE's image the last byte comes first, although nothing is written there.
void cm_x87_probe_fxsave(CPUX86State* env, target_ulong address, bool stores, uintptr_t ra) {
    probe_access(env, linear(env, address + FXSAVE_BYTES - 1), 1, stores ? MMU_DATA_STORE : MMU_DATA_LOAD,
                 cpu_mmu_index(env, false), ra);
}

void cm_x87_load_slowly(CPUX86State* env, target_ulong address, void* into, unsigned size, uintptr_t ra) {
    uint8_t* to = into;
    check_end(env, address, size, ra);
    if (size > WIDEST_OPERAND || !ends_canonical(env, address, size))
        probe(env, address, size, MMU_DATA_LOAD, ra);
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

// By the size of the operand (SDM vol. 3A, table 6-7): 80-bit values like 64-bit ones, an image of the state
// like the words that it consists of.
void cm_x87_check_alignment(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    const unsigned alignment = size == 10 ? 8 : size == 14 || size == 94 ? 2 : size > 10 ? 4 : size;
    const bool canonical = !(env->hflags & HF_CS64_MASK) || cm_is_canonical(address);
    if (canonical && ends_canonical(env, address, size)) cm_check_alignment(env, address, alignment, ra);
}

void cm_x87_store_slowly(CPUX86State* env, target_ulong address, const void* bytes, unsigned size,
                         uintptr_t ra) {
    const uint8_t* from = bytes;
    check_end(env, address, size, ra);
    if (size > 8 || !ends_canonical(env, address, size)) cm_x87_probe_store(env, address, size, ra);
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
