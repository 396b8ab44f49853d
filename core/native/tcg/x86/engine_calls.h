// SPDX-License-Identifier: GPL-2.0-or-later
// Calls into our own functions from translated code. To be included after tcg/tcg-op.h.
#ifndef COREMESH_TCG_X86_ENGINE_CALLS_H
#define COREMESH_TCG_X86_ENGINE_CALLS_H

#include "exec/helper-head.h"

// The engine's description of a helper, known to its tcg.c alone (checked by the STMXCSR row of the float
// tests).
typedef struct {
    void* func;
    const char* name;
    unsigned flags;
    unsigned sizemask;
} HelperInfo;

// Emits a call. `info` must outlive the translator.
static inline void cm_emit_call(TCGContext* tcg, HelperInfo* info, int count, TCGTemp** args) {
    if (!g_hash_table_lookup(tcg->helper_table, info->func))
        g_hash_table_insert(tcg->helper_table, info->func, info);
    tcg_gen_callN(tcg, info->func, NULL, count, args);
}

#endif
