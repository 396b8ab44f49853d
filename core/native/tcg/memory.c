// SPDX-License-Identifier: GPL-2.0-or-later
// Guest memory as the engine's soft MMU sees it.
//
// RAM is one host mapping, so an address is translated by a comparison instead of a walk over memory regions
// (U13), and a page of code is guarded by the host's page protection instead of the NOTDIRTY slow path (U11).
#include "internals.h"

static MemoryRegion* region_of(struct uc_struct* uc, hwaddr gpa) {
    struct cm_engine* engine = cm_engine_of(uc);
    const struct cm_mapped_region* region = cm_region_of(engine, gpa);
    return region ? region->region : engine->hole_region;
}

void cm_memory_attach(struct cm_engine* engine) { engine->uc->memory_mapping = region_of; }

void CM_REAL(tlb_set_page_with_attrs)(CPUState* cs, target_ulong vaddr, hwaddr gpa, MemTxAttrs attrs,
                                      int prot, int mmu_idx, target_ulong size);

// The area that a flush of one large page must take with it: grown to hold each large page that was entered.
static void note_large_page(CPUTLBDesc* desc, target_ulong vaddr, target_ulong size) {
    if (desc->large_page_addr == (target_ulong)-1) {
        desc->large_page_mask = ~(size - 1);
        desc->large_page_addr = vaddr & desc->large_page_mask;
        return;
    }
    target_ulong mask = desc->large_page_mask & ~(size - 1);
    while ((desc->large_page_addr ^ vaddr) & mask) mask <<= 1;
    desc->large_page_mask = mask;
    desc->large_page_addr &= mask;
}

static bool maps_page(const CPUTLBEntry* entry, target_ulong page) {
    const target_ulong keep = TARGET_PAGE_MASK | TLB_INVALID_MASK;
    return (entry->addr_read & keep) == page || (entry->addr_write & keep) == page ||
           (entry->addr_code & keep) == page;
}

static bool is_empty(const CPUTLBEntry* entry) {
    return entry->addr_read == (target_ulong)-1 && entry->addr_write == (target_ulong)-1 &&
           entry->addr_code == (target_ulong)-1;
}

// The engine resizes a TLB only when it is flushed, and code that never flushes (a decompressor, a loop over
// much memory) thrashes in a small one. After as many evictions as it has entries it is flushed for that.
static void grow_when_thrashing(CPUState* cs, CPUTLBDesc* desc, const CPUTLBDescFast* fast, int mmu_idx) {
    const size_t most = 1u << 14;
    const size_t entries = (fast->mask >> CPU_TLB_ENTRY_BITS) + 1;
    if (likely(desc->vindex < entries) || entries >= most) return;
    desc->window_max_entries = entries;  // what the engine's own rule for doubling looks at
    tlb_flush_by_mmuidx(cs, (uint16_t)(1u << mmu_idx));
}

void CM_WRAP(tlb_set_page_with_attrs)(CPUState* cs, target_ulong vaddr, hwaddr gpa, MemTxAttrs attrs,
                                      int prot, int mmu_idx, target_ulong size) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(tlb_set_page_with_attrs);
    const struct cm_mapped_region* region = cm_region_of(engine, gpa);
    if (!region || size < TARGET_PAGE_SIZE) {
        CM_REAL(tlb_set_page_with_attrs)(cs, vaddr, gpa, attrs, prot, mmu_idx, size);
        if (region) {
            CPUTLBEntry* entry = tlb_entry(engine->env, mmu_idx, vaddr & TARGET_PAGE_MASK);
            if (entry->addr_write != (target_ulong)-1) entry->addr_write &= ~(target_ulong)TLB_NOTDIRTY;
        }
        return;
    }
    const uint64_t offset = region->at.offset + ((gpa & TARGET_PAGE_MASK) - region->at.gpa);
    CPUArchState* env = engine->env;
    CPUTLB* tlb = env_tlb(env);
    CPUTLBDesc* desc = &tlb->d[mmu_idx];
    const target_ulong page = vaddr & TARGET_PAGE_MASK;
    grow_when_thrashing(cs, desc, &tlb->f[mmu_idx], mmu_idx);
    if (size > TARGET_PAGE_SIZE) note_large_page(desc, page, size);
    tlb->c.dirty |= 1 << mmu_idx;

    // No second copy of the page may stay among the victims.
    for (int i = 0; i < CPU_VTLB_SIZE; i++) {
        if (maps_page(&desc->vtable[i], page)) {
            memset(&desc->vtable[i], -1, sizeof desc->vtable[i]);
            tlb->d[mmu_idx].n_used_entries--;
        }
    }
    uintptr_t index = tlb_index(env, mmu_idx, page);
    CPUTLBEntry* entry = tlb_entry(env, mmu_idx, page);
    if (!is_empty(entry) && !maps_page(entry, page)) {
        unsigned victim = desc->vindex++ % CPU_VTLB_SIZE;
        desc->vtable[victim] = *entry;
        desc->viotlb[victim] = desc->iotlb[index];
        desc->n_used_entries--;
    }
    desc->iotlb[index].addr = offset - page;
    desc->iotlb[index].attrs = attrs;
    entry->addend = (uintptr_t)engine->guest_view + offset - page;
    entry->paddr = gpa & TARGET_PAGE_MASK;
    entry->addr_read = prot & PAGE_READ ? page : (target_ulong)-1;
    entry->addr_code = prot & PAGE_EXEC ? page : (target_ulong)-1;
    entry->addr_write = prot & PAGE_WRITE ? page : (target_ulong)-1;
    if (unlikely(region->at.stores_elsewhere) && (prot & PAGE_WRITE)) {
        // The store goes to memory_region_dispatch_write, by the region with index 0, which begins at 0: the
        // offset in it is the guest-physical address.
        entry->addr_write |= TLB_MMIO;
        desc->iotlb[index].addr = (gpa & TARGET_PAGE_MASK) - page;
    } else if (unlikely(region->at.rom) && (prot & PAGE_WRITE)) {
        // A store to ROM takes the slow path, and ends there.
        entry->addr_write |= TLB_DISCARD_WRITE;
    }
    if (unlikely(!QTAILQ_EMPTY(&cs->watchpoints))) {
        const int watched = cpu_watchpoint_address_matches(cs, page, TARGET_PAGE_SIZE);
        // What may be written without a look at it may be read so too (codegen/memory.c).
        if ((watched & BP_MEM_READ) && (prot & PAGE_READ)) entry->addr_read |= TLB_WATCHPOINT;
        if (watched && (prot & PAGE_WRITE)) entry->addr_write |= TLB_WATCHPOINT;
    }
    desc->n_used_entries++;
}

// Translated pages are not marked in the TLB: nothing to reset, nothing to set.
void CM_WRAP(tlb_reset_dirty_by_vaddr)(CPUState* cs, target_ulong start, target_ulong length) {
    (void)cs, (void)start, (void)length;
    CM_HIT(tlb_reset_dirty_by_vaddr);
}

ram_addr_t CM_REAL(qemu_ram_addr_from_host)(struct uc_struct* uc, void* host);

ram_addr_t CM_WRAP(qemu_ram_addr_from_host)(struct uc_struct* uc, void* host) {
    struct cm_engine* engine = cm_engine_of(uc);
    CM_HIT(qemu_ram_addr_from_host);
    uint64_t offset = (uint64_t)((uint8_t*)host - engine->guest_view);
    return offset < engine->ram_size ? offset : CM_REAL(qemu_ram_addr_from_host)(uc, host);
}

static uint64_t gpa_of(const struct cm_engine* engine, const MemoryRegion* region, hwaddr offset) {
    (void)engine;
    return region->addr + offset;
}

MemTxResult CM_WRAP(memory_region_dispatch_read)(struct uc_struct* uc, MemoryRegion* region, hwaddr offset,
                                                 uint64_t* value, MemOp op, MemTxAttrs attrs) {
    struct cm_engine* engine = cm_engine_of(uc);
    (void)attrs;
    CM_HIT(memory_region_dispatch_read);
    *value = engine->ops->mmio_read(engine->opaque, gpa_of(engine, region, offset), memop_size(op));
    return MEMTX_OK;
}

MemTxResult CM_WRAP(memory_region_dispatch_write)(struct uc_struct* uc, MemoryRegion* region, hwaddr offset,
                                                  uint64_t value, MemOp op, MemTxAttrs attrs) {
    struct cm_engine* engine = cm_engine_of(uc);
    (void)attrs;
    CM_HIT(memory_region_dispatch_write);
    engine->ops->mmio_write(engine->opaque, gpa_of(engine, region, offset), memop_size(op), value);
    return MEMTX_OK;
}

void cm_engine_steer(cm_engine* engine, const struct cm_ram_region* regions, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        for (unsigned k = 0; k < engine->nb_regions; k++) {
            if (engine->regions[k].at.gpa == regions[i].gpa) engine->regions[k].at = regions[i];
        }
    }
    tlb_flush(engine->cs);
}

void cm_engine_abandon(cm_engine* engine) {
    cm_engine_kick(engine);
    engine->cs->exception_index = -1;
    cpu_loop_exit_noexc(engine->cs);
}
