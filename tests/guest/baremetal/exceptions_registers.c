// SPDX-License-Identifier: GPL-2.0-or-later
// Debug registers, and model-specific registers: what they keep and what they refuse.
#include "exceptions.h"

#define DR6_BD (1ull << 13)
#define DR7_GD (1ull << 13)
#define CR4_DE (1ull << 3)
#define NON_CANONICAL (1ull << 47)

#define MOV_TO_DR(number)                                                 \
    static void to_dr##number(void* value) {                              \
        __asm__ volatile("mov %0, %%db" #number ::"r"(value) : "memory"); \
    }
#define MOV_FROM_DR(number)                                        \
    static uint64_t dr##number(void) {                             \
        uint64_t value;                                            \
        __asm__ volatile("mov %%db" #number ", %0" : "=r"(value)); \
        return value;                                              \
    }
MOV_TO_DR(0)
MOV_TO_DR(4)
MOV_TO_DR(5)
MOV_TO_DR(6)
MOV_TO_DR(7)
MOV_FROM_DR(0)
MOV_FROM_DR(4)
MOV_FROM_DR(5)
MOV_FROM_DR(6)
MOV_FROM_DR(7)
static void read_dr0(void* unused) { (void)unused, dr0(); }
static void read_dr4(void* unused) { (void)unused, dr4(); }

static void ends(const char* what, int vector, int wanted) {
    check(vector == wanted, "%s: vector %d error %lx, expected %d", what, vector, this_core()->trap.error,
          wanted);
    if (wanted == 13)
        check(this_core()->trap.error == 0, "%s: error code %lx", what, this_core()->trap.error);
}

void test_debug_registers(void) {
    const uint64_t cr4 = read_cr4();
    to_dr7((void*)0x400);
    // SDM vol. 3B figure 18-1: which bits there are.
    to_dr6((void*)0xffffffff);
    check(dr6() == 0xffffefff, "DR6 of all ones: %lx", dr6());
    to_dr6(NULL);
    check(dr6() == 0xffff0ff0, "DR6 of zeros: %lx", dr6());
    to_dr7((void*)0xdc00);
    check(dr7() == 0x400, "DR7 of bits that are always 0: %lx", dr7());
    // Vol. 2B, MOV—Move to/from Debug Registers: bits 63:32 are reserved.
    ends("mov to dr6 above 32 bits", trap_catch(to_dr6, (void*)(1ull << 32)), 13);
    ends("mov to dr7 above 32 bits", trap_catch(to_dr7, (void*)(1ull << 63 | 0x400)), 13);
    ends("mov to dr0 of 64 bits", trap_catch(to_dr0, (void*)(1ull << 63 | 5)), -1);
    check(dr0() == (1ull << 63 | 5), "DR0 %lx", dr0());
    // Vol. 3B 18.2.2: DR4 and DR5 without and with CR4.DE.
    write_cr4(cr4 & ~CR4_DE);
    ends("mov to dr4", trap_catch(to_dr4, (void*)3), -1);
    check(dr6() == 0xffff0ff3 && dr4() == dr6(), "DR4 %lx is not DR6 %lx", dr4(), dr6());
    ends("mov to dr5", trap_catch(to_dr5, (void*)0x403), -1);
    check(dr7() == 0x403 && dr5() == dr7(), "DR5 %lx is not DR7 %lx", dr5(), dr7());
    write_cr4(cr4 | CR4_DE);
    ends("mov to dr4 with DE", trap_catch(to_dr4, NULL), 6);
    ends("mov from dr4 with DE", trap_catch(read_dr4, NULL), 6);
    write_cr4(cr4);
    // Vol. 3B 18.2.4 and 18.3.1.3: an access that GD guards is a fault, and its handler may access them.
    static const struct {
        const char* name;
        void (*body)(void*);
        uint64_t value;
    } guarded[] = {
        {"mov to dr0 with GD", to_dr0, 1},
        {"mov from dr0 with GD", read_dr0, 0},
        {"mov to dr7 with GD", to_dr7, 0x400},
    };
    for (unsigned i = 0; i < sizeof guarded / sizeof *guarded; i++) {
        to_dr0((void*)0x55);
        to_dr6(NULL);
        to_dr7((void*)(0x400 | DR7_GD));
        const int vector = trap_catch(guarded[i].body, (void*)guarded[i].value);
        ends(guarded[i].name, vector, 1);
        check(dr6() == (0xffff0ff0 | DR6_BD), "%s: DR6 %lx", guarded[i].name, dr6());
        check(dr7() == 0x400 && dr0() == 0x55, "%s: DR7 %lx DR0 %lx", guarded[i].name, dr7(), dr0());
    }
    to_dr6(NULL);
    to_dr0(NULL);
}

// --- model-specific registers

struct write {
    uint32_t msr;
    uint64_t value;
};
static void do_write(void* at) { write_msr(((struct write*)at)->msr, ((struct write*)at)->value); }
static void do_read(void* msr) { read_msr((uint32_t)(uint64_t)msr); }

static const struct {
    const char* name;
    uint32_t msr;
    uint64_t value;
    bool refused;
} writes[] = {
    {"IA32_SYSENTER_ESP not canonical", 0x175, NON_CANONICAL, true},
    {"IA32_SYSENTER_EIP not canonical", 0x176, NON_CANONICAL, true},
    {"IA32_MTRRCAP", 0xfe, 0x508, true},
    {"IA32_ARCH_CAPABILITIES", 0x10a, 0, true},
    {"IA32_MCG_CAP", 0x179, 0, true},
    {"IA32_MCG_STATUS reserved", 0x17a, 1ull << 20, true},
    {"IA32_MCG_STATUS", 0x17a, 0, false},
    {"IA32_MISC_ENABLE reserved", 0x1a0, 1ull << 40 | 1, true},
    {"IA32_DEBUGCTL reserved", 0x1d9, 1ull << 30, true},
    {"IA32_MTRR_PHYSBASE0 of type 2", 0x200, 2, true},
    {"IA32_MTRR_PHYSBASE0 bit 8", 0x200, 0x106, true},
    {"IA32_MTRR_PHYSBASE0 beyond MAXPHYADDR", 0x200, 1ull << 45 | 6, true},
    {"IA32_MTRR_PHYSBASE0", 0x200, 0x40000006, false},
    {"IA32_MTRR_PHYSMASK0 bit 10", 0x201, 0xffc0000400, true},
    {"IA32_MTRR_PHYSMASK0", 0x201, 0xffc0000000, false},
    {"IA32_MTRR_FIX64K_00000 of type 7", 0x250, 0x0607060606060606, true},
    {"IA32_MTRR_FIX64K_00000", 0x250, 0x0606060606060606, false},
    {"IA32_PAT of type 3", 0x277, 0x0007040600070403, true},
    {"IA32_PAT of type 8", 0x277, 0x0807040600070406, true},
    {"IA32_PAT", 0x277, 0x0007040600070406, false},
    {"IA32_MTRR_DEF_TYPE of type 3", 0x2ff, 0xc03, true},
    {"IA32_MTRR_DEF_TYPE bit 12", 0x2ff, 0x1c06, true},
    {"IA32_MTRR_DEF_TYPE", 0x2ff, 0xc06, false},
    {"IA32_MC0_STATUS other than 0", 0x401, 1, true},
    {"IA32_MC0_STATUS", 0x401, 0, false},
    {"IA32_EFER reserved", 0xc0000080, 0x501 | 1ull << 9, true},
    {"IA32_EFER.SVME", 0xc0000080, 0x501 | 1ull << 12, true},
    {"IA32_LSTAR not canonical", 0xc0000082, NON_CANONICAL, true},
    {"IA32_CSTAR not canonical", 0xc0000083, NON_CANONICAL, true},
    {"IA32_FMASK above 32 bits", 0xc0000084, 1ull << 32, true},
    {"IA32_FS_BASE not canonical", 0xc0000100, NON_CANONICAL, true},
    {"IA32_GS_BASE not canonical", 0xc0000101, NON_CANONICAL, true},
    {"IA32_KERNEL_GS_BASE not canonical", 0xc0000102, NON_CANONICAL, true},
    {"IA32_TSC_AUX above 32 bits", 0xc0000103, 1ull << 32, true},
    {"IA32_APIC_BASE reserved", 0x1b, 0xfee00900 | 1, true},
    {"IA32_APIC_BASE beyond MAXPHYADDR", 0x1b, 1ull << 45 | 0xfee00900, true},
    {"IA32_APIC_BASE, x2APIC without enable", 0x1b, 0xfee00500, true},
    {"IA32_BIOS_SIGN_ID", 0x8b, 0, false},
};

// Numbers that no processor of this description has: features that CPUID does not announce, and none at all.
static const uint32_t unknown[] = {
    0x02,       0x3a,       0x48,       0x49,       0xc1,       0xe7,       0x122,
    0x186,      0x309,      0x38f,      0x480,      0x570,      0x600,      0x770,
    0xda0,      0x1234,     0x40000000, 0x4b564d00, 0xbfffffff, 0xc0000085, 0xc0000104,
    0xc0010015, 0xc0010114, 0xc0010117, 0xffffffff,
};

void test_model_specific_registers(void) {
    for (unsigned i = 0; i < sizeof writes / sizeof *writes; i++) {
        const int read = trap_catch(do_read, (void*)(uint64_t)writes[i].msr);
        check(read == -1, "rdmsr of %s: vector %d", writes[i].name, read);
        const uint64_t before = read_msr(writes[i].msr);
        struct write write = {writes[i].msr, writes[i].value};
        ends(writes[i].name, trap_catch(do_write, &write), writes[i].refused ? 13 : -1);
        const uint64_t after = read_msr(writes[i].msr);
        if (writes[i].refused) check(after == before, "%s: refused, and now %lx", writes[i].name, after);
        if (!writes[i].refused) check(after == writes[i].value, "%s: reads %lx", writes[i].name, after);
        if (after != before) write_msr(writes[i].msr, before);
    }
    for (unsigned i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        struct write write = {unknown[i], 0};
        int vector = trap_catch(do_read, (void*)(uint64_t)unknown[i]);
        check(vector == 13 && this_core()->trap.error == 0, "rdmsr %x: vector %d", unknown[i], vector);
        vector = trap_catch(do_write, &write);
        check(vector == 13 && this_core()->trap.error == 0, "wrmsr %x: vector %d", unknown[i], vector);
    }
    // SDM vol. 3B 16.3.2: there are as many banks as IA32_MCG_CAP says.
    const uint32_t banks = read_msr(0x179) & 0xff;
    for (uint32_t bank = 0; bank <= banks; bank++) {
        for (uint32_t reg = 0; reg < 4; reg++) {
            const int vector = trap_catch(do_read, (void*)(uint64_t)(0x400 + 4 * bank + reg));
            check(vector == (bank < banks ? -1 : 13), "rdmsr of register %u of bank %u of %u: vector %d", reg,
                  bank, banks, vector);
        }
    }
    // SDM vol. 3A 11.4.3: without its local APIC a processor announces none.
    uint32_t one[4];
    const uint64_t apic_base = read_msr(0x1b);
    cpuid(1, 0, one);
    check(one[3] >> 9 & 1, "CPUID.1:EDX %x without APIC", one[3]);
    write_msr(0x1b, apic_base & ~0xc00ull);
    cpuid(1, 0, one);
    check(!(one[3] >> 9 & 1), "CPUID.1:EDX %x with an APIC that is disabled", one[3]);
    write_msr(0x1b, (apic_base & ~0xc00ull) | 0x800);
    if (apic_base & 0x400) write_msr(0x1b, apic_base);
    lapic_enable(lapic_is_x2());
}
