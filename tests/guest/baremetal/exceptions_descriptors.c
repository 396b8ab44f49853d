// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors: what each instruction that takes a selector says to each kind of them.
#include "exceptions.h"

// A GDT of the tests' own: the runtime's, and room.
#define SLOT 0x80  // and the next eight bytes, for descriptors of sixteen
#define TARGET 0x90
static uint64_t gdt[24];

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};
static struct table_pointer before;

static void use_own_gdt(bool own) {
    const struct table_pointer ours = {sizeof gdt - 1, (uint64_t)gdt};
    if (own) {
        __asm__ volatile("sgdt %0" : "=m"(before));
        memcpy(gdt, this_core()->gdt, sizeof this_core()->gdt);
    }
    __asm__ volatile("lgdt %0" ::"m"(*(own ? &ours : &before)));
}

// SDM vol. 3A table 3-2: what LAR and LSL know in IA-32e mode (vol. 2A, LAR table 3-53; LSL table 3-56).
static void test_look(void) {
    const uint16_t lar_types = 1u << 2 | 1u << 9 | 1u << 11 | 1u << 12,
                   lsl_types = 1u << 2 | 1u << 9 | 1u << 11;
    for (unsigned type = 0; type < 16; type++) {
        gdt[SLOT / 8] = 0x00ab80000000cdef | (uint64_t)type << 40;
        gdt[SLOT / 8 + 1] = 0;
        uint64_t rights = 1, limit = 1, lar_found, lsl_found;
        __asm__ volatile("lar %k2, %k0\n sete %b1" : "+r"(rights), "=q"(lar_found) : "r"(SLOT) : "cc");
        __asm__ volatile("lsl %k2, %k0\n sete %b1" : "+r"(limit), "=q"(lsl_found) : "r"(SLOT) : "cc");
        const bool lar = lar_types >> type & 1, lsl = lsl_types >> type & 1;
        check((lar_found & 1) == lar && (rights & ~0xf0000ull) == (lar ? 0x00a08000 | type << 8 : 1),
              "lar of system type %u: ZF %lu, %lx", type, lar_found & 1, rights);
        check((lsl_found & 1) == lsl && limit == (lsl ? 0xbcdefull << 12 | 0xfff : 1),
              "lsl of system type %u: ZF %lu, %lx", type, lsl_found & 1, limit);
    }
}

void test_descriptors(void) {
    use_own_gdt(true);
    if (strict) test_look();
    use_own_gdt(false);
}
