// SPDX-License-Identifier: GPL-2.0-or-later
// Ring 3 and back: gates, IRET, SYSCALL/SYSRET, SYSENTER/SYSEXIT, segments.
#include "exceptions.h"

#define FLAG_IF 0x200ull
#define FLAG_NT 0x4000ull
#define FLAG_DF 0x400ull
#define FLAG_TF 0x100ull
#define FLAG_AC 0x40000ull
#define FLAG_CF 1ull
#define IOPL3 0x3000ull
enum {
    MSR_STAR = 0xc0000081,
    MSR_LSTAR,
    MSR_CSTAR,
    MSR_SFMASK,
    MSR_EFER = 0xc0000080,
    MSR_FS_BASE = 0xc0000100,
    MSR_GS_BASE,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP,
    MSR_SYSENTER_EIP
};

extern char user_int80[], user_syscall[], user_sysenter[], user_flags[], user_popf[], user_loop[],
    user_read_fs[], user_read_gs[], user_rdtsc[], user_rdpmc[], user_sgdt[], user_call_gate[],
    user_syscall_popf[], user_int81[], user_int83[], user_after_int83[], user_selectors[], user_load_fs[],
    user_after_syscall[], user_compat_syscall[], user_int80_32[], user_after_sysenter[];
extern char syscall_entry[], sysenter_entry[], back_sysretq[], back_sysretl[], back_sysretq_far[],
    back_sysexitq[], back_sysexitq_far[], back_sysexitl[], call_gate_target[];
extern struct { uint64_t rcx, r11, rsp, rflags, cs, ss, rax, spare; } entry_seen;
extern uint64_t entry_back;

static const struct trap* last(void) { return &this_core()->trap; }

static void ends(const char* what, int vector, int wanted, uint64_t error) {
    // QEMU 7.2 counts 16-byte gates in the error code; the manual counts vectors (SDM 3A, 6.13).
    if (!strict && error & 2) error = (error & ~7ull) * 2 | 2;
    check(vector == wanted && last()->error == error, "%s: vector %d error %lx rip %lx, expected %d %lx",
          what, vector, last()->error, last()->rip, wanted, error);
}

void test_user_entry(void) {
    struct core* core = this_core();
    // Flags: what IRET gives is what ring 3 has; POPF in ring 3 cannot touch IF and IOPL.
    int vector = run_user(user_flags, 0, FLAG_CF | FLAG_DF | FLAG_IF);
    ends("pushf in ring 3", vector, 0x80, 0);
    check((last()->rax & ~0x8c4ull) == (FLAG_CF | FLAG_DF | FLAG_IF | 2), "pushf in ring 3: %lx",
          last()->rax);
    vector = run_user(user_popf, IOPL3 | FLAG_NT | FLAG_CF, FLAG_IF);
    ends("popf in ring 3", vector, 0x80, 0);
    check((last()->rax & ~0x8c4ull) == (FLAG_IF | FLAG_NT | FLAG_CF | 2), "popf in ring 3: %lx", last()->rax);
    vector = run_user(user_popf, 2, FLAG_IF | IOPL3);
    check((last()->rax & ~0x8c4ull) == (IOPL3 | 2), "popf with IOPL 3: %lx", last()->rax);
    check(!(last()->handler_flags & (FLAG_IF | FLAG_NT)), "handler's flags %lx", last()->handler_flags);
    // A trap gate leaves IF alone, an interrupt gate clears it.
    gate_set(0x83, trap_entry(0x83), KERNEL_CODE, 0xef, 0);
    vector = run_user(user_int83, 0, FLAG_IF | FLAG_NT);
    ends("trap gate", vector, 0x83, 0);
    check(last()->handler_flags & FLAG_IF && !(last()->handler_flags & FLAG_NT),
          "trap gate: handler's flags %lx", last()->handler_flags);
    check(last()->rip == user_address(user_after_int83), "trap gate: RIP %lx", last()->rip);
    gate_set(0x83, trap_entry(0x83), KERNEL_CODE, 0x8e, 0);
    ends("int 0x83 through a DPL 0 gate", run_user(user_int83, 0, 0), 13, 0x83 * 8 + 2);
    // A gate with an interrupt stack.
    gate_set(0x81, trap_entry(0x81), KERNEL_CODE, 0xee, 3);
    vector = run_user(user_int81, 0, 0);
    check(vector == 0x81 && last()->stack == core->tss.ist[2], "IST 3 from ring 3: vector %d, stack %lx",
          vector, last()->stack);
    check(last()->rsp == USER_STACK_TOP - 64, "IST 3 from ring 3: saved RSP %lx", last()->rsp);
    // RSP0 is aligned down to 16 bytes.
    core->tss.rsp[0] -= 8;
    vector = run_user(user_int80, 0, 0);
    check(vector == 0x80 && last()->stack == core->tss.rsp[0] - 8, "RSP0 not aligned: stack %lx",
          last()->stack);
    core->tss.rsp[0] += 8;
    // CR4.TSD and PCE.
    ends("rdtsc in ring 3", run_user(user_rdtsc, 0, 0), 0x80, 0);
    write_cr4(read_cr4() | 4);
    ends("rdtsc with TSD", run_user(user_rdtsc, 0, 0), 13, 0);
    write_cr4(read_cr4() & ~4ull);
    ends("rdpmc without PCE", run_user(user_rdpmc, 0, 0), 13, 0);
    uint32_t seven[4];
    cpuid(7, 0, seven);
    ends("sgdt in ring 3", run_user(user_sgdt, 0, 0), 0x80, 0);
    if (seven[2] >> 2 & 1) {
        write_cr4(read_cr4() | 0x800);
        ends("sgdt with UMIP", run_user(user_sgdt, 0, 0), 13, 0);
        write_cr4(read_cr4() & ~0x800ull);
    }
    // IRET to ring 3 of what must not be.
    struct user_state state = {user_address(user_int80), USER_CODE64, 2, USER_STACK_TOP, 0, 0, 0, 0, 0};
    ends("iret to ring 3 with a null SS", run_user_state(&state), 13, 0);
    state.ss = KERNEL_DATA;
    ends("iret to ring 3 with the kernel's SS", run_user_state(&state), 13, KERNEL_DATA);
    state.ss = USER_DATA;
    state.cs = USER_DATA;
    ends("iret to a data segment", run_user_state(&state), 13, USER_DATA & ~3);
    state.cs = USER_CODE64 & ~3u;
    ends("iret to ring 0 with a user segment", run_user_state(&state), 13, USER_CODE64 & ~3);
    state.cs = USER_CODE64;
    state.rip = 1ull << 47;
    vector = run_user_state(&state);
    check(vector == 13 || vector == 14, "iret to a non-canonical RIP: vector %d", vector);
    if (strict) check(vector == 13, "iret to a non-canonical RIP: vector %d, expected 13", vector);
    // Long enough for an interrupt: the timer ends a loop of ring 3.
    lapic_write(APIC_TIMER_DIVIDE, 0xb);
    lapic_write(APIC_LVT_TIMER, 0x77);
    lapic_write(APIC_TIMER_INITIAL, 40000000);
    vector = run_user(user_loop, 0, FLAG_IF);
    lapic_eoi();
    lapic_write(APIC_LVT_TIMER, 0x10000);
    check(vector == 0x77 && last()->cs == USER_CODE64 && last()->rax && last()->stack == core->tss.rsp[0],
          "timer interrupt of a ring 3 loop: vector %d cs %lx stack %lx", vector, last()->cs, last()->stack);
    check(!(last()->rflags & 0x10000), "timer interrupt of a ring 3 loop: saved RFLAGS %lx", last()->rflags);
}

static void null_data_segments(void) {
    __asm__ volatile("mov %0, %%ds\n mov %0, %%es\n mov %0, %%fs\n mov %0, %%gs" ::"r"(0));
}

void test_segments(void) {
    struct core* core = this_core();
    static uint64_t ldt[4];
    volatile uint64_t* data = (volatile uint64_t*)(uint64_t)USER_DATA_PAGE;
    data[0] = 0x1111, data[8] = 0x2222, data[16] = 0x3333;
    // IRET to ring 3 clears data selectors of an inner ring, and keeps the bases of null ones.
    __asm__ volatile("mov %w0, %%ds\n mov %w0, %%es\n mov %w0, %%fs\n mov %w1, %%gs" ::"r"(KERNEL_DATA),
                     "r"(USER_DATA));
    int vector = run_user(user_selectors, 0, 0);
    ends("selectors in ring 3", vector, 0x80, 0);
    check(last()->rax == USER_DATA, "DS ES FS GS in ring 3: %lx, expected only GS", last()->rax);
    null_data_segments();
    write_msr(MSR_FS_BASE, (uint64_t)&data[8]);
    write_msr(MSR_GS_BASE, (uint64_t)&data[16]);
    vector = run_user(user_read_fs, 0, 0);
    check(vector == 0x80 && last()->rax == 0x2222,
          "fs base of a null selector in ring 3: vector %d, reads %lx", vector, last()->rax);
    vector = run_user(user_read_gs, 0, 0);
    check(vector == 0x80 && last()->rax == 0x3333,
          "gs base of a null selector in ring 3: vector %d, reads %lx", vector, last()->rax);
    check(read_msr(MSR_FS_BASE) == (uint64_t)&data[8] && read_msr(MSR_GS_BASE) == (uint64_t)&data[16],
          "FS and GS base %lx %lx after ring 3", read_msr(MSR_FS_BASE), read_msr(MSR_GS_BASE));
    // Code and data through an LDT.
    ldt[1] = 0x00cff3000000ffff | (uint64_t)(USER_DATA_PAGE & 0xffffff) << 16 |
             (uint64_t)(USER_DATA_PAGE >> 24) << 56;
    uint64_t* at = &core->gdt[SEL_LDT / 8];
    at[0] = (sizeof ldt - 1) | ((uint64_t)ldt & 0xffffff) << 16 | 0x82ull << 40 |
            ((uint64_t)ldt >> 24 & 0xff) << 56;
    at[1] = (uint64_t)ldt >> 32;
    __asm__ volatile("lldt %w0" ::"r"(SEL_LDT));
    vector = run_user(user_load_fs, 0x0f, 0);
    check(vector == 0x80 && last()->rax == 0x1111, "a segment of the LDT: vector %d error %lx reads %lx",
          vector, last()->error, last()->rax);
    ends("a selector beyond the LDT", run_user(user_load_fs, 0x27, 0), 13, 0x24);
    __asm__ volatile("lldt %w0" ::"r"(0));
    ends("a selector of no LDT", run_user(user_load_fs, 0x0f, 0), 13, 0x0c);
    null_data_segments();
    // A call gate to ring 0 and back (64-bit gate, 16 bytes).
    uint64_t target = (uint64_t)call_gate_target;
    at = &core->gdt[SEL_CALL_GATE / 8];
    at[0] = (target & 0xffff) | (uint64_t)KERNEL_CODE << 16 | 0xecull << 40 | (target >> 16 & 0xffff) << 48;
    at[1] = target >> 32;
    struct __attribute__((packed)) {
        uint32_t offset;
        uint16_t selector;
    } far = {0, SEL_CALL_GATE};
    memcpy((void*)&data[32], &far, sizeof far);
    struct user_state state = {
        user_address(user_call_gate), USER_CODE64, 2, USER_STACK_TOP - 64, USER_DATA, 0, 0, 0,
        (uint64_t)&data[32]};
    vector = run_user_state(&state);
    check(vector == 0x80 && last()->cs == USER_CODE64 && last()->rsp == USER_STACK_TOP - 64,
          "call gate and back: vector %d error %lx cs %lx rsp %lx", vector, last()->error, last()->cs,
          last()->rsp);
    check(last()->rax >> 16 == KERNEL_CODE && (last()->rax & 0xfffc) == 0,
          "call gate: CS %lx SS %lx in ring 0", last()->rax >> 16, last()->rax & 0xffff);
    at[0] &= ~(3ull << 45);
    ends("call gate with DPL 0", run_user_state(&state), 13, SEL_CALL_GATE);
}

static void in_kernel(const char* what, int vector, uint64_t rip, uint64_t flags) {
    check(vector == 0x82, "%s: vector %d error %lx rip %lx, expected the kernel's entry", what, vector,
          last()->error, last()->rip);
    check(entry_seen.cs == KERNEL_CODE && entry_seen.ss == KERNEL_DATA, "%s: CS %lx SS %lx", what,
          entry_seen.cs, entry_seen.ss);
    check(entry_seen.rcx == rip, "%s: RCX %lx, expected %lx", what, entry_seen.rcx, rip);
    check((entry_seen.r11 & ~0x8d4ull) == flags, "%s: R11 %lx, expected %lx", what, entry_seen.r11, flags);
}

static void do_syscall(void* code) { ((void (*)(void))code)(); }

void test_syscall(void) {
    uint64_t efer = read_msr(MSR_EFER), after = user_address(user_after_syscall);
    write_msr(MSR_STAR, (uint64_t)USER_CODE32 << 48 | (uint64_t)KERNEL_CODE << 32);
    write_msr(MSR_LSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_CSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_SFMASK, FLAG_IF | FLAG_DF | FLAG_TF | FLAG_AC | FLAG_NT);
    int vector = run_user(user_syscall, 0x77, FLAG_IF | FLAG_DF | FLAG_CF | FLAG_AC);
    in_kernel("syscall", vector, after, FLAG_IF | FLAG_DF | FLAG_CF | FLAG_AC | 2);
    check(entry_seen.rsp == USER_STACK_TOP - 64 && entry_seen.rax == 0x77, "syscall: RSP %lx RAX %lx",
          entry_seen.rsp, entry_seen.rax);
    // QEMU 7.2 drops CF and DF here.
    if (strict)
        check((entry_seen.rflags & ~0x8d4ull) == (FLAG_CF | 2), "syscall with SFMASK: RFLAGS %lx",
              entry_seen.rflags);
    write_msr(MSR_SFMASK, 0);
    vector = run_user(user_syscall, 0, FLAG_DF);
    if (strict) check(entry_seen.rflags & FLAG_DF, "syscall without SFMASK: RFLAGS %lx", entry_seen.rflags);
    write_msr(MSR_SFMASK, FLAG_IF | FLAG_DF | FLAG_TF | FLAG_AC | FLAG_NT);
    // SYSRET to 64-bit and to 32-bit code.
    entry_back = (uint64_t)back_sysretq;
    vector = run_user(user_syscall, 0, FLAG_IF | FLAG_CF);
    ends("sysretq", vector, 0x80, 0);
    check(last()->cs == USER_CODE64 && last()->ss == USER_DATA && last()->rip == after + 2,
          "sysretq: CS %lx SS %lx RIP %lx", last()->cs, last()->ss, last()->rip);
    check((last()->rflags & ~0x8d4ull) == (FLAG_IF | FLAG_CF | 2), "sysretq: RFLAGS %lx", last()->rflags);
    check(last()->rsp == USER_STACK_TOP - 64, "sysretq: RSP %lx", last()->rsp);
    entry_back = (uint64_t)back_sysretl;
    vector = run_user(user_syscall, 0, 0);
    ends("sysretl", vector, 0x80, 0);
    check(last()->cs == USER_CODE32 && last()->ss == USER_DATA, "sysretl: CS %lx SS %lx", last()->cs,
          last()->ss);
    // Intel faults in ring 0 with the user's RSP still in place: the handler needs a stack of its own.
    gate_set(13, trap_entry(13), KERNEL_CODE, 0x8e, 3);
    gate_set(14, trap_entry(14), KERNEL_CODE, 0x8e, 3);
    entry_back = (uint64_t)back_sysretq_far;
    vector = run_user(user_syscall, 0, 0);
    gate_set(13, trap_entry(13), KERNEL_CODE, 0x8e, 0);
    gate_set(14, trap_entry(14), KERNEL_CODE, 0x8e, 0);
    check(vector == 13 || vector == 14, "sysretq to a non-canonical RIP: vector %d", vector);
    // TF set in ring 3 and masked by SFMASK: the step is taken by SYSCALL's end, not inside the kernel.
    vector = run_user(user_syscall, 0, FLAG_TF);
    check(vector == 0x82 || vector == 1, "syscall with TF: vector %d", vector);
    if (vector == 0x82) check(entry_seen.r11 & FLAG_TF, "syscall with TF: R11 %lx", entry_seen.r11);
    __asm__ volatile("mov %0, %%dr6" ::"r"(0xffff0ff0ull));
    // SYSCALL from 32-bit code: AMD has it, Intel raises #UD.
    struct user_state state = {
        user_address(user_compat_syscall), USER_CODE32, 2, USER_STACK_TOP - 64, USER_DATA, 0, 0, 0, 0};
    vector = run_user_state(&state);
    uint32_t vendor[4];
    cpuid(0, 0, vendor);
    const bool must_not = strict && vendor[1] == 0x756e6547;
    check((vector == 0x82 && !must_not) || vector == 6, "syscall from 32-bit code: vector %d", vector);
    // From ring 0 it works too; without SCE it does not exist.
    vector = trap_catch(do_syscall, user_syscall);
    in_kernel("syscall in ring 0", vector, (uint64_t)user_after_syscall, read_flags() & ~0x8d5ull);
    write_msr(MSR_EFER, efer & ~1ull);
    ends("syscall without SCE", run_user(user_syscall, 0, 0), 6, 0);
    ends("sysret without SCE", trap_catch(do_syscall, back_sysretq), 6, 0);
    write_msr(MSR_EFER, efer);
    state = (struct user_state){user_address(user_int80_32),
                                USER_CODE32,
                                2,
                                0xffffffff00000000 | (USER_STACK_TOP - 64),
                                USER_DATA,
                                0,
                                0,
                                0,
                                0};
    vector = run_user_state(&state);
    ends("int 0x80 from 32-bit code", vector, 0x80, 0);
    check(last()->rax == 0x11223344 && last()->cs == USER_CODE32, "int 0x80 from 32-bit code: RAX %lx CS %lx",
          last()->rax, last()->cs);
}

void test_sysenter(void) {
    uint32_t vendor[4];
    cpuid(0, 0, vendor);
    bool intel = vendor[1] == 0x756e6547;
    print("vendor %s\n", intel ? "GenuineIntel" : "other");
    write_msr(MSR_SYSENTER_CS, 0);
    if (intel) ends("sysenter with a null CS", run_user(user_sysenter, 0, 0), 13, 0);
    write_msr(MSR_SYSENTER_CS, KERNEL_CODE);
    write_msr(MSR_SYSENTER_ESP, CORE_BLOCK_0 + 0x6000);
    write_msr(MSR_SYSENTER_EIP, (uint64_t)sysenter_entry);
    check(read_msr(MSR_SYSENTER_EIP) == (uint64_t)sysenter_entry, "SYSENTER_EIP reads %lx",
          read_msr(MSR_SYSENTER_EIP));
    if (!intel) {  // AMD: #UD in 64-bit and compatibility mode
        ends("sysenter", run_user(user_sysenter, 0, 0), 6, 0);
        return;
    }
    if (strict) ends("sysexitq to a non-canonical RIP", trap_catch(do_syscall, back_sysexitq_far), 13, 0);
    int vector = run_user(user_sysenter, 0x55, FLAG_IF | FLAG_CF);
    ends("sysenter", vector, 0x82, 0);
    check(entry_seen.cs == KERNEL_CODE && entry_seen.ss == KERNEL_DATA &&
              entry_seen.rsp == CORE_BLOCK_0 + 0x6000,
          "sysenter: CS %lx SS %lx RSP %lx", entry_seen.cs, entry_seen.ss, entry_seen.rsp);
    check(!(entry_seen.rflags & FLAG_IF) && entry_seen.rax == 0x55, "sysenter: RFLAGS %lx RAX %lx",
          entry_seen.rflags, entry_seen.rax);
    struct user_state state = {user_address(user_sysenter),
                               USER_CODE64,
                               2,
                               USER_STACK_TOP - 64,
                               USER_DATA,
                               0,
                               USER_STACK_TOP - 128,
                               user_address(user_after_sysenter),
                               0};
    entry_back = (uint64_t)back_sysexitq;
    vector = run_user_state(&state);
    ends("sysexit to 64-bit code", vector, 0x80, 0);
    check(last()->cs == USER_CODE64 && last()->ss == (USER_CODE64 | 3) + 8 &&
              last()->rsp == USER_STACK_TOP - 128,
          "sysexit to 64-bit code: CS %lx SS %lx RSP %lx", last()->cs, last()->ss, last()->rsp);
    entry_back = (uint64_t)back_sysexitl;
    vector = run_user_state(&state);
    ends("sysexit to 32-bit code", vector, 0x80, 0);
    check(last()->cs == USER_CODE32 && last()->ss == USER_DATA, "sysexit to 32-bit code: CS %lx SS %lx",
          last()->cs, last()->ss);
}
