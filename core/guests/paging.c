// SPDX-License-Identifier: GPL-2.0-or-later
// 4 KiB pages beside the identity map. Called by one core at a time, before others use the page.
#include "guest.h"

#define ADDRESS 0x000ffffffffff000ull

extern uint64_t pml4[512];
static uint64_t pool = TABLE_POOL;

static uint64_t* step(uint64_t* table, uint64_t address, unsigned shift) {
    uint64_t* entry = &table[address >> shift & 511];
    if (!*entry) {
        memset((void*)pool, 0, 4096);
        // Rights are refused by the last level alone: the upper ones allow all.
        *entry = pool | PAGE_PRESENT | PAGE_WRITE | PAGE_USER;
        pool += 4096;
    }
    return (uint64_t*)(*entry & ADDRESS);
}

uint64_t* page_entry(uint64_t address) {
    uint64_t* table = step(step(step(pml4, address, 39), address, 30), address, 21);
    return &table[address >> 12 & 511];
}

void page_map(uint64_t address, uint64_t physical, uint64_t flags) {
    *page_entry(address) = physical | flags;
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}

void page_clear_large(uint64_t address) {
    uint64_t* table = step(step(pml4, address, 39), address, 30);
    table[address >> 21 & 511] = 0;
    write_cr3(read_cr3());
}
