// SPDX-License-Identifier: GPL-2.0-or-later
// Where the guest's MXCSR is read and written, and where its sticky flags are merged (see float.h).
#if defined(__x86_64__)

#include "../internals.h"
#include <ucontext.h>

#include "tcg/tcg-op.h"

#include "engine_calls.h"
#include "float.h"
#include "float_slow.h"
#include "x87.h"

// The engine's own helper finds the guest's instruction by its return address, which must be the translated
// code's: these calls have to be jumps.
#ifndef __OPTIMIZE__
#error "build the engine's C files with optimisation: they rely on tail calls"
#endif
#if defined(__has_attribute)
#if __has_attribute(musttail)
#define TAIL_CALL __attribute__((musttail)) return
#endif
#endif
#ifndef TAIL_CALL
#define TAIL_CALL return
#endif

// The guest's rounding, FZ and DAZ, all masked, no flags; of x87, the control word of always, and no flags.
void cm_float_thread_enter(CPUX86State* env) {
    set_host_mxcsr((env->mxcsr & MX_CONTROLS) | MX_MASKS);
    __asm__ volatile("fninit");
}

// XRSTOR reads MXCSR from memory a second time after it was checked. Another vCPU may have put reserved bits
// there in between: they are dropped.
void cm_float_load(CPUX86State* env) {
    env->mxcsr &= MX_VALID;
    set_host_mxcsr((env->mxcsr & MX_CONTROLS) | MX_MASKS);
    x87_forget_flags(env);
}

void cm_float_reset(CPUX86State* env) {
    env->mxcsr = MX_DEFAULT;
    cm_float_load(env);
}

void cm_float_sync(CPUX86State* env) { env->mxcsr |= host_mxcsr() & MX_FLAGS; }

uint32_t cm_float_leave(void) {
    uint32_t saved = host_mxcsr();
    set_host_mxcsr(MX_DEFAULT);
    return saved;
}

void cm_float_return(uint32_t saved) {
    set_host_mxcsr(saved);
    __asm__ volatile("fnclex");
}

void cm_float_interrupted(const void* ucontext) {
    set_host_mxcsr(((const ucontext_t*)ucontext)->uc_mcontext.fpregs->mxcsr);
}

// STMXCSR is translated to a plain load of env->mxcsr. Every such load is preceded by a call that merges the
// flags.
static void merge_for_stmxcsr(CPUX86State* env) {
    CM_HIT(tcg_gen_op3);
    cm_float_sync(env);
}

void CM_REAL(tcg_gen_op3)(TCGContext* tcg, TCGOpcode opc, TCGArg a1, TCGArg a2, TCGArg a3);

void CM_WRAP(tcg_gen_op3)(TCGContext* tcg, TCGOpcode opc, TCGArg a1, TCGArg a2, TCGArg a3) {
    if (opc == INDEX_op_ld32u_i64 && a3 == offsetof(CPUX86State, mxcsr) &&
        a2 == tcgv_ptr_arg(tcg, tcg->cpu_env)) {
        static HelperInfo info = {merge_for_stmxcsr, "merge_for_stmxcsr", TCG_CALL_NO_RWG,
                                  dh_sizemask(void, 0) | dh_sizemask(ptr, 1)};
        TCGTemp* args[] = {tcgv_ptr_temp(tcg, tcg->cpu_env)};
        cm_emit_call(tcg, &info, 1, args);
    }
    CM_REAL(tcg_gen_op3)(tcg, opc, a1, a2, a3);
}

// A reserved bit is #GP(0) (SDM vol. 1, 10.2.3), before anything is loaded.
static void check_mxcsr(CPUX86State* env, uint32_t value, uintptr_t ra) {
    if (value & ~(uint32_t)MX_VALID) raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
}

// Also touches the end of the XMM registers, so that no fault can follow once MXCSR has been loaded.
static uint32_t saved_mxcsr(CPUX86State* env, target_ulong area, uintptr_t ra) {
    cpu_ldub_data_ra(env, area + offsetof(X86XSaveArea, legacy.xmm_regs) + 16 * 16 - 1, ra);
    return cpu_ldl_data_ra(env, area + offsetof(X86XSaveArea, legacy.mxcsr), ra);
}

void CM_REAL(helper_ldmxcsr)(CPUX86State* env, uint32_t value);
void CM_WRAP(helper_ldmxcsr)(CPUX86State* env, uint32_t value) {
    CM_HIT(helper_ldmxcsr);
    check_mxcsr(env, value, GETPC());
    CM_REAL(helper_ldmxcsr)(env, value);
    set_host_mxcsr((value & MX_CONTROLS) | MX_MASKS);
}

void CM_REAL(helper_xsave)(CPUX86State* env, target_ulong area, uint64_t features);
void CM_WRAP(helper_xsave)(CPUX86State* env, target_ulong area, uint64_t features) {
    CM_HIT(helper_xsave);
    cm_float_sync(env);
    TAIL_CALL CM_REAL(helper_xsave)(env, area, features);
}

void CM_REAL(helper_xsaveopt)(CPUX86State* env, target_ulong area, uint64_t features);
void CM_WRAP(helper_xsaveopt)(CPUX86State* env, target_ulong area, uint64_t features) {
    CM_HIT(helper_xsaveopt);
    cm_float_sync(env);
    TAIL_CALL CM_REAL(helper_xsaveopt)(env, area, features);
}

// What follows the engine's part must see that it was done, so it is called; to name the right instruction if
// it faults half-way, the guest's state is brought up to date before. The old flags join env->mxcsr first: a
// fault before MXCSR is loaded must leave them.
static void begin_restore(CPUX86State* env, uintptr_t ra) {
    cm_float_sync(env);
    cpu_restore_state(env_cpu(env), ra, true);
}

void CM_REAL(helper_xrstor)(CPUX86State* env, target_ulong area, uint64_t features);
void CM_WRAP(helper_xrstor)(CPUX86State* env, target_ulong area, uint64_t features) {
    CM_HIT(helper_xrstor);
    if ((env->cr[4] & CR4_OSXSAVE_MASK) && !(area & 63) && (features & env->xcr0 & XSTATE_SSE_MASK))
        check_mxcsr(env, saved_mxcsr(env, area, GETPC()), GETPC());
    begin_restore(env, GETPC());
    CM_REAL(helper_xrstor)(env, area, features);
    cm_float_load(env);
}

#endif
