// SPDX-License-Identifier: GPL-2.0-or-later
// LGDT and LIDT of a base that is not canonical: #GP(0), and the register keeps its value (SDM vol. 2A,
// LGDT/LIDT). The engine translates them to plain stores, so the check is put before the store of the base.
// Outside 64-bit mode a base has 32 bits and passes.
#include "../internals.h"
#include "tcg/tcg-op.h"

#include "engine_calls.h"
#include "platform.h"

static void check_base(CPUX86State* env, uint64_t base) {
    if (!cm_is_canonical(base)) raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
}

void cm_check_table_bases(TCGContext* tcg) {
    static HelperInfo info = {check_base, "check_base", 0,
                              dh_sizemask(void, 0) | dh_sizemask(ptr, 1) | dh_sizemask(i64, 2)};
    TCGOp *op, *next;
    QTAILQ_FOREACH_SAFE(op, &tcg->ops, link, next) {
        if (op->opc != INDEX_op_st_i64 || op->args[1] != tcgv_ptr_arg(tcg, tcg->cpu_env)) continue;
        if (op->args[2] != offsetof(CPUX86State, gdt.base) &&
            op->args[2] != offsetof(CPUX86State, idt.base)) {
            continue;
        }
        TCGOp* mark = QTAILQ_LAST(&tcg->ops);
        TCGTemp* args[] = {tcgv_ptr_temp(tcg, tcg->cpu_env), arg_temp(op->args[0])};
        cm_emit_call(tcg, &info, 2, args);
        cm_move_ops_before(tcg, mark, op);
    }
}
