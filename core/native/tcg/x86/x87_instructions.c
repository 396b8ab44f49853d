// SPDX-License-Identifier: GPL-2.0-or-later
// Which x87 encoding is which instruction; and those on control state, which leave FIP and its companions
// alone.
#if defined(__x86_64__)

#include "x87_quick.h"

static REGISTER_FUNCTION(whole) { cm_x87_whole(env, op, 0, GETPC()); }

static MEMORY_FUNCTION(whole_memory) { cm_x87_whole_memory(env, address, op, GETPC()); }

// --- Control state (x87_state.c) ---

static MEMORY_FUNCTION(fldcw) { cm_x87_load_control(env, address, op, GETPC()); }
static MEMORY_FUNCTION(fldenv) { cm_x87_load_environment(env, address, op, GETPC()); }
static MEMORY_FUNCTION(fnstenv) { cm_x87_store_environment(env, address, op, GETPC()); }
static MEMORY_FUNCTION(frstor) { cm_x87_restore(env, address, op, GETPC()); }
static MEMORY_FUNCTION(fnsave) { cm_x87_save(env, address, op, GETPC()); }

static uint16_t status_word(const CPUX86State* env) {
    return (uint16_t)(env->fpus | env->fpstt << FSW_TOP_SHIFT);
}

static MEMORY_FUNCTION(fnstcw) {
    (void)op;
    x87_store(env, address, &env->fpuc, sizeof env->fpuc, GETPC());
}

static MEMORY_FUNCTION(fnstsw) {
    (void)op;
    const uint16_t status = status_word(env);
    x87_store(env, address, &status, sizeof status, GETPC());
}

static REGISTER_FUNCTION(fnstsw_ax) {
    (void)op;
    env->regs[R_EAX] = (env->regs[R_EAX] & ~(target_ulong)0xffff) | status_word(env);
}

static REGISTER_FUNCTION(fnclex) {
    (void)op;
    env->fpus &= FSW_CONDITIONS;
    x87_forget_flags(env);
}

static REGISTER_FUNCTION(fninit) {
    (void)op;
    cm_x87_initialise(env);
}

// FNENI, FNDISI and FNSETPM of the 8087 and 80287 do nothing (SDM vol. 3B, 23.18.7).
static REGISTER_FUNCTION(nothing) { (void)env, (void)op; }

// --- Which is which (SDM vol. 2D, tables) ---

#define cm_x87_run_none NULL
#define ROW(a, b, c, d, e, f, g, h)                                                                 \
    cm_x87_run_##a, cm_x87_run_##b, cm_x87_run_##c, cm_x87_run_##d, cm_x87_run_##e, cm_x87_run_##f, \
        cm_x87_run_##g, cm_x87_run_##h
#define ARITHMETIC_ROW(type) \
    ROW(add_##type, mul_##type, com_##type, com_##type, sub_##type, subr_##type, div_##type, divr_##type)

// A row for each opcode D8-DF, by ModRM.reg.
const x87_function cm_x87_memory_functions[64] = {
    ARITHMETIC_ROW(float),
    ROW(load_float, none, store_float, store_float, fldenv, fldcw, fnstenv, fnstcw),
    ARITHMETIC_ROW(int32_t),
    ROW(load_int32, truncate_int32, store_int32, store_int32, none, load_extended, none, store_extended),
    ARITHMETIC_ROW(double),
    ROW(load_double, truncate_int64, store_double, store_double, frstor, none, fnsave, fnstsw),
    ARITHMETIC_ROW(int16_t),
    ROW(load_int16, truncate_int16, store_int16, store_int16, whole_memory, load_int64, whole_memory,
        store_int64),
};

// The same, where all eight values of ModRM.rm are one instruction.
static const x87_function register_functions[64] = {
    ROW(fadd_to_top, fmul_to_top, fcom, fcomp, fsub_to_top, fsubr_to_top, fdiv_to_top, fdivr_to_top),
    ROW(fld, fxch, none, fst, none, none, none, none),
    ROW(fcmov, fcmov, fcmov, fcmov, none, none, none, none),
    ROW(fcmov, fcmov, fcmov, fcmov, none, fucomi, fcomi, none),
    ROW(fadd_to_other, fmul_to_other, fcom, fcomp, fsub_to_other, fsubr_to_other, fdiv_to_other,
        fdivr_to_other),
    ROW(whole, fxch, fst, fst, fucom, fucomp, none, none),
    ROW(fadd_to_other, fmul_to_other, fcomp, none, fsub_to_other, fsubr_to_other, fdiv_to_other,
        fdivr_to_other),
    ROW(whole, fxch, whole, whole, none, fucomi, fcomi, none),
};

// D9 E0-FF.
static const x87_function d9_functions[32] = {
    ROW(fchs, fabs_, none, none, ftst, fxam, none, none),
    ROW(fld1, fldl2t, fldl2e, fldpi, fldlg2, fldln2, fldz, none),
    ROW(f2xm1, fyl2x, fptan, fpatan, fxtract, fprem1, whole, whole),
    ROW(fprem, fyl2xp1, fsqrt, fsincos, frndint, fscale, fsin, fcos),
};

// DB E0-E7.
static const x87_function db_functions[8] = {
    ROW(nothing, nothing, fnclex, fninit, nothing, none, none, none)};

bool cm_x87_is_control(x87_op op) {
    if ((op & 0xc0) != 0xc0) return cm_x87_operand_bytes(op) == 0;
    const unsigned opcode = op >> 8 & 7, modrm = op & 0xff;
    return (opcode == 3 && modrm >= 0xe0 && modrm <= 0xe7) || (opcode == 7 && modrm == 0xe0);
}

x87_function cm_x87_register_function(x87_op op) {
    const unsigned opcode = op >> 8 & 7, modrm = op & 0xff;
    if (opcode == 1 && modrm >= 0xe0) return d9_functions[modrm - 0xe0];
    if (opcode == 1 && modrm == 0xd0) return cm_x87_run_whole;  // FNOP
    if (opcode == 3 && modrm >= 0xe0 && modrm <= 0xe7) return db_functions[modrm - 0xe0];
    if (opcode == 7 && modrm == 0xe0) return cm_x87_run_fnstsw_ax;
    if (opcode == 2 && modrm == 0xe9) return cm_x87_run_fucompp;
    if (opcode == 6 && modrm == 0xd9) return cm_x87_run_fcompp;
    return register_functions[x87_group(op)];
}

#endif
