// SPDX-License-Identifier: GPL-2.0-or-later
// What the loader hands over (Multiboot 0.6.96, 3.3), and that the memory it promises is there.
#include "guest.h"

#define WINDOW 0x8000000000ull

extern uint32_t multiboot_info, multiboot_magic;

struct __attribute__((packed)) range {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
};

static uint32_t function_at(uint64_t at, uint32_t value) {
    uint8_t code[6] = {
        0xb8, (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24), 0xc3};
    memcpy((void*)at, code, 6);
    return ((uint32_t(*)(void))at)();
}

static uint64_t shared_at;

static void add(uint32_t core) {
    (void)core;
    for (unsigned i = 0; i < 10000; i++) __atomic_add_fetch((uint64_t*)shared_at, 1, __ATOMIC_SEQ_CST);
}

// First, last and a few pages between: distinct frames that hold data and code, and atomics of all cores.
static void try_range(const struct range* range) {
    uint64_t first = (range->base + 0xfff) & ~0xfffull,
             last = ((range->base + range->length) & ~0xfffull) - 4096;
    uint64_t pages[6];
    for (unsigned i = 0; i < 6; i++) pages[i] = (first + (last - first) / 5 * i) & ~0xfffull;
    pages[5] = last;
    for (unsigned i = 0; i < 6; i++) {
        page_map(WINDOW + i * 4096, pages[i], PAGE_PRESENT | PAGE_WRITE);
        *(volatile uint64_t*)(WINDOW + i * 4096) = pages[i] ^ 0x5555;
        *(volatile uint64_t*)(WINDOW + i * 4096 + 4088) = ~pages[i];
    }
    for (unsigned i = 0; i < 6; i++)
        check(*(volatile uint64_t*)(WINDOW + i * 4096) == (pages[i] ^ 0x5555) &&
                  *(volatile uint64_t*)(WINDOW + i * 4096 + 4088) == ~pages[i],
              "memory at %lx does not keep what was written", pages[i]);
    for (unsigned i = 0; i < 6; i++) {
        check(function_at(WINDOW + i * 4096 + 0x800, i + 7) == i + 7, "code at %lx does not run", pages[i]);
        check(function_at(WINDOW + i * 4096 + 0x800, i + 99) == i + 99, "changed code at %lx does not run",
              pages[i]);
    }
    // Locked access across the border of two frames that lie far from each other.
    uint64_t* border = (uint64_t*)(WINDOW + 4096 - 3);
    *border = 0;
    shared_at = (uint64_t)border;
    cores_run(add, cores_running);
    check(*border == 10000ull * cores_running, "additions across frames %lx and %lx: %lu", pages[0], pages[1],
          *border);
}

void guest_main(void) {
    const uint32_t* info = (const uint32_t*)(uint64_t)multiboot_info;
    check(multiboot_magic == 0x2badb002, "EAX was %x at the start", multiboot_magic);
    print("flags=%x mem_lower=%u mem_upper=%u\n", info[0], info[1], info[2]);
    check((info[0] & 0x45) == 0x45, "no memory, command line or memory map: flags %x", info[0]);
    print("cmdline=%s\n", (const char*)(uint64_t)info[4]);
    cores_start();
    uint64_t usable = 0;
    for (uint64_t at = info[12], end = info[12] + info[11]; at < end;) {
        const struct range* range = (const struct range*)at;
        print("range base=%lx length=%lx type=%u\n", range->base, range->length, range->type);
        if (range->type == 1) usable += range->length;
        if (range->type == 1 && range->base >= 1ull << 32) try_range(range);
        at += range->size + 4;
    }
    print("usable_kib=%lu\n", usable / 1024);
    if (info[0] & 8) {
        const uint32_t* module = (const uint32_t*)(uint64_t)info[6];
        for (uint32_t i = 0; i < info[5]; i++, module += 4) {
            uint32_t sum = 0;
            for (uint32_t at = module[0]; at < module[1]; at++) sum += *(const uint8_t*)(uint64_t)at;
            print("module=%u bytes=%u sum=%u aligned=%u string=%s\n", i, module[1] - module[0], sum,
                  !(module[0] & 0xfff), (const char*)(uint64_t)module[2]);
        }
    }
    finish();
}
