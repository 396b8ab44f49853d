// SPDX-License-Identifier: GPL-2.0-or-later
// The modes before long mode: what legacy_modes.S logged is compared with the manual.
//
// Options: strict checks what QEMU 7.2 does not do; limits checks segment limits and types too, as hardware
// does; translators leave those checks out.
#include "guest.h"

#define LOW 0x9000u
#define NOTHING 0xffffffffu

struct row {
    uint32_t vector, error, eip, cs, flags, esp, ss, eax;
};

extern struct row legacy_log[];
extern const uint32_t legacy_eips[];
extern uint64_t legacy_gdt[], legacy_idt[];
extern uint32_t tss_a[26], tss_b[26];
extern volatile uint32_t task_seen[8];
extern char legacy_entries[], short_code[], short_over[], low_begin[], low_end[], gate_target[],
    kernel_stack[], user_stack[], task_stack[];
void legacy_run(void);

enum { CODE = 0x18, USER = 0x23, SHORT = 0xa0, VM = 0x900, FLAG_VM = 0x20000 };
#define AT_LABEL 0

// What each step must have logged; EIP 0 is the step's label.
static const struct {
    const char* name;
    uint32_t vector, error, cs;
    bool limits, strict;
} expected[] = {
    {"before the first step", NOTHING, 0, 0, false, false},
    {"ud2", 6, 0, CODE, false, false},
    {"access beyond a limit", 13, 0, CODE, true, false},
    {"access across a limit", 13, 0, CODE, true, false},
    {"access at the limit", NOTHING, 0, 0, false, false},
    {"access below an expand-down segment", 13, 0, CODE, true, false},
    {"access beyond the stack segment", 12, 0, CODE, true, false},
    {"write to a code segment", 13, 0, CODE, true, false},
    {"use of the null selector", 13, 0, CODE, true, false},
    {"into", 4, 0, CODE, false, false},
    {"bound", 5, 0, CODE, false, false},
    {"int3", 3, 0, CODE, false, false},
    {"far jump to data", 13, 0x10, CODE, false, false},
    {"cli in ring 3", 13, 0, USER, false, false},
    {"int 80h in ring 3", 0x80, 0, USER, false, false},
    {"in with IOPL 0", 13, 0, USER, false, false},
    {"in with IOPL 3", 0x80, 0, USER, false, false},
    {"sysenter and sysexit", 0x80, 0, 0x83, false, false},
    {"virtual-8086: cli", 13, 0, VM, false, false},
    {"virtual-8086: int with IOPL 0", 13, 0, VM, false, false},
    {"virtual-8086: int with IOPL 3", 0x21, 0, VM, false, false},
    {"virtual-8086: pushf with IOPL 0", 13, 0, VM, false, false},
    {"virtual-8086: in", 13, 0, VM, false, false},
    {"virtual-8086: hlt", 13, 0, VM, false, false},
    {"virtual-8086: access beyond 64 KiB", 13, 0, VM, true, false},
    {"task switch by jump", 0x80, 0, CODE, false, false},
    {"task switch by call", 0x80, 0, CODE, false, false},
    {"jump to a busy task", 13, 0x30, CODE, false, false},
    {"jump to a short TSS", 10, 0x60, CODE, false, false},
    {"call gate with parameters", 0x80, 0, USER, false, false},
    {"call gate to data", 13, 0x10, USER, false, false},
    {"task switch with the T flag", 1, 0, CODE, false, true},
    {"PAE paging with a reserved bit", 13, 0, CODE, false, true},
    {"CR3 with a reserved bit", 13, 0, CODE, false, true},
    {"real mode and back", 0x80, 0, CODE, false, false},
    {"near jump beyond the limit of CS", 13, 0, SHORT, true, false},
    {"call beyond it", 13, 0, SHORT, true, false},
    {"return beyond it", 13, 0, SHORT, true, false},
    {"conditional branch beyond it", 13, 0, SHORT, true, false},
    {"conditional branch beyond it that is not taken", 3, 0, SHORT, false, false},
    {"loop beyond it", 13, 0, SHORT, true, false},
    {"indirect jump beyond it", 13, 0, SHORT, true, false},
    {"indirect call beyond it", 13, 0, SHORT, true, false},
    {"running over the limit of CS", 13, 0, SHORT, true, false},
    {"instruction across it", 13, 0, SHORT + 8, true, false},
    {"32-bit jump of 16-bit code beyond 64 KiB", 13, 0, 0x40, true, false},
    {"instruction across it and into a missing page", 13, 0, 0xb0, true, false},
    {"instruction into a missing page below it", 14, 0x10, 0xb8, false, false},
};
#define STEPS (sizeof expected / sizeof expected[0])

static uint64_t tss_descriptor(const void* base, uint32_t limit) {
    uint64_t at = (uint64_t)base;
    return limit | (at & 0xffffff) << 16 | 0x89ull << 40 | (at >> 24 & 0xff) << 56;
}

// Code of 32 bits and less than 1 MiB.
static uint64_t short_descriptor(uint32_t limit) {
    uint64_t at = (uint64_t)short_code;
    return limit | (at & 0xffffff) << 16 | 0x409bull << 40 | (at >> 24 & 0xff) << 56;
}

static void lay_out(void) {
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t entry = (uint64_t)legacy_entries + 16 * vector;
        uint64_t access = vector == 3 || vector == 4 || vector == 0x80 || vector == 0x21 ? 0xee : 0x8e;
        legacy_idt[vector] = (entry & 0xffff) | (uint64_t)CODE << 16 | access << 40 | (entry >> 16) << 48;
    }
    legacy_gdt[6] = tss_descriptor(tss_a, 103);
    legacy_gdt[7] = tss_descriptor(tss_b, 103);
    legacy_gdt[12] = tss_descriptor(tss_b, 31);
    uint64_t target = (uint64_t)gate_target;
    legacy_gdt[18] = (target & 0xffff) | (uint64_t)CODE << 16 | 0xec02ull << 32 | target >> 16 << 48;
    legacy_gdt[19] = legacy_gdt[18] ^ (uint64_t)(CODE ^ 0x10) << 16;
    const uint32_t limit = (uint32_t)(short_over - short_code) - 1;
    legacy_gdt[20] = short_descriptor(limit);
    legacy_gdt[21] = short_descriptor(limit - 2);
    *(volatile uint8_t*)(uint64_t)(LOW + 0x12345) = 0xcc;
    tss_a[1] = (uint32_t)(uint64_t)kernel_stack;  // ESP0
    tss_a[2] = 0x10;                              // SS0
    tss_a[25] = 104u << 16;                       // no I/O bitmap
    tss_b[13] = 0xb0b0b0b0;                       // EBX
    tss_b[14] = (uint32_t)(uint64_t)task_stack;   // ESP
    for (unsigned segment = 18; segment < 24; segment++) tss_b[segment] = 0x10;
    tss_b[19] = CODE;
    tss_b[25] = 104u << 16;
    memcpy((void*)(uint64_t)LOW, low_begin, (size_t)(low_end - low_begin));
    memset((void*)(uint64_t)(LOW + 0x700), 0, 0x20);
    for (unsigned i = 0; i < STEPS; i++) legacy_log[i].vector = NOTHING;
}

static void check_vm86(unsigned step, uint32_t offset_of) {
    const struct row* row = &legacy_log[step];
    check(row->flags & FLAG_VM, "%s: saved EFLAGS %x without VM", expected[step].name, row->flags);
    check(row->eip == offset_of, "%s: saved IP %x, expected %x", expected[step].name, row->eip, offset_of);
    check(row->ss == VM && row->esp == 0xff0, "%s: saved SS:SP %x:%x", expected[step].name, row->ss,
          row->esp);
}

void guest_main(void) {
    print("legacy steps=%lu\n", (uint64_t)STEPS);
    lay_out();
    legacy_run();
    for (unsigned i = 0; i < STEPS; i++) {
        const struct row* row = &legacy_log[i];
        if (expected[i].limits && !option("limits")) continue;
        if (expected[i].strict && !option("strict")) continue;
        if (!check(row->vector == expected[i].vector,
                   "%s: vector %x error %x cs %x eip %x, expected vector %x", expected[i].name, row->vector,
                   row->error, row->cs, row->eip, expected[i].vector))
            continue;
        if (row->vector == NOTHING) continue;
        check(row->error == expected[i].error, "%s: error code %x, expected %x", expected[i].name, row->error,
              expected[i].error);
        check((row->cs & 0xffff) == expected[i].cs, "%s: CS %x, expected %x", expected[i].name, row->cs,
              expected[i].cs);
        if (expected[i].cs != VM)
            check(row->eip == legacy_eips[i - 1], "%s: EIP %x, expected %x", expected[i].name, row->eip,
                  legacy_eips[i - 1]);
        if (expected[i].cs == USER)
            check(row->ss == 0x2b && row->esp == (uint32_t)(uint64_t)user_stack, "%s: SS:ESP %x:%x",
                  expected[i].name, row->ss, row->esp);
    }
    // The 16-bit code in order of its labels: each instruction's offset and length.
    const uint8_t* low = (const uint8_t*)low_begin;
    uint32_t cli = 0;
    while (low[cli] != 0xfa) cli++;
    check_vm86(18, cli);
    check_vm86(19, cli + 1);
    check_vm86(20, cli + 3);
    check_vm86(21, cli + 3);
    check_vm86(22, cli + 4);
    check_vm86(23, cli + 6);
    if (option("limits")) check_vm86(24, cli + 10);
    check(*(volatile uint16_t*)(uint64_t)(LOW + 0x700) == 0x1234 &&
              *(volatile uint8_t*)(uint64_t)(LOW + 0x702) == 0x5a,
          "virtual-8086: stores went elsewhere");
    check(task_seen[0] == 0xb0b0b0b0 && task_seen[1] & 8 && (task_seen[2] & 0xffff) == 0x38,
          "task switch: EBX %x CR0 %x TR %x", task_seen[0], task_seen[1], task_seen[2]);
    check(task_seen[3] == 0xb0b0b0b0 && task_seen[4] & 0x4000 && (task_seen[5] & 0xffff) == 0x30,
          "nested task: EBX %x EFLAGS %x back link %x", task_seen[3], task_seen[4], task_seen[5]);
    check(legacy_log[25].eax == 0x7777 && legacy_log[26].eax == 0x8888 && legacy_log[34].eax == 0x9999,
          "EAX after the task switches and real mode: %x %x %x", legacy_log[25].eax, legacy_log[26].eax,
          legacy_log[34].eax);
    check((tss_a[9] & 0x8d5) == 0x894, "task switch: EFLAGS %x saved after 7fffffffh + 1", tss_a[9]);
    check(legacy_log[29].eax == 0x22221111, "call gate: parameters %x", legacy_log[29].eax);
    if (option("limits")) check(task_seen[6] == 2, "loop beyond the limit: ECX %x", task_seen[6]);
    uint64_t dr6;
    __asm__ volatile("mov %%db6, %0" : "=r"(dr6));
    if (option("strict")) check(dr6 & 0x8000, "task switch with the T flag: DR6 %lx", dr6);
    check(legacy_log[17].eax == 0xabcd, "sysenter: EAX %x", legacy_log[17].eax);
    uint16_t counts = *(volatile uint16_t*)(uint64_t)(LOW + 0x710);
    uint32_t wanted = option("limits") ? 0x201 : 0x101;
    check(counts == wanted, "real mode: %x software interrupts and faults, expected %x", counts, wanted);
    check(*(volatile uint32_t*)0x600000ull == 0x13572468,
          "real mode with a 4 GiB segment: the store went elsewhere");
    finish();
}
