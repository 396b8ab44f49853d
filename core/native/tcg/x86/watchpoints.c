// SPDX-License-Identifier: GPL-2.0-or-later
// Data breakpoints (SDM vol. 3B, 18.2.4): the debug registers keep their list of watched ranges here.
//
// A page that holds one is marked in the TLB (memory.c), and each access to it comes by. The trap belongs
// after the instruction. So an instruction that hits in the midst of a block is undone before its access, and
// run again as a block of its own; an access from such a block only leaves a note, and the main loop, which
// is asked for at the next block head, raises #DB. Nothing else is kept from the one run to the other: an
// interrupt or a fault may come between.
//
// An aligned access is matched exactly, as is any that writes. The engine reads a misaligned operand as the
// two aligned ones around it, so such a read may hit a neighbour too.
#include "../internals.h"
#include "watchpoints.h"

static bool overlaps(const CPUWatchpoint* watched, vaddr addr, vaddr length) {
    return length && addr <= watched->vaddr + watched->len - 1 && watched->vaddr <= addr + length - 1;
}

int CM_WRAP(cpu_watchpoint_insert)(CPUState* cs, vaddr addr, vaddr length, int flags, CPUWatchpoint** out) {
    CM_HIT(cpu_watchpoint_insert);
    CPUWatchpoint* watched = calloc(1, sizeof *watched);
    if (!watched) return -1;
    watched->vaddr = addr & ~(length - 1);  // the low bits of the address register are not looked at
    watched->len = length;
    watched->flags = flags;
    QTAILQ_INSERT_TAIL(&cs->watchpoints, watched, entry);
    tlb_flush_page(cs, (target_ulong)watched->vaddr);
    *out = watched;
    return 0;
}

void CM_WRAP(cpu_watchpoint_remove_by_ref)(CPUState* cs, CPUWatchpoint* watched) {
    CM_HIT(cpu_watchpoint_remove_by_ref);
    QTAILQ_REMOVE(&cs->watchpoints, watched, entry);
    tlb_flush_page(cs, (target_ulong)watched->vaddr);
    free(watched);
}

void CM_WRAP(cpu_watchpoint_remove_all)(CPUState* cs, int flags) {
    CPUWatchpoint *watched, *next;
    CM_HIT(cpu_watchpoint_remove_all);
    QTAILQ_FOREACH_SAFE(watched, &cs->watchpoints, entry, next) {
        if (watched->flags & flags) CM_WRAP(cpu_watchpoint_remove_by_ref)(cs, watched);
    }
}

int CM_WRAP(cpu_watchpoint_address_matches)(CPUState* cs, vaddr addr, vaddr length) {
    CPUWatchpoint* watched;
    int flags = 0;
    CM_HIT(cpu_watchpoint_address_matches);
    QTAILQ_FOREACH(watched, &cs->watchpoints, entry) {
        if (overlaps(watched, addr, length)) flags |= watched->flags;
    }
    return flags;
}

// A misaligned write is announced in two parts, on either side of a page's end. Within one page the engine
// mistakes the length of the first and the start of the second: the first comes with minus its offset in the
// page, the second begins with the page. True when that was the first.
static bool mend_split_write(struct cm_engine* engine, vaddr* addr, vaddr* length) {
    const vaddr offset = *addr & ~TARGET_PAGE_MASK;
    if (offset && *length == (vaddr)0 - offset) {
        engine->target.split_write = *addr;
        return true;
    }
    if (engine->target.split_write && !offset && *addr == (engine->target.split_write & TARGET_PAGE_MASK)) {
        *length = *addr + *length - engine->target.split_write;
        *addr = engine->target.split_write;
    }
    engine->target.split_write = 0;
    return false;
}

void CM_WRAP(cpu_check_watchpoint)(CPUState* cs, vaddr addr, vaddr length, MemTxAttrs attrs, int access,
                                   uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CPUWatchpoint* watched;
    (void)attrs;
    CM_HIT(cpu_check_watchpoint);
    if (access == BP_MEM_WRITE && mend_split_write(engine, &addr, &length)) return;
    QTAILQ_FOREACH(watched, &cs->watchpoints, entry) {
        if (!(watched->flags & access) || !overlaps(watched, addr, length)) continue;
        const TranslationBlock* tb = tcg_tb_lookup(cs->uc->tcg_ctx, ra);
        if (tb && tb->icount > 1) {
            cs->uc->size_recur_mem = 0;  // the engine may be half-way through a misaligned read
            cpu_restore_state(cs, ra, true);
            cs->cflags_next_tb = 1;
            cpu_loop_exit_noexc(cs);
        }
        // Without a block it is the delivery of an event that writes its frame.
        watched->flags |= access == BP_MEM_READ ? BP_WATCHPOINT_HIT_READ : BP_WATCHPOINT_HIT_WRITE;
        engine->target.data_trap = true;
    }
    if (engine->target.data_trap) cm_engine_kick(engine);
}

void cm_data_trap_raise(struct cm_engine* engine) {
    CPUState* cs = engine->cs;
    CPUWatchpoint* watched;
    engine->target.data_trap = false;
    QTAILQ_FOREACH(watched, &cs->watchpoints, entry) {
        if (!(watched->flags & BP_WATCHPOINT_HIT)) continue;
        cs->watchpoint_hit = watched;
        cs->cc->debug_excp_handler(cs);  // sets DR6 and does not return
    }
}

void cm_data_trap_forget(struct cm_engine* engine) {
    CPUWatchpoint* watched;
    engine->target.data_trap = false;
    QTAILQ_FOREACH(watched, &engine->cs->watchpoints, entry) { watched->flags &= ~BP_WATCHPOINT_HIT; }
}
