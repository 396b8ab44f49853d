// SPDX-License-Identifier: GPL-2.0-or-later
// Indirect-jump target cache.
//
// The engine's cache loses everything whenever a mapping changes, as at each change of address space, and a
// hit reads the block itself, which is cold. Here a cache of our own has in one entry all that a hit needs.
// It is not emptied when a mapping changes or a block is thrown away: an entry made before asks the TLB
// whether its page is still the same, and the block whether it was thrown away. What was driven out by
// another target is found in a second, larger cache before the engine's table is asked, whose chains are
// cold. When all blocks are thrown away, so are both caches.
//
// The same path serves instructions that the engine returns to its main loop for (SYSCALL, IRET, STI, MOV CR
// and the like): an interrupt that became deliverable by one of them is marked in `attention`, and then, and
// only then, the main loop is entered (translate.c).
#include "internals.h"
#include "shared_blocks.h"
#include "exec/tb-hash.h"
#include "exec/tb-lookup.h"

static inline struct cm_target* place_of(struct cm_engine* engine, target_ulong pc) {
    return &engine->targets[(pc ^ pc >> 13) & (CM_TARGETS - 1)];
}

// Where a target is looked for when another one has taken its place, or the same code under other flags:
// kernel code with and without AC, for one. It holds many more than the first, which stays in the host's
// cache.
static inline struct cm_target* second_place_of(struct cm_engine* engine, target_ulong pc, uint32_t flags) {
    const uint64_t mixed = (pc ^ (uint64_t)flags << 32) * UINT64_C(0x9e3779b97f4a7c15);
    return &engine->second_targets[mixed >> (64 - CM_SECOND_TARGETS_BITS)];
}

// A block or its code, in four bytes.
static inline uint32_t number_of(const TCGContext* tcg, const void* at) {
    return (uint32_t)((const char*)at - (const char*)tcg->code_gen_buffer);
}

static inline const void* in_buffer(const TCGContext* tcg, uint32_t number) {
    return (const char*)tcg->code_gen_buffer + number;
}

// The block itself is cold, and is only asked where any was thrown away since.
static inline bool is_thrown_away(const TCGContext* tcg, struct cm_target* target) {
    const uint32_t all = (uint32_t)tcg->tb_phys_invalidate_count;
    if (likely(target->thrown_away == all)) return false;
    if (((const TranslationBlock*)in_buffer(tcg, target->block))->cflags & CF_INVALID) return true;
    target->thrown_away = all;
    return false;
}

// What a hit compares, one number for the mappings, for the code and for `attention`. Its parts only grow, so
// it is as before when all of them are. The count of flushes of all blocks is not among them: after one a
// block is translated before any runs, which changes own_epoch.
static inline uint32_t target_epoch(const struct cm_engine* engine, CPUArchState* env) {
    const CPUTLBCommon* tlb = &env_tlb(env)->c;
    return (uint32_t)(tlb->full_flush_count + tlb->part_flush_count) + engine->own_epoch +
           (uint32_t)env->uc->tcg_ctx->tb_phys_invalidate_count;
}

void cm_look_at_requests(struct cm_engine* engine, bool wanted) {
    const uint32_t top = 1u << 31;  // no target was found in such an epoch
    engine->attention = wanted;
    engine->own_epoch = (engine->own_epoch & ~top) | (wanted ? top : 0);
}

void cm_note_translation(struct cm_engine* engine) {
    const unsigned flushes = engine->uc->tcg_ctx->tb_ctx.tb_flush_count;
    if (engine->code_flushes == flushes) return;
    engine->code_flushes = flushes;
    engine->own_epoch++;
}

// The compile flags that every block of an engine carries: the number of its cluster, of which there is none.
static inline uint32_t common_cflags(const CPUState* cs) {
    return (uint32_t)cs->cluster_index << CF_CLUSTER_SHIFT & CF_CLUSTER_MASK;
}

// Whether the block that was found there before is what runs at its address now.
static bool leads_there(struct cm_engine* engine, struct cm_target* target, target_ulong pc, uint32_t flags) {
    if (!target->code || target->pc != pc || target->flags != flags) return false;
    CPUArchState* env = engine->env;
    const TCGContext* tcg = env->uc->tcg_ctx;
    if (is_thrown_away(tcg, target)) return false;
    const CPUTLBEntry* entry = tlb_entry(env, cpu_mmu_index(env, true), pc);
    if (entry->addr_code == (pc & TARGET_PAGE_MASK)) {
        const uint64_t offset = pc + entry->addend - (uintptr_t)engine->guest_view;
        return offset >> TARGET_PAGE_BITS == target->ram_page;
    }
    // The TLB was emptied since. Filling it may set a bit in a page table that is code too.
    return cm_code_page(engine, pc) == target->ram_page && !is_thrown_away(tcg, target);
}

// Apart, so that a hit is a leaf function that saves no registers. Called as a jump: the return address is
// the translated code's.
static __attribute__((noinline, cold)) const void* missed(CPUArchState* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const TCGContext* tcg = env->uc->tcg_ctx;
    CM_HIT(helper_lookup_tb_ptr);  // here: the first look-up of a target always misses
    if (unlikely(engine->attention)) return tcg->code_gen_epilogue;
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    cm_target_check_jump(engine, pc, flags, GETPC());
    if (unlikely(engine->targets_flushes != tcg->tb_ctx.tb_flush_count)) {
        memset(engine->targets, 0, sizeof engine->targets);
        memset(engine->second_targets, 0, sizeof engine->second_targets);
        engine->targets_flushes = tcg->tb_ctx.tb_flush_count;
    }
    struct cm_target* place = place_of(engine, pc);
    struct cm_target* second = second_place_of(engine, pc, flags);
    if (cs_base == 0) {
        if (leads_there(engine, place, pc, flags)) {
            place->epoch = target_epoch(engine, env);
            cm_set_code_base(engine->cs, pc);
            return in_buffer(tcg, place->code);
        }
        if (leads_there(engine, second, pc, flags)) {
            *place = *second;
            place->epoch = target_epoch(engine, env);
            cm_set_code_base(engine->cs, pc);
            return in_buffer(tcg, place->code);
        }
    }
    TranslationBlock* tb =
        cm_shares_block(engine, pc, cs_base, flags) ? cm_shared_block(engine, pc, flags) : NULL;
    if (!tb) tb = tb_htable_lookup(engine->cs, pc, cs_base, flags, common_cflags(engine->cs));
    if (!tb) return tcg->code_gen_epilogue;
    if (cs_base == 0) {
        place->pc = pc;
        place->code = number_of(tcg, tb->tc.ptr);
        place->flags = flags;
        place->block = number_of(tcg, tb);
        place->thrown_away = (uint32_t)tcg->tb_phys_invalidate_count;
        // A block of two pages is found again only as long as no mapping changes.
        place->ram_page = tb->page_addr[1] == (tb_page_addr_t)-1
                              ? (uint32_t)(tb->page_addr[0] >> TARGET_PAGE_BITS)
                              : UINT32_MAX;
        *second = *place;
        // The look-up may have filled the TLB, and flushed it to grow: its epoch is read after it.
        place->epoch = target_epoch(engine, env);
    }
    cm_set_code_base(engine->cs, pc);
    return tb->tc.ptr;
}

const void* CM_WRAP(helper_lookup_tb_ptr)(CPUArchState* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    const struct cm_target* place = place_of(engine, pc);
    if (likely(place->pc == pc && place->flags == flags && place->epoch == target_epoch(engine, env) &&
               cs_base == 0 && place->code)) {
        cm_set_code_base(engine->cs, pc);
        return in_buffer(env->uc->tcg_ctx, place->code);
    }
    return missed(env);
}

void CM_REAL(tlb_flush_page)(CPUState* cs, target_ulong address);

void CM_WRAP(tlb_flush_page)(CPUState* cs, target_ulong address) {
    CM_HIT(tlb_flush_page);
    cm_engine_of(cs->uc)->own_epoch++;
    CM_REAL(tlb_flush_page)(cs, address);
}
