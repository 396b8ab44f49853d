// SPDX-License-Identifier: GPL-2.0-or-later
// Which guest instruction is under way, from the host code that runs: for people who ask who uses a page.
// The CPU state is left alone, unlike when an exception asks (cpu_restore_state).
#include "internals.h"
#include "shared_blocks.h"

// Each instruction of a block has left, as differences, its address, a word of the frontend, and where its
// host code ends (behind the block's code).
static int64_t next_difference(const uint8_t** at) {
    uint64_t value = 0;
    unsigned shift = 0;
    uint8_t byte;
    do {
        byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (shift < 64 && (byte & 0x40)) value |= ~UINT64_C(0) << shift;
    return (int64_t)value;
}

int cm_instruction_at(const TranslationBlock* tb, uintptr_t host_pc, uint64_t* guest_pc) {
    const uint8_t* at = (const uint8_t*)tb->tc.ptr + tb->tc.size;
    uintptr_t end = (uintptr_t)tb->tc.ptr;
    *guest_pc = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        *guest_pc += (uint64_t)next_difference(&at);
        for (int word = 1; word < TARGET_INSN_START_WORDS; word++) next_difference(&at);
        end += (uintptr_t)next_difference(&at);
        if (end > host_pc) return i;
    }
    return -1;
}

uint64_t cm_engine_guest_pc(const cm_engine* engine, uintptr_t host_pc) {
    TCGContext* tcg = engine->uc->tcg_ctx;
    if (!host_pc || host_pc - (uintptr_t)tcg->code_gen_buffer >= tcg->code_gen_buffer_size) {
        const bool locked = !host_pc || cm_engine_is_locked_operation(host_pc);
        const uintptr_t called_from = locked ? engine->atomic_from : engine->slow_store;
        if (!called_from) return 0;
        host_pc = called_from - GETPC_ADJ;
    }
    const TranslationBlock* tb = tcg_tb_lookup(tcg, host_pc);
    uint64_t guest_pc;
    if (!tb || cm_instruction_at(tb, host_pc, &guest_pc) < 0) return 0;
    if (!cm_target_shares_block(tb->pc, tb->cs_base, tb->flags)) return guest_pc;
    return *cm_code_base(engine->cs) + (guest_pc & ~TARGET_PAGE_MASK);
}
