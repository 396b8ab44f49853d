// SPDX-License-Identifier: GPL-2.0-or-later
// RFLAGS where a helper of the engine looks at it.
//
// The arithmetic flags are kept as the operands of the instruction that set them, and `cc_op` says how to
// compute the flags from these. The translator knows `cc_op` and writes it to memory late. A helper that
// reads the flags before that takes operands for flags: among them IOPL and TF, since all of RFLAGS is saved
// together. The translator stores `cc_op` before all helpers that read flags but those below (checked against
// every use of cpu_cc_compute_all and cpu_compute_eflags in its source).
#include "../internals.h"
#include "tcg/tcg-op.h"

#include "platform.h"

// CMPXCHG8B and CMPXCHG16B change ZF alone (SDM vol. 2A). A far transfer may switch tasks, which saves RFLAGS
// in the old task and loads it from the new one (SDM vol. 3A 8.3).
static bool reads_flags(const void* helper) {
    return helper == HELPER(cmpxchg8b) || helper == HELPER(cmpxchg8b_unlocked) ||
           helper == HELPER(cmpxchg16b) || helper == HELPER(cmpxchg16b_unlocked) ||
           helper == HELPER(lcall_protected) || helper == HELPER(ljmp_protected) ||
           helper == HELPER(iret_protected);
}

static bool writes_flags_for_good(const void* helper) {
    return helper == HELPER(lcall_protected) || helper == HELPER(ljmp_protected);
}

static bool stores_cc_op(TCGContext* tcg, const TCGOp* op) {
    return op->opc == INDEX_op_movi_i32 && op->args[0] == tcgv_i32_arg(tcg, tcg->cpu_cc_op);
}

void cm_store_condition_codes(TCGContext* tcg) {
    TCGOp *op, *next;
    uint32_t cc_op =
        CC_OP_DYNAMIC;    // at the start of the instruction; none of these changes it before its call
    bool stored = false;  // what the translator stores now was stored before the helper
    QTAILQ_FOREACH_SAFE(op, &tcg->ops, link, next) {
        if (op->opc == INDEX_op_insn_start) {
            cc_op = (uint32_t)op->args[1];
            stored = false;
        } else if (op->opc == INDEX_op_call) {
            const void* helper = (const void*)(uintptr_t)op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op)];
            if (!reads_flags(helper) || cc_op == CC_OP_DYNAMIC) continue;
            TCGOp* mark = QTAILQ_LAST(&tcg->ops);
            tcg_gen_movi_i32(tcg, tcg->cpu_cc_op, (int32_t)cc_op);
            cm_move_ops_before(tcg, mark, op);
            stored = writes_flags_for_good(helper);
        } else if (stored && stores_cc_op(tcg, op)) {
            tcg_op_remove(tcg, op);
        }
    }
}
