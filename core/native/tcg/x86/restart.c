// SPDX-License-Identifier: GPL-2.0-or-later
// Instructions that fault, and are then executed again from the beginning: they may have changed nothing.
//
// The engine changes registers or flags before the last access of these. Where it only computes the flags out
// of their lazy form before a store, they are computed before the instruction instead: the form is then part
// of what a fault restores.
#include "restart.h"
#include "segment_limits.h"
#include "exec/helper-gen.h"
#include "tcg/tcg-op.h"

void cm_compute_flags_before(struct cm_translator* t) {
    TCGContext* tcg = t->tcg;
    if (t->dc->cc_op == CC_OP_EFLAGS) return;
    TCGOp* start = QTAILQ_LAST(&tcg->ops);  // of this instruction: it notes the form of the flags
    cm_store_flags_kind(t);
    gen_helper_cc_compute_all(tcg, tcg->cpu_cc_src, tcg->cpu_cc_dst, tcg->cpu_cc_src, tcg->cpu_cc_src2,
                              tcg->cpu_cc_op);
    cm_flags_are_in_source(t);
    if (start->opc != INDEX_op_insn_start) return;
    start->args[1] = CC_OP_EFLAGS;
    QTAILQ_REMOVE(&tcg->ops, start, link);
    QTAILQ_INSERT_TAIL(&tcg->ops, start, link);
}

// SETcc of memory: O, BE, P, L and LE are taken from the flags; a comparison still has its operands.
static enum cm_translated set_byte(struct cm_translator* t, const struct cm_instruction* in) {
    enum { O = 0, BE = 3, P = 5, L = 6, LE = 7 };
    const unsigned condition = in->opcode >> 1 & 7;
    const CCOp kind = t->dc->cc_op;
    const bool compared = kind >= CC_OP_SUBB && kind <= CC_OP_SUBQ;
    const bool from_operands = compared && (condition == BE || condition == L || condition == LE);
    const bool from_flags = condition == O || condition == BE || condition >= P;
    if (kind == CC_OP_DYNAMIC || (from_flags && !from_operands)) cm_compute_flags_before(t);
    return CM_TO_ENGINE;
}

// RCL and RCR of memory. The count goes round with the carry: 9, 17, 33 or 65 bits (SDM vol. 2B, RCL). OF is
// that of the last step, which for more than one is as good as any.
static uint64_t rotate_once(uint64_t value, unsigned bits, bool right, unsigned* carry) {
    const unsigned top = bits - 1;
    const uint64_t in = *carry, mask = bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
    if (right) {
        *carry = value & 1;
        return value >> 1 | in << top;
    }
    *carry = value >> top & 1;
    return (value << 1 | in) & mask;
}

static void rotate_through_carry(CPUX86State* env, target_ulong address, union cm_operands in) {
    const uintptr_t ra = GETPC();
    const unsigned bytes = in.opcode & 1 ? in.operand_bytes : 1, bits = 8 * bytes;
    const bool right = in.modrm >> 3 & 1;
    uint32_t flags = cm_arithmetic_flags(env);
    cm_check_alignment(env, address, bytes, ra);
    cm_probe_write(env, address, bytes, ra);
    const unsigned given = in.opcode < 0xd0   ? (unsigned)in.immediate
                           : in.opcode < 0xd2 ? 1
                                              : (unsigned)env->regs[R_ECX];
    unsigned count = given & (bytes == 8 ? 63 : 31), carry = (flags & CC_C) != 0;
    if (bytes < 4) count %= bits + 1;
    uint64_t value = bytes == 1   ? cpu_ldub_data_ra(env, address, ra)
                     : bytes == 2 ? cpu_lduw_data_ra(env, address, ra)
                     : bytes == 4 ? cpu_ldl_data_ra(env, address, ra)
                                  : cpu_ldq_data_ra(env, address, ra);
    if (bytes == 4) value = (uint32_t)value;
    for (unsigned step = 0; step < count; step++) value = rotate_once(value, bits, right, &carry);
    if (bytes == 1) cpu_stb_data_ra(env, address, (uint32_t)value, ra);
    if (bytes == 2) cpu_stw_data_ra(env, address, (uint32_t)value, ra);
    if (bytes == 4) cpu_stl_data_ra(env, address, (uint32_t)value, ra);
    if (bytes == 8) cpu_stq_data_ra(env, address, value, ra);
    if (count) {
        const unsigned top = value >> (bits - 1) & 1, next = value >> (bits - 2) & 1;
        flags &= ~(uint32_t)(CC_C | CC_O);
        flags |= (carry ? CC_C : 0) | (top ^ (right ? next : carry) ? CC_O : 0);
    }
    env->cc_src = flags;
}

// PUSHA stores from EAX downwards, and what it has stored before a fault stays (so does what POPA has
// loaded).
static void push_all(CPUX86State* env, target_ulong address, union cm_operands in) {
    const uintptr_t ra = GETPC();
    const uint32_t mask = env->segs[R_SS].flags & DESC_B_MASK ? UINT32_MAX : UINT16_MAX;
    const uint32_t base = (uint32_t)env->segs[R_SS].base;
    uint32_t top = (uint32_t)env->regs[R_ESP];
    (void)address;
    for (unsigned i = R_EAX; i <= R_EDI; i++) {
        top -= in.operand_bytes;
        const target_ulong linear = base + (top & mask);
        cm_check_segment(env, R_SS, linear, in.operand_bytes, true, ra);
        cm_check_alignment(env, linear, in.operand_bytes, ra);
        if (in.operand_bytes == 2) {
            cpu_stw_data_ra(env, (uint32_t)linear, (uint16_t)env->regs[i], ra);
        } else {
            cpu_stl_data_ra(env, (uint32_t)linear, (uint32_t)env->regs[i], ra);
        }
    }
    env->regs[R_ESP] = (env->regs[R_ESP] & ~(target_ulong)mask) | (top & mask);
}

// CMPXCHG of 32 bits writes EAX or its destination, and the other keeps all its 64 bits (SDM vol. 2A,
// CMPXCHG: the destination of a comparison that fails is written back unchanged). The engine writes both.
static enum cm_translated compare_exchange(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    if (in->operand_bytes != 4 || in->code_size != CM_CODE64) return CM_TO_ENGINE;
    TCGv_i64 accumulator = tcg_temp_new_i64(tcg), destination = tcg_temp_new_i64(tcg);
    tcg_gen_mov_i64(tcg, accumulator, tcg->cpu_regs[R_EAX]);
    if (!in->is_memory) tcg_gen_mov_i64(tcg, destination, tcg->cpu_regs[in->rm]);
    cm_translate_by_engine(t);
    if (t->dc->base.is_jmp != DISAS_NORETURN && (in->is_memory || in->rm != R_EAX)) {
        TCGv_i64 expected = tcg_temp_new_i64(tcg), found = tcg_temp_new_i64(tcg);
        tcg_gen_ext32u_i64(tcg, expected, accumulator);
        tcg_gen_ext32u_i64(tcg, found, tcg->cpu_cc_src);
        TCGv_i64 rax = tcg->cpu_regs[R_EAX];
        tcg_gen_movcond_i64(tcg, TCG_COND_EQ, rax, found, expected, accumulator, rax);
        if (!in->is_memory) {
            TCGv_i64 rm = tcg->cpu_regs[in->rm];
            tcg_gen_movcond_i64(tcg, TCG_COND_EQ, rm, found, expected, rm, destination);
        }
        tcg_temp_free_i64(tcg, found);
        tcg_temp_free_i64(tcg, expected);
    }
    tcg_temp_free_i64(tcg, destination);
    tcg_temp_free_i64(tcg, accumulator);
    return CM_TRANSLATED_BY_ENGINE;
}

const struct cm_row cm_restart_rows[CM_RESTART_ROWS] = {
    {CM_MAP_1, 0x60, .modes = CM_IN_16 | CM_IN_32, .execute = push_all},
    {CM_MAP_1, 0xc0, 0xc1, .groups = 1 << 2 | 1 << 3, .form = CM_MEMORY,
     .flags = CM_READS_FLAGS | CM_WRITES_FLAGS, .execute = rotate_through_carry},
    {CM_MAP_1, 0xd0, 0xd3, .groups = 1 << 2 | 1 << 3, .form = CM_MEMORY,
     .flags = CM_READS_FLAGS | CM_WRITES_FLAGS, .execute = rotate_through_carry},
    {CM_MAP_0F, 0x90, 0x9f, .form = CM_MEMORY, .translate = set_byte},
    {CM_MAP_0F, 0xb1, .translate = compare_exchange},
};
