// SPDX-License-Identifier: GPL-2.0-or-later
// Blocks that run at any address (shared_blocks.c).
#ifndef COREMESH_TCG_SHARED_BLOCKS_H
#define COREMESH_TCG_SHARED_BLOCKS_H

#include "internals.h"

// Whether a block with this beginning is translated so that it runs wherever its page is mapped: all that
// jumps patched between blocks can join are, or none. Breakpoints are of an address; the engine throws all
// blocks away with each that comes or goes.
static inline bool cm_shares_block(const struct cm_engine* engine, target_ulong pc, target_ulong cs_base,
                                   uint32_t flags) {
    return cm_target_shares_block(pc, cs_base, flags) && QTAILQ_EMPTY(&engine->cs->breakpoints);
}

// The block for `pc` that was translated under whichever address, or NULL. Raises the fault of a fetch.
TranslationBlock* cm_shared_block(struct cm_engine* engine, target_ulong pc, uint32_t flags);
void cm_shared_blocks_free(struct cm_engine* engine);

// The code base: in a word of the CPU's state that the engine has for record and replay, which it lacks;
// translated code reaches it as it reaches the guest's registers.
static inline uint64_t* cm_code_base(CPUState* cs) { return &cs->random_seed; }
static inline void cm_set_code_base(CPUState* cs, target_ulong pc) {
    *cm_code_base(cs) = pc & TARGET_PAGE_MASK;
}
enum { CM_CODE_BASE_OFFSET = (int)offsetof(CPUState, random_seed) - (int)offsetof(ArchCPU, env) };

#endif
