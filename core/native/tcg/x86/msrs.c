// SPDX-License-Identifier: GPL-2.0-or-later
// Model-specific registers: which exist, and what each refuses (SDM vol. 4, chapter 2).
//
// One table has them all. What is not in it is #GP(0), for RDMSR and WRMSR. It has what CPUID announces, and
// what every processor of family 6 has whether CPUID says so or not, since systems use that without asking.
// Values are kept by the vCPU (local APIC, time-stamp counter, the processor's description) or by the engine.
#include "tcg/x86/engine.h"
#include "segments.h"

enum access { READ = 1, WRITE = 2, BOTH = READ | WRITE };

// What a value must be, besides having no reserved bit.
enum rule { ANY, CANONICAL, MEMORY_TYPES, MEMORY_TYPE, EFER, BANK };

// What a register is that has no effect here, and that neither the vCPU nor the engine keeps.
enum keeper { KEPT, READS_ZERO };

struct msr {
    uint32_t first, last;
    uint8_t access, rule, keeper;
    uint64_t reserved;
};

#define ALL_BUT(bits) (~(uint64_t)(bits))
#define ABOVE(bit) (~(uint64_t)0 << (bit))
#define MAXPHYADDR 40  // CPUID leaf 80000008H

static const struct msr msrs[] = {
    {0x00, 0x01, READ, ANY, READS_ZERO, 0},             // IA32_P5_MC_ADDR, _TYPE
    {0x10, 0x10, BOTH, ANY, KEPT, 0},                   // IA32_TIME_STAMP_COUNTER
    {0x17, 0x17, READ, ANY, READS_ZERO, 0},             // IA32_PLATFORM_ID
    {0x1b, 0x1b, BOTH, ANY, KEPT, 0},                   // IA32_APIC_BASE: the local APIC looks
    {0x2a, 0x2a, BOTH, ANY, READS_ZERO, 0},             // MSR_EBL_CR_POWERON, of this model (table 2-4)
    {0x3b, 0x3b, BOTH, ANY, KEPT, 0},                   // IA32_TSC_ADJUST
    {0x79, 0x79, WRITE, ANY, READS_ZERO, 0},            // IA32_BIOS_UPDT_TRIG
    {0x8b, 0x8b, BOTH, ANY, READS_ZERO, 0},             // IA32_BIOS_SIGN_ID: no update was loaded
    {0xcd, 0xcd, READ, ANY, READS_ZERO, 0},             // MSR_FSB_FREQ, likewise
    {0xfe, 0xfe, READ, ANY, KEPT, 0},                   // IA32_MTRRCAP
    {0x10a, 0x10a, READ, ANY, KEPT, 0},                 // IA32_ARCH_CAPABILITIES
    {0x174, 0x174, BOTH, ANY, KEPT, 0},                 // IA32_SYSENTER_CS: bits 31:16 are ignored
    {0x175, 0x176, BOTH, CANONICAL, KEPT, 0},           // IA32_SYSENTER_ESP, _EIP
    {0x179, 0x179, READ, ANY, KEPT, 0},                 // IA32_MCG_CAP
    {0x17a, 0x17a, BOTH, ANY, KEPT, ALL_BUT(7)},        // IA32_MCG_STATUS: RIPV EIPV MCIP
    {0x17b, 0x17b, BOTH, ANY, KEPT, 0},                 // IA32_MCG_CTL
    {0x198, 0x198, READ, ANY, KEPT, 0},                 // IA32_PERF_STATUS
    {0x199, 0x199, BOTH, ANY, READS_ZERO, 0},           // IA32_PERF_CTL
    {0x1a0, 0x1a0, BOTH, ANY, KEPT, ALL_BUT(1)},        // IA32_MISC_ENABLE: fast strings
    {0x1d9, 0x1d9, BOTH, ANY, READS_ZERO, ALL_BUT(3)},  // IA32_DEBUGCTL: LBR and BTF without effect
    {0x200, 0x20f, BOTH, MEMORY_TYPE, KEPT, ABOVE(MAXPHYADDR)},  // IA32_MTRR_PHYSBASEn, _PHYSMASKn
    {0x250, 0x250, BOTH, MEMORY_TYPES, KEPT, 0},                 // IA32_MTRR_FIX64K_00000
    {0x258, 0x259, BOTH, MEMORY_TYPES, KEPT, 0},                 // IA32_MTRR_FIX16K_80000, _A0000
    {0x268, 0x26f, BOTH, MEMORY_TYPES, KEPT, 0},                 // IA32_MTRR_FIX4K_C0000 to _F8000
    {0x277, 0x277, BOTH, MEMORY_TYPES, KEPT, 0},                 // IA32_PAT
    {0x2ff, 0x2ff, BOTH, MEMORY_TYPE, KEPT, ALL_BUT(0xcff)},     // IA32_MTRR_DEF_TYPE: E, FE, the type
    {0x400, 0x47f, BOTH, BANK, KEPT, 0},                         // IA32_MCi_CTL, _STATUS, _ADDR, _MISC
    {0x6e0, 0x6e0, BOTH, ANY, KEPT, 0},                          // IA32_TSC_DEADLINE
    {0x800, 0x8ff, BOTH, ANY, KEPT, 0},                          // x2APIC: the local APIC looks
    {0xc0000080, 0xc0000080, BOTH, EFER, KEPT, ALL_BUT(0xd01)},  // IA32_EFER: SCE LME LMA NXE
    {0xc0000081, 0xc0000081, BOTH, ANY, KEPT, 0},                // IA32_STAR
    {0xc0000082, 0xc0000083, BOTH, CANONICAL, KEPT, 0},          // IA32_LSTAR, IA32_CSTAR
    {0xc0000084, 0xc0000084, BOTH, ANY, KEPT, ABOVE(32)},        // IA32_FMASK
    {0xc0000100, 0xc0000102, BOTH, CANONICAL, KEPT, 0},          // IA32_FS_BASE, _GS_BASE, _KERNEL_GS_BASE
    {0xc0000103, 0xc0000103, BOTH, ANY, KEPT, ABOVE(32)},        // IA32_TSC_AUX
};

static const struct msr* find(uint32_t index) {
    for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++) {
        if (index <= msrs[i].last) return index >= msrs[i].first ? &msrs[i] : NULL;
    }
    return NULL;
}

// SDM vol. 3A table 12-8 and, for the PAT, table 12-10: UC WC WT WP WB, and UC-.
static bool is_memory_type(uint64_t type, bool in_pat) {
    return type == 0 || type == 1 || type == 4 || type == 5 || type == 6 || (in_pat && type == 7);
}

static bool are_memory_types(uint64_t value, bool in_pat) {
    for (unsigned byte = 0; byte < 8; byte++) {
        if (!is_memory_type(value >> 8 * byte & 0xff, in_pat)) return false;
    }
    return true;
}

// A variable range is a pair of registers: the base with its type, the mask with its V bit (SDM vol. 3A
// 12.11.2.3).
static bool is_range(uint32_t index, uint64_t value) {
    if (index == MSR_MTRRdefType) return is_memory_type(value & 0xff, false);
    if (index & 1) return (value & 0x7ff) == 0;
    return (value & 0xf00) == 0 && is_memory_type(value & 0xff, false);
}

static unsigned bank_of(uint32_t index) { return (index - MSR_MC0_CTL) / 4; }

static bool allows(const CPUX86State* env, const struct msr* msr, uint32_t index, uint64_t value) {
    if (value & msr->reserved) return false;
    switch (msr->rule) {
        case CANONICAL:
            return cm_is_canonical(value);
        case MEMORY_TYPES:
            return are_memory_types(value, index == MSR_PAT);
        case MEMORY_TYPE:
            return is_range(index, value);
        case EFER:
            // LME does not change under paging (SDM vol. 3A 4.1.2). A write of LMA is ignored.
            return !((value ^ env->efer) & MSR_EFER_LME) || !(env->cr[0] & CR0_PG_MASK);
        case BANK:
            // What a bank has found can be cleared only (SDM vol. 3B 16.3.2).
            return (index & 3) == 0 || value == 0;
        default:
            return true;
    }
}

static bool exists(const CPUX86State* env, const struct msr* msr, uint32_t index, enum access access) {
    if (!msr || !(msr->access & access)) return false;
    return msr->rule != BANK || bank_of(index) < (env->mcg_cap & MCG_CAP_BANKS_MASK);
}

static _Noreturn void refuse(CPUX86State* env, uintptr_t ra) {
    const struct cm_transfer t = {env, ra, 0};
    cm_fault(&t, EXCP0D_GPF, 0);
}

void CM_REAL(helper_rdmsr)(CPUX86State*);
void CM_REAL(helper_wrmsr)(CPUX86State*);

void CM_WRAP(helper_rdmsr)(CPUX86State* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const uint32_t index = (uint32_t)env->regs[R_ECX];
    const struct msr* msr = find(index);
    uint64_t value = 0;
    CM_HIT(helper_rdmsr);
    if (!exists(env, msr, index, READ)) refuse(env, GETPC());
    if (msr->keeper == KEPT) {
        const int answer = engine->core_ops->read_msr(engine->core, index, &value);
        if (answer < 0) refuse(env, GETPC());
        if (answer == 0) {
            CM_REAL(helper_rdmsr)(env);
            return;
        }
    }
    env->regs[R_EAX] = (uint32_t)value;
    env->regs[R_EDX] = (uint32_t)(value >> 32);
}

void CM_WRAP(helper_wrmsr)(CPUX86State* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const uint32_t index = (uint32_t)env->regs[R_ECX];
    const uint64_t value = (uint32_t)env->regs[R_EAX] | (uint64_t)(uint32_t)env->regs[R_EDX] << 32;
    const struct msr* msr = find(index);
    CM_HIT(helper_wrmsr);
    if (!exists(env, msr, index, WRITE) || !allows(env, msr, index, value)) refuse(env, GETPC());
    if (msr->keeper == READS_ZERO) return;
    const int answer = engine->core_ops->write_msr(engine->core, index, value);
    if (answer < 0) refuse(env, GETPC());
    if (answer == 0) CM_REAL(helper_wrmsr)(env);
}
