// SPDX-License-Identifier: GPL-2.0-or-later
// One translation for all the addresses that its bytes are mapped at.
//
// The engine finds a block by its virtual address. Linux gives each process its libraries at addresses of
// their own, so what was translated for one process would be translated again for the next. Code of user mode
// is therefore translated so that it runs at any address with the same offset in its page: what depends on
// the address is computed from `code base`, the address of the page that runs (x86/code_address.c). Here such
// blocks are found by the page of RAM that they were translated from.
//
// The code base is set wherever translated code is entered other than by a jump that was patched into another
// block: a look-up of a target (lookup.c) and the main loop. Patched jumps stay on their page.
#include "internals.h"
#include "exec/tb-hash.h"
#include "shared_blocks.h"

enum { FEWEST = 1 << 10 };

// A table with open addressing, at most half full. A block that was thrown away keeps its place until the
// table grows, or another one takes it.
struct cm_shared_blocks {
    TranslationBlock** blocks;
    size_t size, used;
    unsigned flushes;  // of all blocks, when the table was last looked at: those in it were there then
};

static size_t first_place(const struct cm_shared_blocks* s, uint64_t ram_address, uint32_t flags) {
    const uint64_t mixed = (ram_address ^ (uint64_t)flags << 40) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(mixed >> 32) & (s->size - 1);
}

static uint64_t ram_address_of(const TranslationBlock* tb) {
    return tb->page_addr[0] | (tb->pc & ~TARGET_PAGE_MASK);
}

static bool is_valid(const TranslationBlock* tb) { return !(tb->cflags & CF_INVALID); }

static void insert(struct cm_shared_blocks* s, TranslationBlock* tb) {
    size_t at = first_place(s, ram_address_of(tb), tb->flags);
    while (s->blocks[at] && is_valid(s->blocks[at])) at = (at + 1) & (s->size - 1);
    s->used += !s->blocks[at];
    s->blocks[at] = tb;
}

static bool grow(struct cm_shared_blocks* s) {
    size_t valid = 0;
    for (size_t i = 0; i < s->size; i++) valid += s->blocks[i] && is_valid(s->blocks[i]);
    const struct cm_shared_blocks old = *s;
    while (s->size < FEWEST || valid * 4 > s->size) s->size = s->size ? s->size * 2 : FEWEST;
    s->blocks = calloc(s->size, sizeof *s->blocks);
    if (!s->blocks) {
        *s = old;
        return false;
    }
    s->used = 0;
    for (size_t i = 0; i < old.size; i++) {
        if (old.blocks[i] && is_valid(old.blocks[i])) insert(s, old.blocks[i]);
    }
    free(old.blocks);
    return true;
}

// After all blocks were thrown away the pointers lead nowhere.
static struct cm_shared_blocks* blocks_of(struct cm_engine* engine) {
    struct cm_shared_blocks* s = engine->shared_blocks;
    const unsigned flushes = engine->uc->tcg_ctx->tb_ctx.tb_flush_count;
    if (!s) {
        s = engine->shared_blocks = calloc(1, sizeof *s);
        if (!s) return NULL;
        s->flushes = flushes;
    }
    if (s->flushes != flushes) {
        free(s->blocks);
        *s = (struct cm_shared_blocks){.flushes = flushes};
    }
    return s;
}

TranslationBlock* cm_shared_block(struct cm_engine* engine, target_ulong pc, uint32_t flags) {
    const uint64_t page = cm_code_page(engine, pc);
    // The fetch may have filled the TLB, and with it changed code.
    const struct cm_shared_blocks* s = blocks_of(engine);
    if (page == UINT64_MAX || !s || !s->size) return NULL;
    const uint64_t ram_address = page << TARGET_PAGE_BITS | (pc & ~TARGET_PAGE_MASK);
    for (size_t at = first_place(s, ram_address, flags); s->blocks[at]; at = (at + 1) & (s->size - 1)) {
        TranslationBlock* tb = s->blocks[at];
        if (tb->flags == flags && ram_address_of(tb) == ram_address && is_valid(tb)) return tb;
    }
    return NULL;
}

void cm_shared_blocks_free(struct cm_engine* engine) {
    if (!engine->shared_blocks) return;
    free(engine->shared_blocks->blocks);
    free(engine->shared_blocks);
}

TranslationBlock* CM_REAL(tb_gen_code)(CPUState* cs, target_ulong pc, target_ulong cs_base, uint32_t flags,
                                       int cflags);

// Called where the engine's own table has no block for the virtual address.
TranslationBlock* CM_WRAP(tb_gen_code)(CPUState* cs, target_ulong pc, target_ulong cs_base, uint32_t flags,
                                       int cflags) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(tb_gen_code);
    if (!engine) return CM_REAL(tb_gen_code)(cs, pc, cs_base, flags, cflags);
    // Other compile flags ask for a block of their own, of one instruction for instance.
    const bool shared = !(cflags & ~CF_CLUSTER_MASK) && cm_shares_block(engine, pc, cs_base, flags);
    TranslationBlock* tb = shared ? cm_shared_block(engine, pc, flags) : NULL;
    if (tb) return tb;
    tb = CM_REAL(tb_gen_code)(cs, pc, cs_base, flags, cflags);
    // The second page of one that runs over its page's end is another one at another address.
    if (!shared || tb->page_addr[0] == (tb_page_addr_t)-1 || tb->page_addr[1] != (tb_page_addr_t)-1)
        return tb;
    struct cm_shared_blocks* s = blocks_of(engine);
    if (s && (s->used * 2 < s->size || grow(s))) insert(s, tb);
    return tb;
}
