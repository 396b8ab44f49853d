// SPDX-License-Identifier: GPL-2.0-or-later
// Addresses of code in blocks that run wherever their page is mapped (shared_blocks.c).
//
// The engine emits each address that depends on RIP as a constant: the next instruction's, a branch's target,
// an operand relative to RIP. After an instruction these are replaced by sums of the code base and a
// distance. They are known by their value: each lies within a displacement of 32 bits from the block. No
// other constant of 64-bit code can, since a block that is shared lies further than that from all numbers
// of 32 bits, but for the two instructions with an operand of 64 bits, which have no RIP-relative one.
#include "../shared_blocks.h"
#include "decode.h"
#include "exec/helper-gen.h"
#include "tcg/tcg-op.h"
#include "translator.h"

void cm_emit_code_address(struct cm_translator* t, TCGv_i64 to, target_ulong linear) {
    TCGContext* tcg = t->tcg;
    if (!t->relative) {
        tcg_gen_movi_i64(tcg, to, (int64_t)linear);
        return;
    }
    // Temporaries of the whole block: one that is free now may be in use where these operations will stand.
    tcg_gen_ld_i64(tcg, t->code_base, tcg->cpu_env, CM_CODE_BASE_OFFSET);
    tcg_gen_movi_i64(tcg, t->distance, (int64_t)(linear - t->page));
    tcg_gen_add_i64(tcg, to, t->code_base, t->distance);
}

void cm_begin_code_addresses(struct cm_translator* t) {
    if (!t->relative) return;
    t->code_base = tcg_temp_new_i64(t->tcg);
    t->distance = tcg_temp_new_i64(t->tcg);
}

// MOV of an immediate operand of 64 bits, and those with an offset of 64 bits.
static bool has_wide_constant(const struct cm_translator* t) {
    struct cm_instruction in;
    if (cm_decode(t->bytes, t->available, CM_CODE64, &in) != CM_DECODED) return false;
    return in.map == CM_MAP_1 &&
           ((in.opcode >= 0xb8 && in.opcode <= 0xbf) || (in.opcode >= 0xa0 && in.opcode <= 0xa3));
}

static bool may_be_address(const struct cm_translator* t, const TCGOp* op) {
    const uint64_t reach = UINT64_C(1) << 31, behind = 2 * TARGET_PAGE_SIZE;
    return op->opc == INDEX_op_movi_i64 && op->args[1] - (t->page - reach) < 2 * reach + behind;
}

void cm_make_relative(struct cm_translator* t, TCGOp* before, bool behind) {
    if (!t->relative) return;
    TCGContext* tcg = t->tcg;
    TCGOp *op, *next;
    for (op = before ? QTAILQ_NEXT(before, link) : QTAILQ_FIRST(&tcg->ops); op; op = next) {
        next = QTAILQ_NEXT(op, link);
        if (!may_be_address(t, op)) continue;
        if (!behind && has_wide_constant(t)) return;
        TCGOp* mark = QTAILQ_LAST(&tcg->ops);
        cm_emit_code_address(t, temp_tcgv_i64(tcg, arg_temp(op->args[0])), op->args[1]);
        cm_move_ops_before(tcg, mark, op);
        tcg_op_remove(tcg, op);
    }
}

void CM_REAL(restore_state_to_opc)(CPUX86State* env, TranslationBlock* tb, target_ulong* data);

// The instruction under way has its offset in its page from the block, and its page from the code base.
void CM_WRAP(restore_state_to_opc)(CPUX86State* env, TranslationBlock* tb, target_ulong* data) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    CM_HIT(restore_state_to_opc);
    CM_REAL(restore_state_to_opc)(env, tb, data);
    if (engine && cm_target_shares_block(tb->pc, tb->cs_base, tb->flags)) {
        env->eip = *cm_code_base(engine->cs) + (env->eip & ~TARGET_PAGE_MASK);
    }
}

// To the beginning of a block of which nothing has run.
static void return_to_start(CPUState* cs, TranslationBlock* tb) {
    CPUX86State* env = cs->env_ptr;
    env->eip = cm_target_shares_block(tb->pc, tb->cs_base, tb->flags)
                   ? *cm_code_base(cs) + (tb->pc & ~TARGET_PAGE_MASK)
                   : tb->pc - tb->cs_base;
}

void cm_code_address_attach(struct cm_engine* engine) {
    engine->cs->cc->synchronize_from_tb = return_to_start;
}
