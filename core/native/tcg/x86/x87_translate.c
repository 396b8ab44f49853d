// SPDX-License-Identifier: GPL-2.0-or-later
// x87 instructions in translated code: one call for each (x87.h), and FIP.
#if defined(__x86_64__)

#include <pthread.h>

#include "translator.h"
#include "tcg/tcg-op.h"

#include "engine_calls.h"
#include "x87.h"

// One description for each encoding, made once.
static HelperInfo memory_calls[64], register_calls[8][64];

static HelperInfo call_of(x87_function function, unsigned flags) {
    return (HelperInfo){
        (void*)function, "x87", flags,
        dh_sizemask(void, 0) | dh_sizemask(ptr, 1) | dh_sizemask(i64, 2) | dh_sizemask(i32, 3)};
}

// DB and DF E8-F7 write the guest's flags, DF E0 writes AX; all others leave the translator's registers
// alone.
static bool writes_registers(x87_op op) {
    const unsigned modrm = op & 0xff;
    return (op & 0x300) == 0x300 && modrm >= 0xe0 && modrm <= 0xf7;
}

static void describe_calls(void) {
    cm_x87_learn_host();
    for (unsigned group = 0; group < 64; group++) {
        memory_calls[group] = call_of(cm_x87_memory_functions[group], TCG_CALL_NO_WG);
    }
    for (x87_op op = 0; op < 0x800; op++) {
        if ((op & 0xc0) != 0xc0) continue;
        register_calls[op >> 8][op & 0x3f] =
            call_of(cm_x87_register_function(op), writes_registers(op) ? 0 : TCG_CALL_NO_WG);
    }
}

static x87_op op_of(const struct cm_translator* t, const struct cm_instruction* in) {
    x87_op op = (in->opcode & 7u) << 8 | in->modrm;
    if (in->operand_bytes == 2) op |= OP_NARROW;
    if (!in->is_memory) return op;
    op |= (x87_op)in->operand_segment << OP_SEGMENT_SHIFT;
    if (!t->dc->code64 || in->operand_segment >= CM_FS) op |= OP_BASED;
    return op;
}

static void emit(struct cm_translator* t, const struct cm_instruction* in, HelperInfo* call, x87_op op) {
    TCGContext* tcg = t->tcg;
    TCGv_i64 address = in->is_memory ? cm_emit_address(t, in) : tcg_const_i64(tcg, 0);
    TCGv_i32 what = tcg_const_i32(tcg, (int32_t)op);
    TCGTemp* args[] = {tcgv_ptr_temp(tcg, tcg->cpu_env), tcgv_i64_temp(tcg, address),
                       tcgv_i32_temp(tcg, what)};
    cm_emit_call(tcg, call, 3, args);
    tcg_temp_free_i32(tcg, what);
    tcg_temp_free_i64(tcg, address);
}

// #UD for what is no instruction comes before #NM, and that before all others (SDM vol. 3A, table 6-2; 2.5).
enum cm_translated cm_translate_x87(struct cm_translator* t, const struct cm_instruction* in) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, describe_calls);
    const x87_op op = op_of(t, in);
    HelperInfo* call = in->is_memory ? &memory_calls[x87_group(op)] : &register_calls[op >> 8 & 7][op & 0x3f];
    if (!call->func) return cm_emit_exception(t, EXCP06_ILLOP);
    if (t->dc->flags & (HF_EM_MASK | HF_TS_MASK)) return cm_emit_exception(t, EXCP07_PREX);
    if (!in->is_memory && (op & 0x600) == 0x200 && in->modrm < 0xe0) cm_store_flags_kind(t);  // FCMOVcc
    emit(t, in, call, op);
    if (!in->is_memory && writes_registers(op) && in->modrm >= 0xe8) cm_flags_are_in_source(t);
    if (!cm_x87_is_control(op)) {
        TCGv_i64 ip = tcg_temp_new_i64(t->tcg);
        cm_emit_code_address(t, ip, t->pc - t->dc->cs_base);
        tcg_gen_st_i64(t->tcg, ip, t->tcg->cpu_env, offsetof(CPUX86State, fpip));
        tcg_temp_free_i64(t->tcg, ip);
    }
    return CM_TRANSLATED;
}

#endif
