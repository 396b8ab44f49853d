// SPDX-License-Identifier: GPL-2.0-or-later
// The list of a block's operations, between its translation and its code generation.
#include "internals.h"

void cm_move_ops_before(TCGContext* tcg, TCGOp* mark, TCGOp* place) {
    TCGOp* op;
    while ((op = QTAILQ_NEXT(mark, link)) != NULL) {
        QTAILQ_REMOVE(&tcg->ops, op, link);
        QTAILQ_INSERT_BEFORE(place, op, link);
    }
}
