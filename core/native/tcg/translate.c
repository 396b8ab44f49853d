// SPDX-License-Identifier: GPL-2.0-or-later
// What is changed in a block between its translation and its code generation.
//
// 1. It is translated for a parallel machine, so that LOCK becomes a host atomic (U1).
// 2. The test for a kick at its head is two host instructions instead of a call (U5).
// 3. Where it would return to the main loop it goes on to the next block (lookup.c).
// 4. A page's bytes are announced to the code-page table before they are read.
// 5. A block on a page that mixes code with hot data is not protected by the page's write protection; instead
//    it compares its own bytes at its head, and ends after its first store, since what follows a store may
//    have been changed by it (SDM vol. 3A 9.1.3).
#include "internals.h"
#include "exec/helper-gen.h"
#include "tcg/tcg-op.h"

void CM_REAL(gen_intermediate_code)(CPUState* cs, TranslationBlock* tb, int max_insns);

static bool is_call_of(const TCGOp* op, const void* function) {
    if (op->opc != INDEX_op_call) return false;
    return (const void*)(uintptr_t)op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op)] == function;
}

static TCGOp* find_head_check(TCGContext* tcg) {
    TCGOp* op;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        if (is_call_of(op, HELPER(check_exit_request))) return op;
    }
    return NULL;
}

// Instructions up to and including the first that stores; 0 when none does.
static int instructions_to_first_store(TCGContext* tcg) {
    int instructions = 0;
    bool stores = false;
    TCGOp* op;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        switch (op->opc) {
            case INDEX_op_insn_start:
                if (stores) return instructions;
                instructions++;
                break;
            case INDEX_op_qemu_st_i32:
            case INDEX_op_qemu_st_i64:
                stores = true;
                break;
            case INDEX_op_call:
                // A helper may store (fxsave, atomics, pushes of a far call): take it as one.
                if (instructions) stores = true;
                break;
            default:
                break;
        }
    }
    return 0;
}

// What a self-checking block was translated from: it may run over the end of its first page. `bytes` is the
// copy that was the same before and after; the page itself may have been written since.
struct source_bytes {
    const uint8_t* at[2];
    unsigned size[2];
    uint8_t bytes[2][TARGET_PAGE_SIZE];
};

static void emit_self_check(TCGContext* tcg, const struct source_bytes* source, TCGLabel* stale) {
    for (int part = 0; part < 2; part++) {
        for (unsigned done = 0; done < source->size[part];) {
            unsigned left = source->size[part] - done;
            unsigned step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            uint64_t expected = 0;
            memcpy(&expected, source->bytes[part] + done, step);
            // A conditional branch ends the basic block, and temporaries with it: all are made anew.
            TCGv_ptr base = tcg_const_ptr(tcg, source->at[part]);
            TCGv_i64 now = tcg_temp_new_i64(tcg);
            switch (step) {
                case 8:
                    tcg_gen_ld_i64(tcg, now, base, done);
                    break;
                case 4:
                    tcg_gen_ld32u_i64(tcg, now, base, done);
                    break;
                case 2:
                    tcg_gen_ld16u_i64(tcg, now, base, done);
                    break;
                default:
                    tcg_gen_ld8u_i64(tcg, now, base, done);
                    break;
            }
            tcg_gen_brcondi_i64(tcg, TCG_COND_NE, now, expected, stale);
            tcg_temp_free_i64(tcg, now);
            tcg_temp_free_ptr(tcg, base);
            done += step;
        }
    }
}

// A block that ends by returning to the main loop goes on to the next block instead, unless an interrupt
// waits: helper_lookup_tb_ptr (lookup.c) then answers with the way to the main loop.
static void chain_returns(TCGContext* tcg) {
    TCGOp *op, *next;
    // Only a block's last instruction leaves it.
    QTAILQ_FOREACH_REVERSE_SAFE(op, &tcg->ops, link, next) {
        if (op->opc == INDEX_op_insn_start) return;
        if (op->opc != INDEX_op_exit_tb || op->args[0] != 0) continue;
        TCGOp* mark = QTAILQ_LAST(&tcg->ops);
        tcg_gen_lookup_and_goto_ptr(tcg);
        cm_move_ops_before(tcg, mark, op);
        tcg_op_remove(tcg, op);
    }
}

static void rewrite_head(struct cm_engine* engine, TranslationBlock* tb, const struct source_bytes* checked) {
    TCGContext* tcg = engine->uc->tcg_ctx;
    cm_target_mend_block(engine, tcg);
    TCGOp* check = find_head_check(tcg);
    TCGOp* last = QTAILQ_LAST(&tcg->ops);  // exit_tb(TB_EXIT_REQUESTED)
    if (!check || last->opc != INDEX_op_exit_tb) return;

    if (!engine->cs->singlestep_enabled) chain_returns(tcg);
    TCGLabel* requested = gen_new_label(tcg);
    TCGLabel* stale = checked ? gen_new_label(tcg) : NULL;
    TCGv_i32 flag = tcg_temp_new_i32(tcg);
    tcg_gen_ld_i32(tcg, flag, tcg->cpu_env, offsetof(ArchCPU, neg.icount_decr.u32) - offsetof(ArchCPU, env));
    tcg_gen_brcondi_i32(tcg, TCG_COND_LT, flag, 0, requested);
    tcg_temp_free_i32(tcg, flag);
    if (checked) emit_self_check(tcg, checked, stale);
    cm_move_ops_before(tcg, last, check);
    tcg_op_remove(tcg, check);

    if (checked) {
        // The call leaves the block for good. It is the engine's own helper, no longer used for its purpose,
        // with a block's place in the code buffer as its second argument.
        gen_set_label(tcg, stale);
        TCGv_ptr uc = tcg_const_ptr(tcg, engine->uc);
        TCGv_i32 place = tcg_const_i32(tcg, (int32_t)((const char*)tb - (const char*)tcg->code_gen_buffer));
        gen_helper_check_exit_request(tcg, uc, place);
        tcg_temp_free_i32(tcg, place);
        tcg_temp_free_ptr(tcg, uc);
    }
    gen_set_label(tcg, requested);
    cm_move_ops_before(tcg, last, last);
}

void CM_WRAP(helper_check_exit_request)(void* unicorn, uint32_t place) {
    struct cm_engine* engine = cm_engine_of(unicorn);
    CM_HIT(helper_check_exit_request);
    TCGContext* tcg = engine->uc->tcg_ctx;
    TranslationBlock* tb = (TranslationBlock*)((char*)tcg->code_gen_buffer + (int32_t)place);
    CPUState* cs = engine->cs;
    cs->cc->synchronize_from_tb(cs, tb);  // nothing of the block has run: its start is the state
    engine->counters.checked_block_misses++;
    tb_phys_invalidate(tcg, tb, -1);
    cpu_loop_exit_noexc(cs);
}

uint64_t cm_code_page(struct cm_engine* engine, target_ulong pc) {
    tb_page_addr_t offset = get_page_addr_code(engine->env, pc);
    return offset == (tb_page_addr_t)-1 ? UINT64_MAX : offset >> TARGET_PAGE_BITS;
}

static void translate(struct cm_engine* engine, TranslationBlock* tb, int max_insns) {
    TCGContext* tcg = engine->uc->tcg_ctx;
    uint32_t cflags = tb->cflags;
    tb->cflags = cflags | CF_PARALLEL;
    tcg->tb_cflags = tb->cflags;
    CM_REAL(gen_intermediate_code)(engine->cs, tb, max_insns);
    tb->cflags = cflags;  // look-ups compare with flags that lack CF_PARALLEL
}

// Translates a block of which some page is mixed, until its bytes were the same before and after.
static void translate_checked(struct cm_engine* engine, TranslationBlock* tb, int max_insns, uint64_t page,
                              uint64_t next_page, struct source_bytes* source) {
    TCGContext* tcg = engine->uc->tcg_ctx;
    const unsigned offset = tb->pc & ~TARGET_PAGE_MASK, room = TARGET_PAGE_SIZE - offset;
    const uint8_t* view = engine->guest_view;
    source->at[0] = view + (page << TARGET_PAGE_BITS) + offset;
    source->at[1] = NULL;
    for (;;) {
        memcpy(source->bytes[0], source->at[0], room);
        if (next_page != UINT64_MAX) {
            source->at[1] = view + (next_page << TARGET_PAGE_BITS);
            memcpy(source->bytes[1], source->at[1], TARGET_PAGE_SIZE);
        }
        tcg_func_start(tcg);
        translate(engine, tb, max_insns);
        int to_store = instructions_to_first_store(tcg);
        if (to_store && to_store < (int)tb->icount) {
            max_insns = to_store;
            continue;
        }
        source->size[0] = tb->size < room ? tb->size : room;
        source->size[1] = tb->size - source->size[0];
        if (source->size[1] && next_page == UINT64_MAX) {
            max_insns = tb->icount > 1 ? (int)tb->icount - 1 : 1;
            if (tb->icount > 1) continue;
            source->size[1] = 0;  // the second half lies in I/O space, which is not kept
        }
        if (memcmp(source->bytes[0], source->at[0], source->size[0]) == 0 &&
            (!source->size[1] || memcmp(source->bytes[1], source->at[1], source->size[1]) == 0)) {
            return;
        }
    }
}

void CM_WRAP(gen_intermediate_code)(CPUState* cs, TranslationBlock* tb, int max_insns) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    TCGContext* tcg = cs->uc->tcg_ctx;
    CM_HIT(gen_intermediate_code);
    engine->counters.translations++;
    cm_note_translation(engine);

    const uint64_t page = engine->code_page = cm_code_page(engine, tb->pc);
    uint64_t next_page = UINT64_MAX;
    bool mixed = page != UINT64_MAX && engine->ops->begin_translation(engine->opaque, page);
    translate(engine, tb, max_insns);
    if (page != UINT64_MAX && (tb->pc & ~TARGET_PAGE_MASK) + tb->size > TARGET_PAGE_SIZE) {
        // Only now is it known that the block runs into a second page, whose bytes were read before the page
        // was announced: announce it and translate again.
        next_page = cm_code_page(engine, (tb->pc & TARGET_PAGE_MASK) + TARGET_PAGE_SIZE);
        if (next_page != UINT64_MAX) mixed |= engine->ops->begin_translation(engine->opaque, next_page);
        tcg_func_start(tcg);
        translate(engine, tb, max_insns);
    }
    if (!mixed) {
        rewrite_head(engine, tb, NULL);
        return;
    }
    struct source_bytes source;
    translate_checked(engine, tb, max_insns, page, next_page, &source);
    rewrite_head(engine, tb, &source);
}
