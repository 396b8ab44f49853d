// SPDX-License-Identifier: GPL-2.0-or-later
// Every vector with its error code and saved state, ring 3 and back, the rules of privilege.
//
// Options: strict checks also what QEMU 7.2 does not do; verbose prints each case before it runs.
#include "exceptions.h"

#define FRAMES 0x600000u
#define FLAG_RF (1ull << 16)
#define FLAG_IF (1ull << 9)
#define IOPL3 (3ull << 12)

bool strict;
static struct {
    struct tss64 tss;
    uint8_t map[8193];  // the byte behind the last must be all ones: SDM 1, 19.5.2
} __attribute__((packed)) io_tss;

int run_user_state(struct user_state* state) { return trap_catch(enter_user, state); }

int run_user(const void* code, uint64_t rax, uint64_t flags) {
    struct user_state state = {
        user_address(code), USER_CODE64, 2 | flags, USER_STACK_TOP - 64, USER_DATA, rax, 0, 0, 0};
    return run_user_state(&state);
}

static void call(void* code) { ((void (*)(void))code)(); }

static void expect(const struct exception_case* it, const char* where, int vector, bool user) {
    const struct trap* trap = &this_core()->trap;
    uint64_t error = it->error | (user && it->vector == 14 ? 4 : 0);
    uint64_t rip = it->kind & AT_CR2 ? it->cr2 : user ? user_address((void*)it->rip) : it->rip;
    // Half an instruction at a page's end is no address of the table.
    if (it->cr2 == CODE_PAGE + 0x1000) rip = CODE_PAGE + 0xffe;
    if (!check(vector == it->vector, "%s (%s): vector %d, expected %ld (error %lx rip %lx)", it->name, where,
               vector, it->vector, trap->error, trap->rip))
        return;
    // QEMU 7.2 counts 16-byte gates in the error code; the manual counts vectors (SDM 3A, 6.13).
    if (!strict && error & 2 && trap->vector == 13) error = (error & ~7ull) * 2 | 2;
    if (it->kind & MODIFIES && trap->error == (error & ~2ull)) error &= ~2ull;
    check(trap->error == error, "%s (%s): error code %lx, expected %lx", it->name, where, trap->error, error);
    check(trap->rip == rip, "%s (%s): RIP %lx, expected %lx", it->name, where, trap->rip, rip);
    if (it->cr2 != NO_CR2)
        check(trap->cr2 == it->cr2, "%s (%s): CR2 %lx, expected %lx", it->name, where, trap->cr2, it->cr2);
    if (it->kind & KEEPS_RSP && user)
        check(trap->rsp == USER_STACK_TOP - 64 - (it->kind & PUSHED ? 8 : 0), "%s (%s): RSP %lx", it->name,
              where, trap->rsp);
    if (strict)
        check(!(trap->rflags & FLAG_RF) == !(it->kind & IS_FAULT), "%s (%s): saved RFLAGS %lx", it->name,
              where, trap->rflags);
    check(!(trap->handler_flags & 0x14700), "%s (%s): RFLAGS %lx in the handler", it->name, where,
          trap->handler_flags);
    if (user) {
        uint64_t top = trap->vector == 8 ? this_core()->tss.ist[0] : CORE_BLOCKS + 0x6000;
        uint64_t cs = it->kind & IN_COMPAT && trap->rax != 0x123456789abcdef0 ? USER_CODE32 : USER_CODE64;
        check(trap->cs == cs && trap->ss == USER_DATA, "%s (%s): CS %lx SS %lx saved", it->name, where,
              trap->cs, trap->ss);
        check(trap->stack == top, "%s (%s): stack %lx, expected %lx", it->name, where, trap->stack, top);
    } else {
        check(trap->cs == KERNEL_CODE && trap->stack % 16 == 0, "%s (%s): CS %lx, stack %lx", it->name, where,
              trap->cs, trap->stack);
    }
}

static void use_io_map(bool on) {
    struct core* core = this_core();
    core->gdt[TSS_SELECTOR / 8] &= ~(2ull << 40);  // not busy, for LTR
    core->gdt[SEL_IO_TSS / 8] &= ~(2ull << 40);
    __asm__ volatile("ltr %w0" ::"r"(on ? SEL_IO_TSS : TSS_SELECTOR) : "memory");
}

static void test_cases(const struct exception_case* it, const struct exception_case* end) {
    uint32_t vendor[4];
    cpuid(0, 0, vendor);
    bool intel = vendor[1] == 0x756e6547;
    for (; it < end; it++) {
        if (it->kind & STRICT && !strict) continue;
        if (it->kind & INTEL && !intel) continue;
        if (option("verbose")) print("case %s\n", it->name);
        if (it->kind & IN_RING0) expect(it, "ring 0", trap_catch(call, (void*)it->code), false);
        if (it->kind & IO_MAP) use_io_map(true);
        if (it->kind & IN_RING3)
            expect(it, "ring 3", run_user((void*)it->code, 0, it->kind & IO_FREE ? IOPL3 : 0), true);
        if (it->kind & IO_MAP) use_io_map(false);
        if (it->kind & IN_COMPAT) {
            struct user_state state = {
                user_address((void*)it->code), USER_CODE32, 2, USER_STACK_TOP - 64, USER_DATA, 0, 0, 0, 0};
            expect(it, "32-bit", run_user_state(&state), true);
        }
    }
}

void test_table(void) {
    test_cases(exception_cases, exception_cases_end);
    test_cases(encoding_cases, encoding_cases_end);
}

static void system_descriptor(unsigned selector, uint64_t base, uint64_t limit, uint64_t access) {
    uint64_t* at = &this_core()->gdt[selector / 8];
    at[0] = (limit & 0xffff) | (base & 0xffffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56;
    at[1] = base >> 32;
}

static void lay_out(void) {
    page_clear_large(USER_WINDOW);
    for (uint64_t at = (uint64_t)user_begin; at < (uint64_t)user_end; at += 4096)
        page_map(USER_CODE + (at - (uint64_t)user_begin), at, PAGE_PRESENT | PAGE_USER);
    page_map(USER_DATA_PAGE, FRAMES, PAGE_PRESENT | PAGE_WRITE | PAGE_USER | PAGE_NX);
    page_map(USER_STACK_TOP - 0x1000, FRAMES + 0x1000, PAGE_PRESENT | PAGE_WRITE | PAGE_USER | PAGE_NX);
    page_map(READ_ONLY_PAGE, FRAMES + 0x2000, PAGE_PRESENT | PAGE_USER | PAGE_NX);
    page_map(KERNEL_PAGE, FRAMES + 0x3000, PAGE_PRESENT | PAGE_WRITE | PAGE_NX);
    uint32_t sizes[4];
    cpuid(0x80000008, 0, sizes);
    // The highest address bit beyond MAXPHYADDR is reserved (bit 51 unless 52 bits are implemented).
    uint64_t reserved = (sizes[0] & 0xff) < 52 ? 1ull << 51 : 0;
    check(reserved, "%u physical address bits: no reserved bit to test", sizes[0] & 0xff);
    page_map(RESERVED_PAGE, reserved | (FRAMES + 0x4000), PAGE_PRESENT | PAGE_WRITE | PAGE_USER);
    page_map(DATA_BEFORE_MISSING, FRAMES + 0x5000, PAGE_PRESENT | PAGE_WRITE | PAGE_USER | PAGE_NX);
    page_map(CODE_PAGE, FRAMES + 0x6000, PAGE_PRESENT | PAGE_USER);
    // inc %ecx, and half of a mov: the page's end
    memcpy((void*)(uint64_t)(FRAMES + 0x6ffc), "\xff\xc1\xb8\x00", 4);

    struct core* core = this_core();
    core->gdt[SEL_NOT_PRESENT / 8] = 0x00cf73000000ffff;
    io_tss.tss = core->tss;
    io_tss.tss.io_map = sizeof io_tss.tss;
    memset(io_tss.map, 0xff, sizeof io_tss.map);
    io_tss.map[0x80 / 8] &= 0xf0;
    io_tss.map[0xed / 8] &= (uint8_t) ~(1u << (0xed & 7));
    system_descriptor(SEL_IO_TSS, (uint64_t)&io_tss, sizeof io_tss.tss + 0x2000, 0x89);
}

void guest_main(void) {
    strict = option("strict");
    lay_out();
    print("exceptions strict=%u\n", strict);
    test_table();
    print("table done failures=%u\n", failures);
    test_debug();
    test_delivery();
    test_control();
    print("kernel done failures=%u\n", failures);
    test_paging();
    print("paging done failures=%u\n", failures);
    test_descriptors();
    print("descriptors done failures=%u\n", failures);
    if (strict) test_debug_registers();
    if (strict) test_model_specific_registers();
    print("registers done failures=%u\n", failures);
    if (strict) test_flags();  // QEMU 7.2 reads the flags too early as well
    print("flags done failures=%u\n", failures);
    test_float();
    print("float done failures=%u\n", failures);
    test_user_entry();
    test_segments();
    print("user done failures=%u\n", failures);
    test_syscall();
    test_sysenter();
    print("syscall done failures=%u\n", failures);
    finish();
}
