// SPDX-License-Identifier: GPL-2.0-or-later
// System instructions: control and model-specific registers, CPUID, the time-stamp counter, fast system
// calls, PAUSE. What belongs to the platform (local APIC, clock) is asked of the vCPU; the rest is the
// engine's.
#include "../internals.h"
#include "tcg/x86/engine.h"
#include "platform.h"
#include "segments.h"

#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CPUID_1_ECX_OSXSAVE (1u << 27)

static void raise_gp(CPUX86State* env, uintptr_t ra) { raise_exception_err_ra(env, EXCP0D_GPF, 0, ra); }

// ---- CPUID

void CM_REAL(cpu_x86_cpuid)(CPUX86State*, uint32_t, uint32_t, uint32_t*, uint32_t*, uint32_t*, uint32_t*);

void CM_WRAP(cpu_x86_cpuid)(CPUX86State* env, uint32_t leaf, uint32_t subleaf, uint32_t* eax, uint32_t* ebx,
                            uint32_t* ecx, uint32_t* edx) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(cpu_x86_cpuid);
    uint32_t out[4];
    if (!engine || !engine->core_ops->cpuid(engine->core, leaf, subleaf, out)) {
        CM_REAL(cpu_x86_cpuid)(env, leaf, subleaf, eax, ebx, ecx, edx);
        return;
    }
    if (leaf == 1) {
        uint64_t apic_base;
        out[2] &= ~CPUID_1_ECX_OSXSAVE;
        if (env->cr[4] & CR4_OSXSAVE_MASK) out[2] |= CPUID_1_ECX_OSXSAVE;
        // A local APIC that is disabled is not there (SDM vol. 3A 11.4.3).
        if (engine->core_ops->read_msr(engine->core, MSR_IA32_APICBASE, &apic_base) > 0 &&
            !(apic_base & MSR_IA32_APICBASE_ENABLE)) {
            out[3] &= ~CPUID_APIC;
        }
    }
    // On an Intel processor SYSCALL is an instruction of 64-bit code alone, and announced to it alone (SDM
    // vol. 2A, CPUID).
    if (leaf == 0x80000001 && IS_INTEL_CPU(env) && !(env->hflags & HF_CS64_MASK))
        out[3] &= ~CPUID_EXT2_SYSCALL;
    *eax = out[0], *ebx = out[1], *ecx = out[2], *edx = out[3];
}

void cm_platform_attach(struct cm_engine* engine) {
    CPUX86State* env = engine->env;
    uint32_t out[4];
    if (engine->core_ops->cpuid(engine->core, 0, 0, out)) {
        env->cpuid_vendor1 = out[1], env->cpuid_vendor2 = out[3], env->cpuid_vendor3 = out[2];
    }
    if (engine->core_ops->cpuid(engine->core, 1, 0, out)) {
        env->cpuid_version = out[0];
        env->features[FEAT_1_ECX] = out[2];
        env->features[FEAT_1_EDX] = out[3];
    }
    if (engine->core_ops->cpuid(engine->core, 7, 0, out)) {
        env->features[FEAT_7_0_EBX] = out[1];
        env->features[FEAT_7_0_ECX] = out[2];
        env->features[FEAT_7_0_EDX] = out[3];
    }
    if (engine->core_ops->cpuid(engine->core, 0xd, 1, out)) env->features[FEAT_XSAVE] = out[0];
    if (engine->core_ops->cpuid(engine->core, 0x80000001, 0, out)) {
        env->features[FEAT_8000_0001_ECX] = out[2];
        env->features[FEAT_8000_0001_EDX] = out[3];
    }
}

void cm_platform_reset(struct cm_engine* engine) {
    engine->env->regs[R_EDX] = engine->env->cpuid_version;  // SDM vol. 3A table 10-1
    cm_note_segments(engine->env);
}

// ---- control registers

target_ulong CM_REAL(helper_read_crN)(CPUX86State*, int);
void CM_REAL(helper_write_crN)(CPUX86State*, int, target_ulong);

target_ulong CM_WRAP(helper_read_crN)(CPUX86State* env, int reg) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(helper_read_crN);
    return reg == 8 ? engine->core_ops->read_cr8(engine->core) : CM_REAL(helper_read_crN)(env, reg);
}

uint64_t cm_settable_cr4(const CPUX86State* env) {
    uint64_t bits = CR4_TSD_MASK | CR4_DE_MASK | CR4_PSE_MASK | CR4_PAE_MASK | CR4_MCE_MASK | CR4_PGE_MASK |
                    CR4_PCE_MASK | CR4_OSFXSR_MASK | CR4_OSXMMEXCPT_MASK;
    if (env->features[FEAT_1_EDX] & CPUID_VME) bits |= CR4_VME_MASK | CR4_PVI_MASK;
    if (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_FSGSBASE) bits |= CR4_FSGSBASE_MASK;
    if (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_SMEP) bits |= CR4_SMEP_MASK;
    if (env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_SMAP) bits |= CR4_SMAP_MASK;
    if (env->features[FEAT_1_ECX] & CPUID_EXT_PCID) bits |= CR4_PCIDE_MASK;
    if (env->features[FEAT_1_ECX] & CPUID_EXT_XSAVE) bits |= CR4_OSXSAVE_MASK;
    return bits;
}

// Whether an entry of the four at `cr3` is present and has reserved bits set. PAE paging loads them all at
// once (SDM vol. 3A 4.4.1, table 4-8).
static bool pointers_fault(const CPUX86State* env, uint64_t cr3) {
    const uint64_t above_address = UINT64_MAX << 40, reserved = above_address | 0x1e6;
    const uint64_t* entries = (const uint64_t*)cm_ram_pointer(cm_engine_of(env->uc), cr3 & 0xffffffe0, 32);
    for (int i = 0; i < 4; i++) {
        const uint64_t entry = entries ? __atomic_load_n(&entries[i], __ATOMIC_RELAXED) : UINT64_MAX;
        if ((entry & PG_PRESENT_MASK) && (entry & reserved)) return true;
    }
    return false;
}

// The #GP conditions of MOV to CRn (SDM vol. 2B, MOV—Move to/from Control Registers).
static bool control_register_faults(const CPUX86State* env, int reg, uint64_t value) {
    const bool long_mode = env->hflags & HF_LMA_MASK, paging = env->cr[0] & CR0_PG_MASK;
    const uint64_t changed = value ^ env->cr[reg];
    switch (reg) {
        case 0:
            if (value >> 32) return true;
            if ((value & CR0_PG_MASK) && !(value & CR0_PE_MASK)) return true;
            if ((value & CR0_NW) && !(value & CR0_CD)) return true;
            if ((value & CR0_PG_MASK) && !(env->cr[0] & CR0_PG_MASK) && (env->efer & MSR_EFER_LME)) {
                return !(env->cr[4] & CR4_PAE_MASK) || (env->segs[R_CS].flags & DESC_L_MASK);
            }
            if (!(value & CR0_PG_MASK)) return env->hflags & HF_CS64_MASK;
            return (changed & (CR0_PG_MASK | CR0_CD | CR0_NW)) && !long_mode && (env->cr[4] & CR4_PAE_MASK) &&
                   pointers_fault(env, env->cr[3]);
        case 3:
            if (long_mode) return value >> 40;
            return paging && (env->cr[4] & CR4_PAE_MASK) && pointers_fault(env, value);
        case 4:
            if (value & ~cm_settable_cr4(env)) return true;
            if (long_mode) return !(value & CR4_PAE_MASK);
            return paging && (value & CR4_PAE_MASK) &&
                   (changed & (CR4_PAE_MASK | CR4_PGE_MASK | CR4_PSE_MASK | CR4_SMEP_MASK)) &&
                   pointers_fault(env, env->cr[3]);
        default:
            return reg == 8 && value > 15;
    }
}

void CM_WRAP(helper_write_crN)(CPUX86State* env, int reg, target_ulong value) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(helper_write_crN);
    if (control_register_faults(env, reg, value)) raise_gp(env, GETPC());
    if (reg == 8) {
        engine->core_ops->write_cr8(engine->core, value);
        return;
    }
    CM_REAL(helper_write_crN)(env, reg, value);
}

// ---- counters

static void read_tsc(CPUX86State* env, uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    if ((env->cr[4] & CR4_TSD_MASK) && (env->hflags & HF_CPL_MASK)) raise_gp(env, ra);
    uint64_t tsc = engine->core_ops->read_tsc(engine->core);
    env->regs[R_EAX] = (uint32_t)tsc;
    env->regs[R_EDX] = (uint32_t)(tsc >> 32);
}

void CM_WRAP(helper_rdtsc)(CPUX86State* env) {
    CM_HIT(helper_rdtsc);
    read_tsc(env, GETPC());
}

void CM_WRAP(helper_rdtscp)(CPUX86State* env) {
    CM_HIT(helper_rdtscp);
    read_tsc(env, GETPC());
    env->regs[R_ECX] = (uint32_t)env->tsc_aux;
}

// No performance counter exists, so every index is out of range: #GP(0) (SDM vol. 2B, RDPMC), for user code
// without CR4.PCE and for the kernel alike.
void CM_WRAP(helper_rdpmc)(CPUX86State* env) {
    CM_HIT(helper_rdpmc);
    raise_gp(env, GETPC());
}

// ---- fast system calls

static bool has_syscall(CPUX86State* env) { return (env->hflags & HF_CS64_MASK) || !IS_INTEL_CPU(env); }

void CM_WRAP(helper_syscall)(CPUX86State* env, int next_eip_addend) {
    CM_HIT(helper_syscall);
    if (!(env->efer & MSR_EFER_SCE) || !has_syscall(env))
        raise_exception_err_ra(env, EXCP06_ILLOP, 0, GETPC());
    const unsigned selector = env->star >> 32 & 0xffff;
    const uint32_t flat = DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK;
    const target_ulong next = env->eip + (target_ulong)next_eip_addend;
    const bool long_mode = env->hflags & HF_LMA_MASK, from_64 = env->hflags & HF_CS64_MASK;
    if (long_mode) {
        env->regs[R_ECX] = next;
        env->regs[11] = cpu_compute_eflags(env) & ~(target_ulong)RF_MASK;
        cpu_load_eflags(env, (int)(env->regs[11] & ~(env->fmask | RF_MASK)), CM_SYSTEM_FLAGS);
        cpu_x86_load_seg_cache(env, R_CS, selector & 0xfffc, 0, 0xffffffff,
                               flat | DESC_CS_MASK | DESC_R_MASK | DESC_L_MASK);
    } else {
        env->regs[R_ECX] = (uint32_t)next;
        env->eflags &= ~(IF_MASK | RF_MASK | VM_MASK);
        cpu_x86_load_seg_cache(env, R_CS, selector & 0xfffc, 0, 0xffffffff,
                               flat | DESC_B_MASK | DESC_CS_MASK | DESC_R_MASK);
    }
    cpu_x86_load_seg_cache(env, R_SS, (selector + 8) & 0xfffc, 0, 0xffffffff,
                           flat | DESC_B_MASK | DESC_W_MASK);
    cm_note_segments(env);
    env->eip = !long_mode ? (uint32_t)env->star : from_64 ? env->lstar : env->cstar;
}

void CM_REAL(helper_sysret)(CPUX86State*, int);

void CM_WRAP(helper_sysret)(CPUX86State* env, int dflag) {
    CM_HIT(helper_sysret);
    const uintptr_t ra = GETPC();
    if (!(env->efer & MSR_EFER_SCE) || !has_syscall(env)) raise_exception_err_ra(env, EXCP06_ILLOP, 0, ra);
    if (!(env->cr[0] & CR0_PE_MASK) || (env->hflags & HF_CPL_MASK)) raise_gp(env, ra);
    // SDM vol. 2B, SYSRET: a return address that is not canonical faults while still in ring 0.
    if (dflag == 2 && !cm_is_canonical(env->regs[R_ECX])) raise_gp(env, ra);
    CM_REAL(helper_sysret)(env, dflag);
    cm_note_segments(env);
}

void CM_WRAP(helper_sysenter)(CPUX86State* env, int next_eip_addend) {
    (void)next_eip_addend;
    CM_HIT(helper_sysenter);
    if ((env->sysenter_cs & 0xfffc) == 0) raise_gp(env, GETPC());
    const uint32_t flat = DESC_G_MASK | DESC_P_MASK | DESC_S_MASK | DESC_A_MASK;
    env->eflags &= ~(VM_MASK | IF_MASK | RF_MASK);
    const uint32_t code = env->hflags & HF_LMA_MASK ? DESC_L_MASK : DESC_B_MASK;
    cpu_x86_load_seg_cache(env, R_CS, env->sysenter_cs & 0xfffc, 0, 0xffffffff,
                           flat | code | DESC_CS_MASK | DESC_R_MASK);
    cpu_x86_load_seg_cache(env, R_SS, (env->sysenter_cs + 8) & 0xfffc, 0, 0xffffffff,
                           flat | DESC_B_MASK | DESC_W_MASK);
    cm_note_segments(env);
    env->regs[R_ESP] = env->sysenter_esp;
    env->eip = env->sysenter_eip;
}

void CM_REAL(helper_sysexit)(CPUX86State*, int);

void CM_WRAP(helper_sysexit)(CPUX86State* env, int dflag) {
    const uintptr_t ra = GETPC();
    CM_HIT(helper_sysexit);
    if ((env->sysenter_cs & 0xfffc) == 0 || (env->hflags & HF_CPL_MASK)) raise_gp(env, ra);
    if (dflag == 2 && !(cm_is_canonical(env->regs[R_EDX]) && cm_is_canonical(env->regs[R_ECX])))
        raise_gp(env, ra);
    CM_REAL(helper_sysexit)(env, dflag);
    cm_note_segments(env);
}

// ---- flags

target_ulong CM_REAL(helper_read_eflags)(CPUX86State*);

target_ulong CM_WRAP(helper_read_eflags)(CPUX86State* env) {
    CM_HIT(helper_read_eflags);
    return CM_REAL(helper_read_eflags)(env) & ~(target_ulong)(RF_MASK | VM_MASK);
}

// ---- waiting

void CM_WRAP(helper_pause)(CPUX86State* env, int next_eip_addend) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(helper_pause);
    env->eip += (target_ulong)next_eip_addend;
    engine->counters.pauses++;
    engine->ops->pause(engine->opaque);
    engine->cs->exception_index = -1;
    cpu_loop_exit(engine->cs);
}
