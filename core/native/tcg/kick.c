// SPDX-License-Identifier: GPL-2.0-or-later
// How any thread makes an engine leave translated code: the flag that each block tests at its head.
#include "internals.h"

void cm_engine_kick(cm_engine* engine) {
    // Paired with the loop: it stores 0 here, fences (exceptions.c), and only then reads the mailbox. The
    // mailbox was posted before.
    __atomic_store_n(&cpu_neg(engine->cs)->icount_decr.u16.high, (uint16_t)-1, __ATOMIC_SEQ_CST);
}
