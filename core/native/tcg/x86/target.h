// SPDX-License-Identifier: GPL-2.0-or-later
// The target as the neutral files of ../ see it: each target's folder has a file of this name, with the same
// names in it. Included by internals.h, after the engine's own headers.
#ifndef COREMESH_TCG_TARGET_H
#define COREMESH_TCG_TARGET_H

// The suffix of the library's symbols for this target.
#define CM_SUFFIXED(symbol) symbol##_x86_64
// How the library is opened (unicorn.h).
#define CM_TARGET_ARCH UC_ARCH_X86
#define CM_TARGET_MODE UC_MODE_64
#define CM_TARGET_MODEL UC_CPU_X86_QEMU64
// What the engine asks of the core.
#define cm_core_ops cm_x86_core_ops

struct cm_engine;
struct cm_translation;
struct uc_struct;

// Of each engine, as `target`.
struct cm_target_state {
    struct cm_translation* translation;  // translator.c
    target_ulong int_eip;                // RIP of an INT n whose delivery is under way (exceptions.c)
    uint64_t last_sti;                   // its linear address, or 0 (debug_registers.c)
    bool data_trap;  // a data breakpoint was hit: #DB at the next instruction boundary (watchpoints.c)
    target_ulong split_write;  // the first part of a misaligned write to a watched page (watchpoints.c)
};

// What differs in the linked library from what it was built with, or NULL.
const char* cm_target_compare(struct uc_struct* uc);
// At the opening, in this order: before the engine is used at all; false: no memory. When it is complete.
bool cm_target_prepare(struct cm_engine* engine);
void cm_target_attach(struct cm_engine* engine);
// At the end, whatever came of the opening: frees what the target has allocated.
void cm_target_release(struct cm_engine* engine);
// Between translation and code generation: what the target changes in a block.
void cm_target_mend_block(struct cm_engine* engine, TCGContext* tcg);
// A jump to `pc` was not found in the cache; `from` is where translated code asked. May not return.
void cm_undo_branch(struct cm_engine* engine, uintptr_t from);
static inline void cm_target_check_jump(struct cm_engine* engine, target_ulong pc, uint32_t flags,
                                        uintptr_t from) {
    const int64_t top = (int64_t)pc >> 47;  // canonical: platform.h
    if (unlikely(top != 0 && top != -1) && (flags & HF_CS64_MASK)) cm_undo_branch(engine, from);
}

// Whether code is translated so that it runs at any address (shared_blocks.c): 64-bit code of user mode,
// whose displacements of 32 bits lead neither off the canonical addresses nor near numbers of 32 bits. All
// code of a page, or none.
static inline bool cm_target_shares_block(target_ulong pc, target_ulong cs_base, uint32_t flags) {
    const target_ulong margin = UINT64_C(1) << 33, end = UINT64_C(1) << 47;
    return (flags & HF_CS64_MASK) && (flags >> HF_CPL_SHIFT & 3) == 3 && cs_base == 0 &&
           pc - margin < end - 2 * margin;
}

// Whether a misaligned access of user code is #AC now.
static inline bool cm_checks_alignment(const CPUArchState* env) {
    return (env->eflags & AC_MASK) && (env->cr[0] & CR0_AM_MASK) && (env->hflags & HF_CPL_MASK) == 3;
}

#endif
