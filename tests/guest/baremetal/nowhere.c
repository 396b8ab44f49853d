// SPDX-License-Identifier: GPL-2.0-or-later
// A guest that jumps into nothing, reads and writes nothing: physical addresses where there is no memory.
//
// Without options traps are caught and the guest ends in order. "blind" jumps with no IDT: a triple fault.
// "ring" leaves by a stack and a page table that are not there.
#include "guest.h"

#define WINDOW 0x8000000000ull

static const uint64_t holes[] = {
    0xd0000000,    // the PCI hole
    0xffff0000,    // where a BIOS would be
    0x900000000,   // behind the RAM
    0xff00000000,  // far beyond any RAM
};

static void jump(void* to) { ((void (*)(void))to)(); }

static void locked(void* at) { __asm__ volatile("lock incq (%0)" ::"r"(at) : "memory", "cc"); }

static void wide(void* at) {
    __asm__ volatile("lock cmpxchg16b (%0)" ::"r"(at), "a"(0), "d"(0), "b"(0), "c"(0) : "memory", "cc");
}

static void page_crossing(void* at) { __asm__ volatile("lock incq 0xffc(%0)" ::"r"(at) : "memory", "cc"); }

static void floating(void* at) {
    __asm__ volatile("movups (%0), %%xmm0; movups %%xmm0, 8(%0); fxsave 0x200(%0)" ::"r"(at) : "memory");
}

static void strings(void* at) {
    uint64_t count = 64;
    void *from = at, *to = (uint8_t*)at + 512;
    __asm__ volatile("rep movsb" : "+c"(count), "+S"(from), "+D"(to)::"memory");
}

static void table_in_a_hole(void* table) {
    // The processor walks a page table where there is no memory.
    extern uint64_t pml4[512];
    pml4[300] = (uint64_t)table | 3;
    *(volatile uint64_t*)0xffff960000000000 = 1;
}

void guest_main(void) {
    for (unsigned i = 0; i < sizeof holes / sizeof holes[0]; i++) {
        uint64_t at = WINDOW + i * 0x10000;
        page_map(at, holes[i], PAGE_PRESENT | PAGE_WRITE);
        page_map(at + 0x1000, holes[i] + 0x1000, PAGE_PRESENT | PAGE_WRITE);
        volatile uint64_t* word = (volatile uint64_t*)at;
        uint64_t before = *word;
        *word = 0x1234567890abcdef;
        print("hole=%lx reads %lx then %lx\n", holes[i], before, *word);
        if (option("strict")) check(before == ~0ull && *word == ~0ull, "hole %lx reads %lx", holes[i], *word);
        static void (*const accesses[])(void*) = {locked, wide, page_crossing, floating, strings, jump};
        for (unsigned a = 0; a < sizeof accesses / sizeof accesses[0]; a++) {
            int vector = trap_catch(accesses[a], (void*)at);
            print("access=%u vector=%d\n", a, vector);
        }
    }
    int vector = trap_catch(table_in_a_hole, (void*)0x900000000);
    print("table vector=%d error=%lx\n", vector, this_core()->trap.error);
    if (option("blind") || option("ring")) {
        struct __attribute__((packed)) {
            uint16_t limit;
            uint64_t base;
        } none = {option("ring") ? 4095 : 0, 0x900000000};
        __asm__ volatile("lidt %0" ::"m"(none));
        if (option("ring"))
            __asm__ volatile("mov %0, %%rsp; mov %1, %%cr3; push %%rax" ::"r"(0x900000000ull),
                             "r"(0x900000000ull));
        jump((void*)WINDOW);
    }
    finish();
}
