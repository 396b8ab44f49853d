// SPDX-License-Identifier: GPL-2.0-or-later
// What a page walk reads and writes. It sets accessed and dirty bits by compare-and-swap, as hardware does
// (U16).
#include "../internals.h"

uint64_t CM_WRAP(x86_ldq_phys)(CPUState* cs, hwaddr gpa) {
    CM_HIT(x86_ldq_phys);
    const uint8_t* host = cm_ram_pointer(cm_engine_of(cs->uc), gpa, 8);
    // A page table in a hole reads as all ones, like the bus: its entries have reserved bits set.
    return host ? __atomic_load_n((const uint64_t*)host, __ATOMIC_RELAXED) : UINT64_MAX;
}

uint32_t CM_WRAP(x86_ldl_phys)(CPUState* cs, hwaddr gpa) {
    CM_HIT(x86_ldl_phys);
    const uint8_t* host = cm_ram_pointer(cm_engine_of(cs->uc), gpa, 4);
    return host ? __atomic_load_n((const uint32_t*)host, __ATOMIC_RELAXED) : UINT32_MAX;
}

// Used for one purpose: a page walk writes an entry back with its accessed or dirty bit set.
void CM_WRAP(x86_stl_phys_notdirty)(CPUState* cs, hwaddr gpa, uint32_t entry) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(x86_stl_phys_notdirty);
    uint32_t* host = (uint32_t*)cm_ram_pointer(engine, gpa, 4);
    if (!host || cm_region_of(engine, gpa)->at.rom) return;  // the bus drops it
    const uint32_t status = PG_ACCESSED_MASK | PG_DIRTY_MASK;
    // The entry may lie in the code that runs. The walk belongs to an instruction, unless there is no return
    // address (a fetch, the delivery of an event).
    const uintptr_t outer = engine->slow_store;
    engine->slow_store = engine->env->retaddr;
    uint32_t now = __atomic_load_n(host, __ATOMIC_RELAXED);
    do {
        if ((now & ~status) != (entry & ~status)) {
            // Another core changed the entry during the walk: walk again, by repeating the instruction. In
            // the middle of an interrupt's delivery (no return address) the old mapping is used instead, as
            // if the walk had come first; the core that changed it must flush this TLB anyway.
            uintptr_t retaddr = engine->env->retaddr;
            if (retaddr) {
                cs->exception_index = -1;
                cpu_loop_exit_restore(cs, retaddr);
            }
            break;
        }
    } while (!__atomic_compare_exchange_n(host, &now, now | (entry & status), false, __ATOMIC_SEQ_CST,
                                          __ATOMIC_RELAXED));
    engine->slow_store = outer;
}
