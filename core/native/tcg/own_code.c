// SPDX-License-Identifier: GPL-2.0-or-later
// Code that changes the code behind it, in the block that runs.
//
// "A write to a memory location in a code segment that is currently cached in the processor causes the
// associated cache line to be invalidated", and on Intel a store to the very next instruction is seen (SDM
// vol. 3A, 13.1.3 and 13.6). The first store to a page with translated code faults on the host. When that
// page is the one that the running block was translated from, the instruction that stores is undone and run
// again as a block of its own: the block behind it is then looked up, and made, anew. Any store to the page
// does it, wherever it goes: the page is writable from then on, so a second one, into the block, would not be
// noticed.
//
// An instruction can be undone before its first byte is stored. So a store over two pages asks for write
// access to both before. Which code stores is found from the host instruction that faulted: the block's own
// code, a locked operation (atomics.c), or else a function that is about to store and says so (`slow_store`).
#include <ucontext.h>

#include "internals.h"

// At a store of the code generator's own the state is not in memory: the slow path puts it there, and then
// leaves the block. True when `host_pc` is such a store: before it stands the branch to the slow path, or to
// another look-up that has the distance to the slow path before it (codegen/memory.c).
static bool continue_in_slow_path(cm_engine* engine, const uint8_t* host_pc, ucontext_t* context) {
#ifdef __x86_64__
    const uint8_t* branch_end;
    const uint8_t rex_of_load = host_pc[-4], modrm_of_load = host_pc[-2];
    if (host_pc[-10] == 0x0f && host_pc[-9] == 0x85 && (rex_of_load & 0xfb) == 0x48 && host_pc[-3] == 0x8b &&
        (modrm_of_load & 0xc7) == 0x47 && host_pc[-1] == offsetof(CPUTLBEntry, addend)) {
        branch_end = host_pc - 4;  // jne; mov reg, [rdi + addend]
    } else if (host_pc[-6] == 0x0f && host_pc[-5] == 0x84 && (host_pc[-9] & 0xfa) == 0x48 &&
               host_pc[-8] == 0x85 && host_pc[-7] >> 6 == 3) {
        branch_end = host_pc;  // test reg, reg; je
    } else {
        return false;
    }
    int32_t distance;
    memcpy(&distance, branch_end - 4, 4);
    const uint8_t* target = branch_end + distance;
    memcpy(&distance, target - 4, 4);
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)(target + distance);
    engine->restart_at_store = true;
    return true;
#else
    (void)engine, (void)host_pc, (void)context;
    return false;
#endif
}

// Nothing of the block runs behind the instruction at `from`, a return address.
static bool ends_block(const TranslationBlock* tb, uintptr_t from) {
    uint64_t guest;
    return tb->icount == 1 || cm_instruction_at(tb, from - GETPC_ADJ, &guest) == tb->icount - 1;
}

static _Noreturn void run_alone(cm_engine* engine, uintptr_t from) {
    engine->counters.self_restarts++;
    cpu_restore_state(engine->cs, from, true);
    engine->cs->cflags_next_tb = 1;
    cpu_loop_exit_noexc(engine->cs);
}

void cm_engine_self_write(cm_engine* engine, uintptr_t host_pc, uint64_t ram_offset, void* ucontext) {
    TCGContext* tcg = engine->uc->tcg_ctx;
    const bool in_line = host_pc - (uintptr_t)tcg->code_gen_buffer < tcg->code_gen_buffer_size;
    // Return addresses point behind a call, host_pc at the instruction that faulted: the engine subtracts for
    // the former.
    const uintptr_t from = in_line                                  ? host_pc + GETPC_ADJ
                           : cm_engine_is_locked_operation(host_pc) ? engine->atomic_from
                                                                    : engine->slow_store;
    if (!from || engine->exclusive) return;
    const TranslationBlock* tb = tcg_tb_lookup(tcg, from - GETPC_ADJ);
    // A block that runs over its page's end has one instruction.
    if (!tb || tb->page_addr[0] >> TARGET_PAGE_BITS != ram_offset >> TARGET_PAGE_BITS) return;
    if (ends_block(tb, from)) return;
    if (in_line && continue_in_slow_path(engine, (const uint8_t*)host_pc, ucontext)) return;
    run_alone(engine, from);
}

bool cm_runs_from_page(const struct cm_engine* engine, uintptr_t from, uint64_t ram_page) {
    const TranslationBlock* tb = tcg_tb_lookup(engine->uc->tcg_ctx, from - GETPC_ADJ);
    return tb && tb->page_addr[0] >> TARGET_PAGE_BITS == ram_page;
}

// Writes a byte back as it is: another vCPU may be writing it.
static void ask_for_write(uint8_t* host) {
    if (!host) return;
#ifdef __x86_64__
    __asm__ volatile("lock orb $0, %0" : "+m"(*host) : : "memory");
#else
    __atomic_fetch_or(host, 0, __ATOMIC_SEQ_CST);
#endif
}

void cm_ask_for_both_pages(CPUArchState* env, target_ulong address, int mmu_index, uintptr_t from) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const target_ulong second = (address & TARGET_PAGE_MASK) + TARGET_PAGE_SIZE;
    // Not there, not writable, no RAM or watched: the store itself decides.
    uint8_t* const hosts[] = {tlb_vaddr_to_host(env, address, MMU_DATA_STORE, mmu_index),
                              tlb_vaddr_to_host(env, second, MMU_DATA_STORE, mmu_index)};
    if (!hosts[0] || !hosts[1]) return;
    engine->slow_store = from;
    ask_for_write(hosts[0]);
    ask_for_write(hosts[1]);
    engine->slow_store = 0;
}

void cm_begin_store(CPUArchState* env, target_ulong address, unsigned size, int mmu_index, uintptr_t from) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    if (unlikely(engine->restart_at_store)) {
        engine->restart_at_store = false;
        run_alone(engine, from);
    }
    if (likely((address & ~TARGET_PAGE_MASK) + size <= TARGET_PAGE_SIZE)) {
        engine->slow_store = from;
    } else if (from && !engine->exclusive) {
        cm_ask_for_both_pages(env, address, mmu_index, from);
    }
}

// The stores of helpers. `from` is the return address into translated code, or 0.
#define HELPERS_STORE(letter, T)                                                                         \
    void CM_REAL(cpu_st##letter##_mmuidx_ra)(CPUArchState*, target_ulong, T, int, uintptr_t);            \
    void CM_WRAP(cpu_st##letter##_mmuidx_ra)(CPUArchState * env, target_ulong address, T value,          \
                                             int mmu_index, uintptr_t from) {                            \
        const unsigned size = #letter[0] == 'b' ? 1 : #letter[0] == 'w' ? 2 : #letter[0] == 'l' ? 4 : 8; \
        CM_HIT(cpu_st##letter##_mmuidx_ra);                                                              \
        cm_begin_store(env, address, size, mmu_index, from);                                             \
        CM_REAL(cpu_st##letter##_mmuidx_ra)(env, address, value, mmu_index, from);                       \
        cm_end_store(env);                                                                               \
    }                                                                                                    \
    void CM_WRAP(cpu_st##letter##_data_ra)(CPUArchState * env, target_ulong address, T value,            \
                                           uintptr_t from) {                                             \
        CM_HIT(cpu_st##letter##_data_ra);                                                                \
        CM_WRAP(cpu_st##letter##_mmuidx_ra)(env, address, value, cpu_mmu_index(env, false), from);       \
    }

HELPERS_STORE(b, uint32_t)
HELPERS_STORE(w, uint32_t)
HELPERS_STORE(l, uint32_t)
HELPERS_STORE(q, uint64_t)
