// SPDX-License-Identifier: GPL-2.0-or-later
// Memory operands that are narrower than the engine reads them.
//
// Before these instructions the engine fills its scratch XMM register with sixteen bytes in two loads, where
// the instruction has an operand of eight or four (SDM vol. 2A and 2B: CVTPS2PD, CVTDQ2PD, CVTPS2PI,
// CVTTPS2PI, ROUNDSD, ROUNDSS): at the end of a page it would fault for bytes that are not asked for. Between
// translation and code generation the second load is taken out.
#include "../internals.h"
#include "platform.h"

// Bytes of the operand, or 16 when it is as wide as it was loaded.
static unsigned operand_bytes(const TCGOp* call) {
    const void* helper = (const void*)(uintptr_t)call->args[TCGOP_CALLO(call) + TCGOP_CALLI(call)];
    if (helper == HELPER(cvtps2pd) || helper == HELPER(cvtdq2pd) || helper == HELPER(cvtps2pi) ||
        helper == HELPER(cvttps2pi) || helper == HELPER(roundsd_xmm)) {
        return 8;
    }
    return helper == HELPER(roundss_xmm) ? 4 : 16;
}

// The load whose value `store` keeps in quadword `half` of the scratch register, or NULL.
static TCGOp* load_of_half(const TCGOp* store, unsigned half) {
    if (store->opc != INDEX_op_st_i64) return NULL;
    if (store->args[2] != offsetof(CPUX86State, xmm_t0) + offsetof(ZMMReg, ZMM_Q(half))) return NULL;
    TCGOp* load = QTAILQ_PREV(store, link);
    return load && load->opc == INDEX_op_qemu_ld_i64 && load->args[0] == store->args[0] ? load : NULL;
}

void cm_narrow_operands(TCGContext* tcg) {
    TCGOp *op, *loads[2] = {NULL, NULL}, *store = NULL;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        TCGOp* load;
        if (op->opc == INDEX_op_insn_start) {
            loads[0] = loads[1] = NULL;
        } else if ((load = load_of_half(op, 0))) {
            loads[0] = load;
        } else if ((load = load_of_half(op, 1))) {
            loads[1] = load, store = op;
        } else if (op->opc == INDEX_op_call && loads[0] && loads[1]) {
            unsigned bytes = operand_bytes(op);
            if (bytes == 16) continue;
            tcg_op_remove(tcg, loads[1]);
            tcg_op_remove(tcg, store);
            if (bytes == 4) {
                const TCGMemOpIdx oi = (TCGMemOpIdx)loads[0]->args[2];
                loads[0]->args[2] = make_memop_idx((get_memop(oi) & ~MO_SIZE) | MO_32, get_mmuidx(oi));
            }
            loads[0] = loads[1] = NULL;
        }
    }
}
