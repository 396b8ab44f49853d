// SPDX-License-Identifier: GPL-2.0-or-later
// Near branches to addresses that are not canonical: #GP(0) of the branch, which has changed nothing (SDM
// vol. 2A, CALL, JMP; vol. 2B, RET). The engine jumps, and the fetch faults.
//
// A look at the target of each return would cost more than all the rest of it. Such a target is found in no
// cache, though; so where the look-up of the next block fails, the branch is undone (cm_undo_branch). What
// cannot be undone there is the word that a call stores, and the trap of a single step is taken before it:
// these look first.
#include "branches.h"
#include "exec/helper-gen.h"
#include "tcg/tcg-op.h"

enum { RET_NUMBER = 0xc2, RET = 0xc3, CALL_RELATIVE = 0xe8, GROUP_5 = 0xff };

static bool is_indirect_call(unsigned modrm, unsigned opcode) {
    return opcode == GROUP_5 && (modrm >> 3 & 7) == 2;
}

static void check_target(CPUX86State* env, target_ulong address, union cm_operands in) {
    const uintptr_t ra = GETPC();
    target_ulong target;
    if (in.opcode != GROUP_5) {
        target = cpu_ldq_data_ra(env, env->regs[R_ESP], ra);
    } else if (in.memory) {
        target = cpu_ldq_data_ra(env, address, ra);
    } else {
        target = env->regs[in.rm];
    }
    if (cm_is_canonical(target)) return;
    if (is_indirect_call(in.modrm, in.opcode)) {  // what the push raises comes first
        const target_ulong top = env->regs[R_ESP] - 8;
        cm_check_alignment(env, top, 8, ra);
        cm_probe_write(env, top, 8, ra);
    }
    raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
}

static void emit_check(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    cm_store_flags_kind(t);
    TCGv_i64 target;
    if (in->is_memory) {
        target = cm_emit_address(t, in);
        tcg_gen_qemu_ld_i64(tcg, target, target, t->dc->mem_index, MO_LEQ);
    } else {
        target = tcg_temp_new_i64(tcg);
        tcg_gen_mov_i64(tcg, target, tcg->cpu_regs[in->rm]);
    }
    TCGv_i64 extended = tcg_temp_new_i64(tcg);
    TCGLabel* canonical = gen_new_label(tcg);
    tcg_gen_shli_i64(tcg, extended, target, 16);
    tcg_gen_sari_i64(tcg, extended, extended, 16);
    tcg_gen_brcond_i64(tcg, TCG_COND_EQ, extended, target, canonical);
    cm_emit_execute(t, in, check_target, 0);  // does not return
    gen_set_label(tcg, canonical);
    tcg_temp_free_i64(tcg, extended);
    tcg_temp_free_i64(tcg, target);
}

static enum cm_translated near_branch(struct cm_translator* t, const struct cm_instruction* in) {
    const bool is_call = is_indirect_call(in->modrm, in->opcode);
    if (t->dc->tf) {
        cm_emit_execute(t, in, check_target, 0);
    } else if (is_call) {
        emit_check(t, in);
    }
    return CM_TO_ENGINE;
}

static bool decode_at(CPUX86State* env, target_ulong pc, struct cm_instruction* in) {
    uint8_t bytes[CM_LONGEST_INSTRUCTION];
    for (unsigned count = 1; count <= CM_LONGEST_INSTRUCTION; count++) {
        bytes[count - 1] = cpu_ldub_code(env, pc + count - 1);
        if (cm_decode(bytes, count, CM_CODE64, in) == CM_DECODED) return true;
    }
    return false;
}

void cm_undo_branch(struct cm_engine* engine, uintptr_t from) {
    CPUX86State* env = engine->env;
    const target_ulong target = env->eip;
    struct cm_instruction in;
    if (!cpu_restore_state(engine->cs, from, true)) return;
    const bool decoded = decode_at(env, env->eip, &in);
    // Code that runs off the canonical addresses does so without a branch: the fetch faults.
    if (!decoded || in.map > CM_MAP_0F || env->eip + in.length == target) {
        env->eip = target;
        return;
    }
    if (in.map == CM_MAP_1 && in.opcode == RET) env->regs[R_ESP] -= 8;
    if (in.map == CM_MAP_1 && in.opcode == RET_NUMBER) env->regs[R_ESP] -= 8 + (uint16_t)in.immediate;
    if (in.map == CM_MAP_1 && in.opcode == CALL_RELATIVE) env->regs[R_ESP] += 8;
    raise_exception_err_ra(env, EXCP0D_GPF, 0, 0);
}

const struct cm_row cm_branch_rows[CM_BRANCH_ROWS] = {
    {CM_MAP_1, 0xc2, 0xc3, .modes = CM_IN_64, .translate = near_branch},
    {CM_MAP_1, 0xff, .groups = 1 << 2 | 1 << 4, .modes = CM_IN_64, .translate = near_branch},
};
