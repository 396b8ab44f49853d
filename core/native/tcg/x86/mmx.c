// SPDX-License-Identifier: GPL-2.0-or-later
// What MMX instructions do to the x87 state (SDM vol. 1, 9.5; vol. 3A, 13.1): they wait for a pending x87
// exception, and leave TOP = 0, all registers full, and the upper 16 bits of the one they write all ones.
//
// The engine computes; but it marks the registers as full before it reads a memory operand, whose fault must
// leave the state alone, and does the rest not at all. Which faults come before the x87 state changes is told
// by no manual. On the bare processor it is: a page fault, but not that of MASKMOVQ; and not #XM.
#if defined(__x86_64__)

#include "translator.h"
#include "tcg/tcg-op.h"

#include "engine_calls.h"
#include "x87.h"

static void wait_for_x87(CPUX86State* env) { x87_wait(env, GETPC()); }

static HelperInfo wait_call = {wait_for_x87, "mmx_wait", TCG_CALL_NO_WG,
                               dh_sizemask(void, 0) | dh_sizemask(ptr, 1)};

static bool is_call_of(const TCGOp* op, const void* function) {
    if (op->opc != INDEX_op_call) return false;
    return (const void*)(uintptr_t)op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op)] == function;
}

// The MMX register that is written, or -1.
static int destination(const struct cm_instruction* in) {
    if (in->map != CM_MAP_0F) return in->modrm >> 3 & 7;
    switch (in->opcode) {
        case 0x71 ... 0x73:  // shifts by an immediate count
            return in->modrm & 7;
        case 0x7f:  // MOVQ
            return in->is_memory ? -1 : in->modrm & 7;
        case 0xd6:  // MOVDQ2Q, MOVQ2DQ
            return in->mandatory == CM_WITH_F2 ? in->modrm >> 3 & 7 : -1;
        case 0x2a:  // CVTPI2PS, CVTPI2PD
        case 0x77:  // EMMS
        case 0x7e:  // MOVD, MOVQ to a general register or memory
        case 0xc5:  // PEXTRW
        case 0xd7:  // PMOVMSKB
        case 0xe7:  // MOVNTQ
        case 0xf7:  // MASKMOVQ
            return -1;
        default:
            return in->modrm >> 3 & 7;
    }
}

static void store(struct cm_translator* t, uint64_t value, size_t offset, unsigned bytes) {
    TCGv_i64 constant = tcg_const_i64(t->tcg, (int64_t)value);
    if (bytes == 8) {
        tcg_gen_st_i64(t->tcg, constant, t->tcg->cpu_env, (tcg_target_long)offset);
    } else if (bytes == 4) {
        tcg_gen_st32_i64(t->tcg, constant, t->tcg->cpu_env, (tcg_target_long)offset);
    } else {
        tcg_gen_st16_i64(t->tcg, constant, t->tcg->cpu_env, (tcg_target_long)offset);
    }
    tcg_temp_free_i64(t->tcg, constant);
}

static void remove_call(struct cm_translator* t, const void* function) {
    TCGOp* op = QTAILQ_NEXT(t->before, link);
    while (op && !is_call_of(op, function)) op = QTAILQ_NEXT(op, link);
    if (op) tcg_op_remove(t->tcg, op);
}

static void emit_wait(struct cm_translator* t) {
    TCGTemp* args[] = {tcgv_ptr_temp(t->tcg, t->tcg->cpu_env)};
    cm_emit_call(t->tcg, &wait_call, 1, args);
}

static void emit_transition(struct cm_translator* t, bool empties) {
    store(t, 0, offsetof(CPUX86State, fpstt), 4);
    store(t, empties ? UINT64_C(0x0101010101010101) : 0, offsetof(CPUX86State, fptags), 8);
}

// Moves what was emitted after `mark` to where it belongs; NULL: to the end, where it is.
static void move(struct cm_translator* t, TCGOp* mark, TCGOp* place) {
    if (place && QTAILQ_NEXT(mark, link)) cm_move_ops_before(t->tcg, mark, place);
}

// The helper that computes, behind the loads.
static TCGOp* last_call(const struct cm_translator* t) {
    TCGOp* found = NULL;
    for (TCGOp* op = QTAILQ_NEXT(t->before, link); op; op = QTAILQ_NEXT(op, link)) {
        if (op->opc == INDEX_op_call) found = op;
    }
    return found;
}

static bool is_maskmovq(const struct cm_instruction* in) {
    return in->map == CM_MAP_0F && in->opcode == 0xf7;
}

// PUNPCKLBW, PUNPCKLWD and PUNPCKLDQ read the low half of their source, in memory no more than that (SDM
// vol. 2B).
static void narrow_operand(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->map != CM_MAP_0F || in->opcode < 0x60 || in->opcode > 0x62 || !in->is_memory) return;
    for (TCGOp* op = QTAILQ_NEXT(t->before, link); op; op = QTAILQ_NEXT(op, link)) {
        if (op->opc != INDEX_op_qemu_ld_i64) continue;
        const TCGMemOpIdx oi = (TCGMemOpIdx)op->args[2];
        op->args[2] = make_memop_idx((get_memop(oi) & ~MO_SIZE) | MO_32, get_mmuidx(oi));
    }
}

static void finish(struct cm_translator* t, const struct cm_instruction* in) {
    const bool raises = t->dc->base.is_jmp == DISAS_NORETURN;  // #UD, which does not wait
    // The conversions read a memory operand without a look at x87 (SDM vol. 2A, CVTPI2PD).
    const bool apart = in->opcode == 0x2a && in->map == CM_MAP_0F && in->is_memory;
    const bool empties = in->opcode == 0x77 && in->map == CM_MAP_0F;
    const bool follows = t->pc == t->mmx_next && !empties;       // another one, right behind: all is done
    remove_call(t, empties ? HELPER(emms) : HELPER(enter_mmx));  // with SSSE3 there is none
    if (raises || apart) return;
    TCGOp *const first = QTAILQ_NEXT(t->before, link), *const last = QTAILQ_LAST(&t->tcg->ops);
    TCGOp* const computation = last_call(t);
    if (!follows) {
        emit_wait(t);
        if (is_maskmovq(in)) emit_transition(t, false);
        move(t, last, first);
        TCGOp* const mark = QTAILQ_LAST(&t->tcg->ops);
        if (!is_maskmovq(in)) emit_transition(t, empties);
        move(t, mark, computation);
    }
    narrow_operand(t, in);
    const int written = destination(in);
    if (written >= 0) {
        store(t, 0xffff,
              offsetof(CPUX86State, fpregs) + sizeof(FPReg) * (unsigned)written + offsetof(floatx80, high),
              2);
    }
    if (!empties) t->mmx_next = t->pc + in->length;
}

// REX.R and REX.B extend the numbers of other registers only (SDM vol. 2A, 2.2.1.2). The engine takes them
// for those of MMX too in some opcodes, and then works on what lies behind the eighth.
static void drop_extensions(struct cm_translator* t, const struct cm_instruction* in) {
    const unsigned op = in->map == CM_MAP_0F ? in->opcode : 0;
    const bool to_other =
        op == 0x2a || op == 0xc5 || op == 0xd7 || (op == 0xd6 && in->mandatory == CM_WITH_F3);
    const bool of_other = op == 0x2c || op == 0x2d || op == 0x6e || op == 0x7e || op == 0xc4 ||
                          (op == 0xd6 && in->mandatory == CM_WITH_F2);
    uint8_t rex = in->rex;
    if (!to_other) rex &= (uint8_t)~4;
    if (!of_other && !in->is_memory) rex &= (uint8_t)~1;
    if (rex != in->rex) cm_respell(t, in->opcode_at - 1u, rex);
}

enum cm_translated cm_translate_mmx(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->rex) drop_extensions(t, in);
    t->after = finish;
    return CM_TO_ENGINE;
}

#endif
