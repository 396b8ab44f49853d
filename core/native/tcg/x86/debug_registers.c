// SPDX-License-Identifier: GPL-2.0-or-later
// MOV to and from debug registers (SDM vol. 2B, MOV—Move to/from Debug Registers; vol. 3B 18.2).
#include "decode.h"
#include "segments.h"
#include "watchpoints.h"

// DR4 and DR5 are other names of DR6 and DR7, unless CR4.DE makes them undefined (vol. 3B 18.2.2). An
// access that DR7.GD guards is a #DB before the instruction, which the delivery lets through (vol.
// 3B 18.2.4).
static int checked_register(CPUX86State* env, int reg, uintptr_t ra) {
    if (reg == 4 || reg == 5) {
        if (env->cr[4] & CR4_DE_MASK) raise_exception_err_ra(env, EXCP06_ILLOP, 0, ra);
        reg += 2;
    }
    if (env->dr[7] & DR7_GD) {
        env->dr[6] |= DR6_BD;
        raise_exception_err_ra(env, EXCP01_DB, 0, ra);
    }
    return reg;
}

// ---- instruction breakpoints
//
// The one on the instruction behind MOV SS or POP SS does not fire (SDM vol. 3A 6.8.3); behind STI, which
// leaves the same mark in hflags, it does. So STI notes where it is, while there are breakpoints.

void CM_REAL(helper_sti)(CPUX86State*);

void CM_WRAP(helper_sti)(CPUX86State* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(helper_sti);
    if (unlikely(!QTAILQ_EMPTY(&engine->cs->breakpoints)))
        engine->target.last_sti = cm_engine_guest_pc(engine, GETPC() - GETPC_ADJ);
    CM_REAL(helper_sti)(env);
}

bool cm_is_behind_stack_load(const struct cm_engine* engine) {
    const CPUX86State* env = engine->env;
    const uint64_t from_sti = env->segs[R_CS].base + env->eip - engine->target.last_sti;
    const bool behind_sti = from_sti > 0 && from_sti <= CM_LONGEST_INSTRUCTION;
    return (env->hflags & HF_INHIBIT_IRQ_MASK) && !behind_sti;
}

void CM_REAL(breakpoint_handler)(CPUState*);

void CM_WRAP(breakpoint_handler)(CPUState* cs) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(breakpoint_handler);
    if (!cs->watchpoint_hit && cm_is_behind_stack_load(engine)) {
        engine->env->eflags |= RF_MASK;  // for this instruction
        cpu_loop_exit_noexc(cs);
    }
    CM_REAL(breakpoint_handler)(cs);
}

// ---- MOV

void CM_REAL(helper_set_dr)(CPUX86State*, int, target_ulong);
target_ulong CM_REAL(helper_get_dr)(CPUX86State*, int);

void CM_WRAP(helper_set_dr)(CPUX86State* env, int reg, target_ulong value) {
    const struct cm_transfer t = {env, GETPC(), 0};
    CM_HIT(helper_set_dr);
    reg = checked_register(env, reg, t.ra);
    if (reg >= 6 && value >> 32) cm_fault(&t, EXCP0D_GPF, 0);
    // Bits that are always 0, beside those that the engine keeps at 1: bit 12 of DR6; 11, 12, 14, 15 of DR7.
    if (reg == 6) value &= ~(target_ulong)(1 << 12);
    if (reg == 7) value &= ~(target_ulong)0xd800;
    CM_REAL(helper_set_dr)(env, reg, value);
}

target_ulong CM_WRAP(helper_get_dr)(CPUX86State* env, int reg) {
    CM_HIT(helper_get_dr);
    return CM_REAL(helper_get_dr)(env, checked_register(env, reg, GETPC()));
}
