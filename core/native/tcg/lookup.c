// SPDX-License-Identifier: GPL-2.0-or-later
// From one block to the next, when the jump is not a direct one.
//
// The engine's cache has one place for each program counter and loses blocks that share it; behind it comes a
// walk of a hash table. Here a second cache, by another hash, is asked first. The engine's cache is emptied
// whenever a mapping changes; this one is not, and compares the physical page instead.
//
// The same path serves instructions that the engine returns to its main loop for (SYSCALL, IRET, STI, MOV CR
// and the like): an interrupt that became deliverable by one of them is marked in `attention`, and then, and
// only then, the main loop is entered (translate.c).
#include "internals.h"
#include "exec/tb-hash.h"
#include "exec/tb-lookup.h"

static inline unsigned second_hash(target_ulong pc, uint32_t flags) {
    return (unsigned)((pc >> 4) ^ (pc >> 16) ^ (pc << 2) ^ flags * 7) & (CM_SECOND_CACHE - 1);
}

// The compile flags that every block of an engine carries: the number of its cluster, of which there is none.
static inline uint32_t common_cflags(const CPUState* cs) {
    return (uint32_t)cs->cluster_index << CF_CLUSTER_SHIFT & CF_CLUSTER_MASK;
}

static inline bool matches(const CPUState* cs, const TranslationBlock* tb, target_ulong pc,
                           target_ulong cs_base, uint32_t flags) {
    return tb->pc == pc && tb->cs_base == cs_base && tb->flags == flags &&
           (tb->cflags & (CF_HASH_MASK | CF_INVALID)) == common_cflags(cs);
}

static TranslationBlock* second_look(struct cm_engine* engine, CPUX86State* env, target_ulong pc,
                                     target_ulong cs_base, uint32_t flags) {
    const TCGContext* tcg = engine->uc->tcg_ctx;
    if (unlikely(engine->second_flush_count != tcg->tb_ctx.tb_flush_count)) {
        memset(engine->second_cache, 0, sizeof engine->second_cache);  // their memory holds other blocks now
        engine->second_flush_count = tcg->tb_ctx.tb_flush_count;
    }
    TranslationBlock** place = &engine->second_cache[second_hash(pc, flags)];
    TranslationBlock* tb = *place;
    if (tb && matches(engine->cs, tb, pc, cs_base, flags) && tb->page_addr[1] == (tb_page_addr_t)-1) {
        const CPUTLBEntry* entry = tlb_entry(env, cpu_mmu_index(env, true), pc);
        if (entry->addr_code == (pc & TARGET_PAGE_MASK)) {
            const uint64_t offset = pc + entry->addend - (uintptr_t)engine->ram.guest_view;
            if ((offset & TARGET_PAGE_MASK) == tb->page_addr[0]) return tb;
        }
    }
    tb = tb_htable_lookup(engine->cs, pc, cs_base, flags, common_cflags(engine->cs));
    if (tb) *place = tb;
    return tb;
}

// Apart, so that a hit is a leaf function that saves no registers.
static __attribute__((noinline, cold)) const void* missed(CPUX86State* env) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    TranslationBlock* tb = second_look(engine, env, pc, cs_base, flags);
    if (!tb) return env->uc->tcg_ctx->code_gen_epilogue;
    engine->cs->tb_jmp_cache[tb_jmp_cache_hash_func(env->uc, pc)] = tb;
    return tb->tc.ptr;
}

const void* __wrap_helper_lookup_tb_ptr_x86_64(CPUX86State* env) {
    const struct cm_engine* engine = cm_engine_of(env->uc);
    const CPUState* cs = env_cpu(env);
    CM_HIT(helper_lookup_tb_ptr);
    if (unlikely(engine->attention)) return env->uc->tcg_ctx->code_gen_epilogue;
    target_ulong pc, cs_base;
    uint32_t flags;
    cpu_get_tb_cpu_state(env, &pc, &cs_base, &flags);
    const TranslationBlock* tb = cs->tb_jmp_cache[tb_jmp_cache_hash_func(env->uc, pc)];
    if (likely(tb && matches(cs, tb, pc, cs_base, flags))) return tb->tc.ptr;
    return missed(env);
}
