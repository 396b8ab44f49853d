// SPDX-License-Identifier: GPL-2.0-or-later
// x87 instructions that raise no unmasked exception and use no register that is empty (see x87.h): what their
// files share. Operands go through the host's x87 stack; everything unusual goes to x87_whole.c.
//
// x87_arithmetic.c: sums, products, comparisons; x87_functions.c: roots, remainders, sines, logarithms;
// x87_moves.c: loads, stores, the stack; x87_instructions.c: control words, and which encoding is which.
#ifndef COREMESH_TCG_X86_X87_QUICK_H
#define COREMESH_TCG_X86_X87_QUICK_H

#include "x87.h"

#define ON_STACK "st", "st(1)", "memory"

// No exception is pending. With underflow unmasked an exact tiny result is one too, of which masked
// arithmetic tells nothing (SDM vol. 1, 4.9.1.5).
static inline bool quiet(const CPUX86State* env) {
    return likely((env->fpuc & FCW_UM) && !(env->fpus & FSW_ES));
}

// Whether what the host computed with all exceptions masked is an unmasked one for the guest. The host's
// sticky flags never include one that is unmasked: it would be pending. Then all is as before, and
// x87_whole.c does it again.
static inline bool raises(const CPUX86State* env, uint16_t status) {
    if (likely(!(status & ~env->fpuc & FSW_FLAGS))) return false;
    __asm__ volatile("fnclex");
    return true;
}

static inline bool full(const CPUX86State* env, unsigned i) {
    return likely(!env->fptags[x87_physical(env, i)]);
}

static inline floatx80* st(CPUX86State* env, unsigned i) { return &env->fpregs[x87_physical(env, i)].d; }

// By halves, as the host's FSTP stores them: a wider load behind it would wait for the store.
static inline floatx80 get(const floatx80* from) {
    floatx80 value;
    value.low = from->low;
    value.high = from->high;
    return value;
}

static inline void set(floatx80* to, floatx80 value) {
    to->low = value.low;
    to->high = value.high;
}

static inline void pop(CPUX86State* env) {
    env->fptags[env->fpstt] = 1;
    env->fpstt = (env->fpstt + 1) & 7;
}

static inline floatx80* push(CPUX86State* env) {
    env->fpstt = (env->fpstt - 1) & 7;
    env->fptags[env->fpstt] = 0;
    return &env->fpregs[env->fpstt].d;
}

// The flags of the host join those of the guest; these condition codes are the instruction's result.
static inline void merge(CPUX86State* env, uint16_t status, uint16_t conditions) {
    env->fpus = (uint16_t)((env->fpus & ~conditions) | (status & (FSW_FLAGS | conditions)));
}

static inline void clear_c1(CPUX86State* env) { env->fpus &= (uint16_t)~FSW_C1; }

// Computes with the guest's rounding and precision, all exceptions masked. `...` is one statement.
#define UNDER_CONTROL(env, ...)                                                   \
    do {                                                                          \
        if (likely(((env)->fpuc & FCW_ROUNDING_AND_PRECISION) ==                  \
                   (FCW_DEFAULT & FCW_ROUNDING_AND_PRECISION))) {                 \
            __VA_ARGS__;                                                          \
        } else {                                                                  \
            const uint16_t guest_ = (env)->fpuc | FCW_MASKS, host_ = FCW_DEFAULT; \
            __asm__ volatile("fldcw %0" : : "m"(guest_));                         \
            __VA_ARGS__;                                                          \
            __asm__ volatile("fldcw %0" : : "m"(host_));                          \
        }                                                                         \
    } while (0)

#define WHOLE_UNLESS(condition)            \
    if (unlikely(!(condition))) {          \
        cm_x87_whole(env, op, 0, GETPC()); \
        return;                            \
    }

#define WHOLE_MEMORY_UNLESS(condition)                  \
    if (unlikely(!(condition))) {                       \
        cm_x87_whole_memory(env, address, op, GETPC()); \
        return;                                         \
    }

#define UNDO_IF_RAISED(result)             \
    if (raises(env, status)) {             \
        set(result, before);               \
        cm_x87_whole(env, op, 0, GETPC()); \
        return;                            \
    }

// An x87_function. Those without a memory operand are given no address.
#define REGISTER_FUNCTION(name) \
    void cm_x87_run_##name(CPUX86State* env, target_ulong address __attribute__((unused)), x87_op op)
#define MEMORY_FUNCTION(name) void cm_x87_run_##name(CPUX86State* env, target_ulong address, x87_op op)

typedef void x87_run(CPUX86State* env, target_ulong address, x87_op op);
x87_run cm_x87_run_fcmov, cm_x87_run_fadd_to_top, cm_x87_run_fadd_to_other, cm_x87_run_fmul_to_top,
    cm_x87_run_fmul_to_other, cm_x87_run_fsub_to_top, cm_x87_run_fsub_to_other, cm_x87_run_fsubr_to_top,
    cm_x87_run_fsubr_to_other, cm_x87_run_fdiv_to_top, cm_x87_run_fdiv_to_other, cm_x87_run_fdivr_to_top,
    cm_x87_run_fdivr_to_other, cm_x87_run_add_float, cm_x87_run_mul_float, cm_x87_run_com_float,
    cm_x87_run_sub_float, cm_x87_run_subr_float, cm_x87_run_div_float, cm_x87_run_divr_float,
    cm_x87_run_add_double, cm_x87_run_mul_double, cm_x87_run_com_double, cm_x87_run_sub_double,
    cm_x87_run_subr_double, cm_x87_run_div_double, cm_x87_run_divr_double, cm_x87_run_add_int32_t,
    cm_x87_run_mul_int32_t, cm_x87_run_com_int32_t, cm_x87_run_sub_int32_t, cm_x87_run_subr_int32_t,
    cm_x87_run_div_int32_t, cm_x87_run_divr_int32_t, cm_x87_run_add_int16_t, cm_x87_run_mul_int16_t,
    cm_x87_run_com_int16_t, cm_x87_run_sub_int16_t, cm_x87_run_subr_int16_t, cm_x87_run_div_int16_t,
    cm_x87_run_divr_int16_t, cm_x87_run_fcom, cm_x87_run_fcomp, cm_x87_run_fcompp, cm_x87_run_fucom,
    cm_x87_run_fucomp, cm_x87_run_fucompp, cm_x87_run_fcomi, cm_x87_run_fucomi, cm_x87_run_ftst,
    cm_x87_run_fxam;
x87_run cm_x87_run_fchs, cm_x87_run_fabs_, cm_x87_run_fsqrt, cm_x87_run_frndint, cm_x87_run_f2xm1,
    cm_x87_run_fsin, cm_x87_run_fcos, cm_x87_run_fscale, cm_x87_run_fprem, cm_x87_run_fprem1,
    cm_x87_run_fyl2x, cm_x87_run_fyl2xp1, cm_x87_run_fpatan, cm_x87_run_fsincos, cm_x87_run_fptan,
    cm_x87_run_fxtract;
x87_run cm_x87_run_load_extended, cm_x87_run_fld, cm_x87_run_store_extended, cm_x87_run_fst, cm_x87_run_fxch,
    cm_x87_run_load_float, cm_x87_run_load_double, cm_x87_run_load_int16, cm_x87_run_load_int32,
    cm_x87_run_load_int64, cm_x87_run_fld1, cm_x87_run_fldl2t, cm_x87_run_fldl2e, cm_x87_run_fldpi,
    cm_x87_run_fldlg2, cm_x87_run_fldln2, cm_x87_run_fldz, cm_x87_run_store_float, cm_x87_run_store_double,
    cm_x87_run_store_int16, cm_x87_run_store_int32, cm_x87_run_store_int64, cm_x87_run_truncate_int16,
    cm_x87_run_truncate_int32, cm_x87_run_truncate_int64;

#endif
