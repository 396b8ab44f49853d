// SPDX-License-Identifier: GPL-2.0-or-later
// The engine's own headers and the state that the C files of this folder share. Included by them alone.
#ifndef COREMESH_TCG_INTERNALS_H
#define COREMESH_TCG_INTERNALS_H

#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/cpu_ldst.h"
#include "exec/memory.h"
#include "exec/helper-proto.h"
#include "tcg/tcg.h"
#include "uc_priv.h"

#include "tcg/engine.h"
#include CM_TARGET_HEADER  // target.h of the target's folder
#include "wraps.h"

#define CM_TARGETS 8192
#define CM_SECOND_TARGETS_BITS 15

// A request bit that stays set, so that the main loop always asks our cpu_exec_interrupt.
#define CM_PERMANENT_REQUEST CPU_INTERRUPT_HARD

// A region of guest memory, and what the library knows it by.
struct cm_mapped_region {
    struct cm_ram_region at;
    MemoryRegion* region;
};

#define CM_CACHE_LINE 64

// Where a jump leads: a block that begins at `pc` under `flags` (lookup.c). Two to a cache line.
struct cm_target {
    _Alignas(CM_CACHE_LINE / 2) target_ulong pc;
    uint32_t code;  // where it is in the code buffer; 0: none
    uint32_t flags;
    uint32_t epoch;        // of the mappings and of the code, in which it was last found to be so
    uint32_t ram_page;     // the block's page, or UINT32_MAX
    uint32_t block;        // where it is in the code buffer
    uint32_t thrown_away;  // how many blocks were so, when this one was last seen not to be
};

struct cm_engine {
    uc_engine* uc;
    CPUState* cs;
    CPUArchState* env;
    const struct cm_vcpu_ops* ops;
    void* opaque;
    const struct cm_core_ops* core_ops;  // the target's (target.h)
    void* core;
    uint8_t* guest_view;  // as of cm_ram_layout
    uint64_t ram_size;
    const uint8_t* page_access;  // the same; NULL: no other host has this RAM
    unsigned nb_regions;
    MemoryRegion* hole_region;
    bool shutdown;                  // the core cannot go on; on x86 a triple fault
    char abort_text[96];            // why the engine gave up, or empty
    struct cm_target_state target;  // what only the files of the target's folder use (target.h)
    bool restart_at_store;          // leave the block before its next store (cm_engine_self_write)
    uintptr_t slow_store;           // where translated code called a helper that stores now, or 0
    bool exclusive;                 // the other vCPUs are stopped: no instruction may be undone (atomics.c)
    uintptr_t atomic_from;          // where it called the last locked operation (atomics.c)
    struct cm_codegen* codegen;     // codegen/codegen.c; made at the first translation
    struct cm_shared_blocks* shared_blocks;  // shared_blocks.c; the same
    uint64_t code_page;                      // where the block that is translated begins, or UINT64_MAX
    // An interrupt is pending that could not be taken when it was last looked at: look again in the main loop
    // after every instruction that may have opened the window. Written and read by the engine's thread.
    bool attention;
    unsigned code_flushes;     // how often all blocks had been thrown away at the last translation
    unsigned targets_flushes;  // the same at the last miss (lookup.c)
    // Read by each look-up of a target. Grows with each page flushed from the TLB; the top bit is
    // `attention`.
    _Alignas(CM_CACHE_LINE) uint32_t own_epoch;
    _Alignas(CM_CACHE_LINE) struct cm_target targets[CM_TARGETS];
    struct cm_target second_targets[1 << CM_SECOND_TARGETS_BITS];  // their epoch has no meaning
    // Largest first: that is where most addresses are.
    struct cm_mapped_region regions[CM_RAM_REGIONS];
    struct cm_engine_counters counters;
    void* allocation;  // this struct, before it was aligned
};

// The engine of a uc_struct: kept in a word that Unicorn uses on Windows only (the self-check looks at it).
static inline struct cm_engine* cm_engine_of(const struct uc_struct* uc) {
    return (struct cm_engine*)uc->qemu_thread_data;
}

// The region that a guest-physical address is in, or NULL.
static inline const struct cm_mapped_region* cm_region_of(const struct cm_engine* engine, uint64_t gpa) {
    for (unsigned i = 0; i < engine->nb_regions; i++) {
        const struct cm_mapped_region* region = &engine->regions[i];
        // Below it, the difference wraps to a large number.
        if (gpa - region->at.gpa < region->at.bytes) return region;
    }
    return NULL;
}

// Where `size` bytes at a guest-physical address are, all of them in one region, or NULL.
static inline uint8_t* cm_ram_pointer(const struct cm_engine* engine, uint64_t gpa, unsigned size) {
    const struct cm_mapped_region* region = cm_region_of(engine, gpa);
    if (!region || region->at.bytes - (gpa - region->at.gpa) < size) return NULL;
    return engine->guest_view + region->at.offset + (gpa - region->at.gpa);
}

// What a guest access asks for in its MemOp beyond what the engine knows of (x86/accesses.c): a load of what
// will be stored to; the first half of two accesses that follow each other; an alignment of 16 bytes that is
// #AC, if alignment is checked, where it is #GP without this.
enum { CM_MO_WRITTEN = 1 << 8, CM_MO_PAIR = 1 << 9, CM_MO_CHECKED = 1 << 10 };

// Raises what an access with such bits, or with an alignment, has to raise; returns if it may be made.
void cm_check_access(CPUArchState* env, target_ulong address, TCGMemOpIdx oi, MMUAccessType kind,
                     uintptr_t from);
void cm_memory_attach(struct cm_engine* engine);

// Whether to come back to the main loop from the next look-up of a target, for `attention` (lookup.c).
void cm_look_at_requests(struct cm_engine* engine, bool wanted);
// At each translation of a block (lookup.c).
void cm_note_translation(struct cm_engine* engine);

// Around a store that is not translated code's own, `from` being the return address into it (own_code.c).
void cm_begin_store(CPUArchState* env, target_ulong address, unsigned size, int mmu_index, uintptr_t from);
static inline void cm_end_store(CPUArchState* env) { cm_engine_of(env->uc)->slow_store = 0; }
// Before a store over two pages that `from` must not be undone in the midst of.
void cm_ask_for_both_pages(CPUArchState* env, target_ulong address, int mmu_index, uintptr_t from);
// Whether the block with the return address `from` was translated from this page of RAM.
bool cm_runs_from_page(const struct cm_engine* engine, uintptr_t from, uint64_t ram_page);
// The number of the instruction at `host_pc` in its block, and its guest-virtual address; -1: none (place.c).
int cm_instruction_at(const TranslationBlock* tb, uintptr_t host_pc, uint64_t* guest_pc);
// The page of RAM that code at `pc` is fetched from, or UINT64_MAX; raises the fault of a fetch
// (translate.c).
uint64_t cm_code_page(struct cm_engine* engine, target_ulong pc);
// Moves the ops emitted after `mark` in front of `place`, in order (op_list.c).
void cm_move_ops_before(TCGContext* tcg, TCGOp* mark, TCGOp* place);

// Names of the library carry the target's suffix. The target's header of the library renames ours in the same
// way, so the pair that --wrap expects is spelled out here once. CM_REAL(f) calls the engine's own f.
#define CM_WRAP(symbol) CM_SUFFIXED(__wrap_##symbol)
#define CM_REAL(symbol) CM_SUFFIXED(__real_##symbol)

#endif
