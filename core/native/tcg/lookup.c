// SPDX-License-Identifier: GPL-2.0-or-later
// Indirect-jump target cache.
//
// The engine's cache loses everything whenever a mapping changes, as at each change of address space, and a
// hit reads the block itself, which is cold. Here a cache of our own has in one entry all that a hit needs.
// It is not emptied when a mapping changes: an entry made before asks the TLB whether its page is still the
// same. When a block was thrown away (the engine counts that) the whole cache is.
//
// The same path serves instructions that the engine returns to its main loop for (SYSCALL, IRET, STI, MOV CR
// and the like): an interrupt that became deliverable by one of them is marked in `attention`, and then, and
// only then, the main loop is entered (translate.c).
#include "internals.h"
#include "exec/tb-hash.h"
#include "exec/tb-lookup.h"

static inline struct cm_target* place_of(struct cm_engine* engine, target_ulong pc) {
    return &engine->targets[(pc ^ pc >> 13) & (CM_TARGETS - 1)];
}

// Changes with every change of a mapping.
static inline uint32_t mapping_epoch(const struct cm_engine* engine, CPUArchState* env) {
    const CPUTLBCommon* tlb = &env_tlb(env)->c;
    return (uint32_t)(tlb->full_flush_count + tlb->part_flush_count) + engine->pages_flushed;
}

// Changes when blocks are thrown away. After a flush of all of them one is translated before any runs.
static inline uint32_t code_epoch(const TCGContext* tcg) {
    return (uint32_t)tcg->tb_phys_invalidate_count + (tcg->tb_ctx.tb_flush_count << 16);
}

// What a hit compares, one number for both. Its parts only grow, so it is as before when all of them are.
static inline uint32_t target_epoch(const struct cm_engine* engine, CPUArchState* env) {
    return mapping_epoch(engine, env) + code_epoch(env->uc->tcg_ctx);
}

// The compile flags that every block of an engine carries: the number of its cluster, of which there is none.
static inline uint32_t common_cflags(const CPUState* cs) {
    return (uint32_t)cs->cluster_index << CF_CLUSTER_SHIFT & CF_CLUSTER_MASK;
}

static bool is_mapped(const struct cm_engine* engine, CPUArchState* env, target_ulong pc, uint32_t ram_page) {
    const CPUTLBEntry* entry = tlb_entry(env, cpu_mmu_index(env, true), pc);
    if (entry->addr_code != (pc & TARGET_PAGE_MASK)) return false;
    const uint64_t offset = pc + entry->addend - (uintptr_t)engine->guest_view;
    return offset >> TARGET_PAGE_BITS == ram_page;
}

// Apart, so that a hit is a leaf function that saves no registers. Called as a jump: the return address is
// the translated code's.
static __attribute__((noinline, cold)) const void* missed(CPUArchState* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const TCGContext* tcg = env->uc->tcg_ctx;
    CM_HIT(helper_lookup_tb_ptr);  // here: the first look-up of a target always misses
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    cm_target_check_jump(engine, pc, flags, GETPC());
    if (engine->targets_code_epoch != code_epoch(tcg)) {
        memset(engine->targets, 0, sizeof engine->targets);
        engine->targets_code_epoch = code_epoch(tcg);
    }
    struct cm_target* place = place_of(engine, pc);
    if (place->code && place->pc == pc && place->flags == flags && cs_base == 0 &&
        is_mapped(engine, env, pc, place->ram_page)) {
        place->epoch = target_epoch(engine, env);
        return place->code;
    }
    TranslationBlock* tb = tb_htable_lookup(engine->cs, pc, cs_base, flags, common_cflags(engine->cs));
    if (!tb) return tcg->code_gen_epilogue;
    if (cs_base == 0) {
        place->pc = pc;
        place->code = tb->tc.ptr;
        place->flags = flags;
        // The look-up may have filled the TLB, and flushed it to grow: its epoch is read after it. A block of
        // two pages is found again only as long as no mapping changes.
        place->epoch = target_epoch(engine, env);
        place->ram_page = tb->page_addr[1] == (tb_page_addr_t)-1
                              ? (uint32_t)(tb->page_addr[0] >> TARGET_PAGE_BITS)
                              : UINT32_MAX;
    }
    return tb->tc.ptr;
}

const void* CM_WRAP(helper_lookup_tb_ptr)(CPUArchState* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    if (unlikely(engine->attention)) return env->uc->tcg_ctx->code_gen_epilogue;
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    const struct cm_target* place = place_of(engine, pc);
    if (likely(place->pc == pc && place->flags == flags && place->epoch == target_epoch(engine, env) &&
               cs_base == 0 && place->code)) {
        return place->code;
    }
    return missed(env);
}

void CM_REAL(tlb_flush_page)(CPUState* cs, target_ulong address);

void CM_WRAP(tlb_flush_page)(CPUState* cs, target_ulong address) {
    CM_HIT(tlb_flush_page);
    cm_engine_of(cs->uc)->pages_flushed++;
    CM_REAL(tlb_flush_page)(cs, address);
}
