// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors, gates and stacks: what each instruction that takes a selector says to each kind of them, and
// what the delivery of an event says. Each row has its place in the SDM; 64-bit mode.
#include "exceptions.h"

// A GDT of the tests' own: the runtime's, and room.
#define SLOT 0x80    // and the next eight bytes, for descriptors of sixteen
#define TARGET 0x90  // what a gate in SLOT leads to
#define LAST 0xb8    // the last eight bytes of the table
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

static const struct trap* last(void) { return &this_core()->trap; }

static void ends(const char* what, int vector, int wanted, uint64_t error) {
    check(vector == wanted, "%s: vector %d error %lx rip %lx, expected %d", what, vector, last()->error,
          last()->rip, wanted);
    if (vector == wanted && wanted >= 0)
        check(last()->error == error, "%s: error code %lx, expected %lx", what, last()->error, error);
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

// --- instructions that take a selector

static struct __attribute__((packed)) {
    uint64_t offset;
    uint16_t selector;
} far;

static void load_ds(void* selector) {
    __asm__ volatile("mov %k0, %%ds\n mov %k1, %%ds" ::"r"(selector), "r"(KERNEL_DATA));
}
static void load_fs(void* selector) {
    __asm__ volatile("mov %k0, %%fs\n mov %k1, %%fs" ::"r"(selector), "r"(0));
}
static void load_ss(void* selector) {
    __asm__ volatile("mov %k0, %%ss\n mov %k1, %%ss" ::"r"(selector), "r"(KERNEL_DATA));
}
static void load_ldt(void* selector) { __asm__ volatile("lldt %w0\n lldt %w1" ::"r"(selector), "r"(0)); }
static void load_task(void* selector) { __asm__ volatile("ltr %w0" ::"r"(selector)); }
// The transfers lead to label 1 of their own, wherever the descriptor allows.
static void jump(void* selector) {
    far.selector = (uint16_t)(uint64_t)selector;
    __asm__ volatile(
        "leaq 1f(%%rip), %%rax\n test %0, %0\n jz 2f\n mov %0, %%rax\n 2: mov %%rax, %1\n rex.w ljmp *%1\n "
        "1:" ::"r"(far.offset),
        "m"(far)
        : "rax", "memory");
}
static void call(void* selector) {
    far.selector = (uint16_t)(uint64_t)selector;
    __asm__ volatile(
        "leaq 1f(%%rip), %%rax\n test %0, %0\n jz 2f\n mov %0, %%rax\n 2: mov %%rax, %1\n rex.w lcall *%1\n "
        "jmp 3f\n 1: lretq\n 3:" ::"r"(far.offset),
        "m"(far)
        : "rax", "memory");
}
static void far_return(void* selector) {
    __asm__ volatile(
        "pushq %0\n leaq 1f(%%rip), %%rax\n test %1, %1\n jz 2f\n mov %1, %%rax\n 2: pushq %%rax\n lretq\n "
        "1:" ::"r"(selector),
        "r"(far.offset)
        : "rax", "memory");
}
// To ring 3, with a stack segment in the upper half.
static void return_outwards(void* selectors) {
    __asm__ volatile("pushq %1\n pushq %2\n pushq %0\n pushq %3\n lretq" ::"r"((uint64_t)selectors & 0xffff),
                     "r"((uint64_t)selectors >> 16), "r"((uint64_t)USER_STACK_TOP - 64), "r"(far.offset)
                     : "memory");
}
static void interrupt_return(void* selectors) {
    uint64_t flags = read_flags();
    __asm__ volatile(
        "mov %%rsp, %%rcx\n pushq %1\n pushq %%rcx\n pushq %2\n pushq %0\n leaq 1f(%%rip), %%rax\n test %3, "
        "%3\n jz 2f\n mov %3, %%rax\n 2: pushq %%rax\n iretq\n 1: mov %4, %%ss" ::"r"((uint64_t)selectors &
                                                                                      0xffff),
        "r"((uint64_t)selectors >> 16), "r"(flags), "r"(far.offset), "r"(KERNEL_DATA)
        : "rax", "rcx", "memory");
}
static void nested_return(void* unused) {
    (void)unused;
    __asm__ volatile("pushfq\n orl $0x4000, (%%rsp)\n popfq\n iretq" ::: "memory", "cc");
}

#define DATA(access) (0x00cf00000000ffffull | (uint64_t)(access) << 40)
#define CODE64(access) (0x00af00000000ffffull | (uint64_t)(access) << 40)
#define CODE32(access) (0x00cf00000000ffffull | (uint64_t)(access) << 40)
#define SYSTEM(type) ((uint64_t)(0x80 | (type)) << 40 | 0x67)
#define GATE(selector, access) ((uint64_t)(selector) << 16 | (uint64_t)(access) << 40)
#define FINE (-1)
#define GP 13
#define NP 11
#define SS 12
#define NON_CANONICAL 0x800000000000ull

static const struct row {
    const char* name;  // with its place in the manual
    void (*body)(void*);
    uint64_t selector, low, high, target, offset;
    int vector;
    uint64_t error;
} rows[] = {
    // Vol. 2B, MOV: loading a data segment register.
    {"MOV DS: read-only data", load_ds, SLOT, DATA(0x91), 0, 0, 0, FINE, 0},
    {"MOV DS: execute-only code", load_ds, SLOT, CODE64(0x99), 0, 0, 0, GP, SLOT},
    {"MOV DS: readable code", load_ds, SLOT, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"MOV DS: RPL above DPL", load_ds, SLOT + 3, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"MOV DS: code, RPL above DPL", load_ds, SLOT + 3, CODE64(0x9b), 0, 0, 0, GP, SLOT},
    {"MOV DS: conforming code, RPL above DPL", load_ds, SLOT + 3, CODE64(0x9f), 0, 0, 0, FINE, 0},
    {"MOV DS: a system segment", load_ds, SLOT, SYSTEM(2), 0, 0, 0, GP, SLOT},
    {"MOV DS: not present", load_ds, SLOT, DATA(0x13), 0, 0, 0, NP, SLOT},
    {"MOV FS: beyond the table", load_fs, 0xc0, 0, 0, 0, 0, GP, 0xc0},
    {"MOV FS: no LDT", load_fs, 0xc, 0, 0, 0, 0, GP, 0xc},
    {"MOV FS: null with an RPL", load_fs, 3, 0, 0, 0, 0, FINE, 0},
    // Vol. 2B, MOV: loading SS.
    {"MOV SS: null", load_ss, 0, 0, 0, 0, 0, FINE, 0},
    {"MOV SS: null, RPL other than CPL", load_ss, 1, 0, 0, 0, 0, GP, 0},
    {"MOV SS: RPL other than CPL", load_ss, SLOT + 3, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"MOV SS: DPL other than CPL", load_ss, SLOT, DATA(0xf3), 0, 0, 0, GP, SLOT},
    {"MOV SS: read-only data", load_ss, SLOT, DATA(0x91), 0, 0, 0, GP, SLOT},
    {"MOV SS: code", load_ss, SLOT, CODE64(0x9b), 0, 0, 0, GP, SLOT},
    {"MOV SS: not present", load_ss, SLOT, DATA(0x13), 0, 0, 0, SS, SLOT},
    // Vol. 2A, LLDT.
    {"LLDT", load_ldt, SLOT, SYSTEM(2), 0, 0, 0, FINE, 0},
    {"LLDT: null", load_ldt, 0, 0, 0, 0, 0, FINE, 0},
    {"LLDT: in the LDT", load_ldt, SLOT + 4, SYSTEM(2), 0, 0, 0, GP, SLOT + 4},
    {"LLDT: data", load_ldt, SLOT, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"LLDT: a TSS", load_ldt, SLOT, SYSTEM(9), 0, 0, 0, GP, SLOT},
    {"LLDT: not present", load_ldt, SLOT, SYSTEM(2) & ~(0x80ull << 40), 0, 0, 0, NP, SLOT},
    {"LLDT: not canonical", load_ldt, SLOT, SYSTEM(2), 0x8000, 0, 0, GP, SLOT},
    {"LLDT: half a descriptor", load_ldt, LAST, 0, 0, 0, 0, GP, LAST},
    // Vol. 2A, LTR.
    {"LTR: null", load_task, 0, 0, 0, 0, 0, GP, 0},
    {"LTR: in the LDT", load_task, SLOT + 4, SYSTEM(9), 0, 0, 0, GP, SLOT + 4},
    {"LTR: busy", load_task, SLOT, SYSTEM(11), 0, 0, 0, GP, SLOT},
    {"LTR: of 16 bits", load_task, SLOT, SYSTEM(1), 0, 0, 0, GP, SLOT},
    {"LTR: an LDT", load_task, SLOT, SYSTEM(2), 0, 0, 0, GP, SLOT},
    {"LTR: not present", load_task, SLOT, SYSTEM(9) & ~(0x80ull << 40), 0, 0, 0, NP, SLOT},
    {"LTR: not canonical", load_task, SLOT, SYSTEM(9), 0x8000, 0, 0, GP, SLOT},
    {"LTR: a type in the upper half", load_task, SLOT, SYSTEM(9), 2ull << 40, 0, 0, GP, SLOT},
    {"LTR: half a descriptor", load_task, LAST, 0, 0, 0, 0, GP, LAST},
    // Vol. 2A, JMP: far, to a code segment.
    {"JMP", jump, SLOT, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"JMP: conforming", jump, SLOT, CODE64(0x9f), 0, 0, 0, FINE, 0},
    {"JMP: null", jump, 0, 0, 0, 0, 0, GP, 0},
    {"JMP: beyond the table", jump, 0xc0, 0, 0, 0, 0, GP, 0xc0},
    {"JMP: data", jump, SLOT, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"JMP: RPL above CPL", jump, SLOT + 3, CODE64(0x9b), 0, 0, 0, GP, SLOT},
    {"JMP: DPL above CPL", jump, SLOT, CODE64(0xfb), 0, 0, 0, GP, SLOT},
    {"JMP: conforming, DPL above CPL", jump, SLOT, CODE64(0xff), 0, 0, 0, GP, SLOT},
    {"JMP: not present", jump, SLOT, CODE64(0x1b), 0, 0, 0, NP, SLOT},
    {"JMP: both L and D", jump, SLOT, CODE64(0x9b) | 1ull << 54, 0, 0, 0, GP, SLOT},
    {"JMP: beyond the limit", jump, SLOT, 0x004f9b000000ffffull, 0, 0, 0x100000, GP, 0},
    {"JMP: not canonical", jump, SLOT, CODE64(0x9b), 0, 0, NON_CANONICAL, GP, 0},
    {"JMP: a TSS", jump, SLOT, SYSTEM(9), 0, 0, 0, GP, SLOT},
    {"JMP: a task gate", jump, SLOT, GATE(TSS_SELECTOR, 0x85), 0, 0, 0, GP, SLOT},
    {"JMP: an LDT", jump, SLOT, SYSTEM(2), 0, 0, 0, GP, SLOT},
    {"JMP: an interrupt gate", jump, SLOT, GATE(TARGET, 0x8e), 0, CODE64(0x9b), 0, GP, SLOT},
    // Vol. 2A, JMP: through a call gate.
    {"JMP: a gate, RPL above its DPL", jump, SLOT + 3, GATE(TARGET, 0x8c), 0, CODE64(0x9b), 0, GP, SLOT},
    {"JMP: a gate not present", jump, SLOT, GATE(TARGET, 0x0c), 0, CODE64(0x9b), 0, NP, SLOT},
    {"JMP: a gate to null", jump, SLOT, GATE(0, 0x8c), 0, 0, 0, GP, 0},
    {"JMP: a gate beyond the table", jump, SLOT, GATE(0xc0, 0x8c), 0, 0, 0, GP, 0xc0},
    {"JMP: a gate to data", jump, SLOT, GATE(TARGET, 0x8c), 0, DATA(0x93), 0, GP, TARGET},
    {"JMP: a gate to 32-bit code", jump, SLOT, GATE(TARGET, 0x8c), 0, CODE32(0x9b), 0, GP, TARGET},
    {"JMP: a gate to an outer ring", jump, SLOT, GATE(TARGET, 0x8c), 0, CODE64(0xfb), 0, GP, TARGET},
    {"JMP: a gate to code not present", jump, SLOT, GATE(TARGET, 0x8c), 0, CODE64(0x1b), 0, NP, TARGET},
    {"JMP: a gate to no canonical address", jump, SLOT, GATE(TARGET, 0x8c), 0x8000, CODE64(0x9b), 0, GP, 0},
    {"JMP: a gate with a type in its upper half", jump, SLOT, GATE(TARGET, 0x8c), 12ull << 40, CODE64(0x9b),
     0, GP, SLOT},
    {"JMP: half a gate", jump, LAST, 0, 0, 0, 0, GP, LAST},
    // Vol. 2A, CALL: the same.
    {"CALL", call, SLOT, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"CALL: null", call, 0, 0, 0, 0, 0, GP, 0},
    {"CALL: data", call, SLOT, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"CALL: DPL above CPL", call, SLOT, CODE64(0xfb), 0, 0, 0, GP, SLOT},
    {"CALL: not present", call, SLOT, CODE64(0x1b), 0, 0, 0, NP, SLOT},
    {"CALL: not canonical", call, SLOT, CODE64(0x9b), 0, 0, NON_CANONICAL, GP, 0},
    {"CALL: a TSS", call, SLOT, SYSTEM(9), 0, 0, 0, GP, SLOT},
    {"CALL: a gate not present", call, SLOT, GATE(TARGET, 0x0c), 0, CODE64(0x9b), 0, NP, SLOT},
    {"CALL: a gate to 32-bit code", call, SLOT, GATE(TARGET, 0x8c), 0, CODE32(0x9b), 0, GP, TARGET},
    {"CALL: a gate to no canonical address", call, SLOT, GATE(TARGET, 0x8c), 0x8000, CODE64(0x9b), 0, GP, 0},
    // Vol. 2B, RET: far.
    {"RET", far_return, SLOT, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"RET: null", far_return, 0, 0, 0, 0, 0, GP, 0},
    {"RET: beyond the table", far_return, 0xc0, 0, 0, 0, 0, GP, 0xc0},
    {"RET: data", far_return, SLOT, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"RET: DPL other than RPL", far_return, SLOT, CODE64(0xfb), 0, 0, 0, GP, SLOT},
    {"RET: conforming, DPL above RPL", far_return, SLOT, CODE64(0xff), 0, 0, 0, GP, SLOT},
    {"RET: not present", far_return, SLOT, CODE64(0x1b), 0, 0, 0, NP, SLOT},
    {"RET: not canonical", far_return, SLOT, CODE64(0x9b), 0, 0, NON_CANONICAL, GP, 0},
    {"RET: outwards, null stack", return_outwards, USER_CODE64, 0, 0, 0, 0, GP, 0},
    {"RET: outwards, stack of ring 0", return_outwards, USER_CODE64 | KERNEL_DATA << 16, 0, 0, 0, 0, GP,
     KERNEL_DATA},
    {"RET: outwards, stack with RPL 0", return_outwards, USER_CODE64 | SLOT << 16, DATA(0xf3), 0, 0, 0, GP,
     SLOT},
    {"RET: outwards, stack read-only", return_outwards, USER_CODE64 | (SLOT + 3) << 16, DATA(0xf1), 0, 0, 0,
     GP, SLOT},
    {"RET: outwards, stack not present", return_outwards, USER_CODE64 | (SLOT + 3) << 16, DATA(0x73), 0, 0, 0,
     SS, SLOT},
    {"RET: outwards, not canonical", return_outwards, USER_CODE64 | USER_DATA << 16, 0, 0, 0, NON_CANONICAL,
     GP, 0},
    // Vol. 2A, IRET, which takes SS from the frame in 64-bit mode.
    {"IRET", interrupt_return, SLOT | KERNEL_DATA << 16, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"IRET: null stack", interrupt_return, SLOT, CODE64(0x9b), 0, 0, 0, FINE, 0},
    {"IRET: null", interrupt_return, 0, 0, 0, 0, 0, GP, 0},
    {"IRET: data", interrupt_return, SLOT, DATA(0x93), 0, 0, 0, GP, SLOT},
    {"IRET: not present", interrupt_return, SLOT | KERNEL_DATA << 16, CODE64(0x1b), 0, 0, 0, NP, SLOT},
    {"IRET: stack of ring 3", interrupt_return, KERNEL_CODE | USER_DATA << 16, 0, 0, 0, 0, GP,
     USER_DATA & ~3},
    {"IRET: stack not present", interrupt_return, KERNEL_CODE | SLOT << 16, DATA(0x13), 0, 0, 0, SS, SLOT},
    {"IRET: not canonical", interrupt_return, KERNEL_CODE | KERNEL_DATA << 16, 0, 0, 0, NON_CANONICAL, GP, 0},
    {"IRET: nested task", nested_return, 0, 0, 0, 0, 0, GP, 0},
};

static void test_rows(void) {
    // After a reset the LDT is what lies at address 0 (SDM vol. 3A, table 10-1), as long as none is loaded.
    __asm__ volatile("lldt %w0" ::"r"(0));
    for (const struct row* row = rows; row < rows + sizeof rows / sizeof *rows; row++) {
        gdt[SLOT / 8] = row->low, gdt[SLOT / 8 + 1] = row->high;
        gdt[TARGET / 8] = row->target;
        gdt[LAST / 8] = row->body == load_task  ? SYSTEM(9)
                        : row->body == load_ldt ? SYSTEM(2)
                                                : GATE(TARGET, 0x8c);
        far.offset = row->offset;
        ends(row->name, trap_catch(row->body, (void*)row->selector), row->vector, row->error);
    }
    // Vol. 3A 3.4.5.1: what is loaded is marked as accessed.
    static void (*const loads[])(void*) = {load_ds, load_ss, jump, call, far_return};
    for (unsigned i = 0; i < sizeof loads / sizeof *loads; i++) {
        gdt[SLOT / 8] = i < 2 ? DATA(0x92) : CODE64(0x9a);
        far.offset = 0;
        ends("a segment not accessed yet", trap_catch(loads[i], (void*)SLOT), FINE, 0);
        check(gdt[SLOT / 8] >> 40 & 1, "load %u: the descriptor is not accessed", i);
    }
}

// --- the delivery of events (vol. 3A 6.13: EXT; vol. 2A, INT n)

static void undefined(void* unused) {
    (void)unused;
    __asm__ volatile("ud2");
}
static void interrupt(void* unused) {
    (void)unused;
    __asm__ volatile("int $0x90");
}
static void external(void* unused) {
    (void)unused;
    lapic_send(lapic_id(), ICR_ASSERT | 0x91);
    __asm__ volatile("sti; nop; nop; nop; cli");
}

static void gate(uint8_t vector, uint16_t selector, uint8_t access, uint8_t ist) {
    gate_set(vector, trap_entry(vector), selector, access, ist);
}

static const struct {
    const char* name;
    uint16_t selector;
    uint8_t access, ist;
    uint64_t target, stack;
    int vector;
    uint64_t error;  // without EXT; 2: that of the gate
} deliveries[] = {
    {"gate not present", KERNEL_CODE, 0x0e, 0, 0, 0, NP, 2},
    {"task gate", KERNEL_CODE, 0x85, 0, 0, 0, GP, 2},
    {"call gate", KERNEL_CODE, 0x8c, 0, 0, 0, GP, 2},
    {"null selector", 0, 0x8e, 0, 0, 0, GP, 0},
    {"selector beyond the table", 0xc0, 0x8e, 0, 0, 0, GP, 0xc0},
    {"data segment", KERNEL_DATA, 0x8e, 0, 0, 0, GP, KERNEL_DATA},
    {"32-bit code", KERNEL_CODE32, 0x8e, 0, 0, 0, GP, KERNEL_CODE32},
    {"code of an outer ring", USER_CODE64 & ~3, 0x8e, 0, 0, 0, GP, USER_CODE64 & ~3},
    {"code not present", TARGET, 0x8e, 0, CODE64(0x1b), 0, NP, TARGET},
    {"stack not canonical", KERNEL_CODE, 0x8e, 3, 0, NON_CANONICAL + 0x100, SS, 0},
};

static void test_deliveries(void) {
    struct core* core = this_core();
    const uint64_t stack = core->tss.ist[2];
    static const struct {
        const char* name;
        uint8_t vector;
        void (*body)(void*);
        uint64_t ext;
    } events[] = {
        {"int 90h", 0x90, interrupt, 0}, {"#UD", 6, undefined, 1}, {"interrupt", 0x91, external, 1}};
    lapic_enable(lapic_is_x2());
    for (unsigned i = 0; i < sizeof deliveries / sizeof *deliveries; i++) {
        for (unsigned event = 0; event < sizeof events / sizeof *events; event++) {
            const uint8_t vector = events[event].vector;
            uint64_t error = deliveries[i].error == 2 ? vector * 8 + 2u : deliveries[i].error;
            gdt[TARGET / 8] = deliveries[i].target;
            if (deliveries[i].stack) core->tss.ist[2] = deliveries[i].stack;
            gate(vector, deliveries[i].selector, deliveries[i].access, deliveries[i].ist);
            const int got = trap_catch(events[event].body, NULL);
            check(got == deliveries[i].vector && last()->error == (error | events[event].ext),
                  "%s, %s: vector %d error %lx, expected %d %lx", events[event].name, deliveries[i].name, got,
                  last()->error, deliveries[i].vector, error | events[event].ext);
            gate(vector, KERNEL_CODE, 0x8e, 0);
            core->tss.ist[2] = stack;
            if (vector == 0x91) lapic_eoi();
        }
    }
    // From ring 3: the stack of ring 0 is the system's access (vol. 3A 4.6.1), whatever the ring was.
    extern char user_int80[];
    const uint64_t top = core->tss.rsp[0];
    gate(14, KERNEL_CODE, 0x8e, 3);
    gate(12, KERNEL_CODE, 0x8e, 3);
    gate(10, KERNEL_CODE, 0x8e, 3);
    core->tss.rsp[0] = MISSING_PAGE + 0x800;
    ends("int from ring 3, RSP0 missing", run_user(user_int80, 0, 0), 14, 2);
    core->tss.rsp[0] = READ_ONLY_PAGE + 0x800;
    ends("int from ring 3, RSP0 read-only", run_user(user_int80, 0, 0), 14, 3);
    core->tss.rsp[0] = NON_CANONICAL + 0x100;
    ends("int from ring 3, RSP0 not canonical", run_user(user_int80, 0, 0), SS, 0);
    core->tss.rsp[0] = top;
    gate(14, KERNEL_CODE, 0x8e, 0);
    gate(12, KERNEL_CODE, 0x8e, 0);
    gate(10, KERNEL_CODE, 0x8e, 0);
}

void test_descriptors(void) {
    if (!strict) return;
    use_own_gdt(true);
    test_look();
    test_rows();
    test_deliveries();
    use_own_gdt(false);
}
