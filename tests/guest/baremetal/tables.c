// SPDX-License-Identifier: GPL-2.0-or-later
// Page tables in use by several cores at once: accessed and dirty bits, shootdown by IPI, global pages, PCID.
//
// Options: cpus=N; rounds=N (default 3000).
#include "guest.h"

#define WINDOW 0x8000000000ull
#define FRAMES 0x600000u
#define SHOOT 0x61
#define ACCESSED 0x20ull
#define DIRTY 0x40ull
#define COUNT_ONE (1ull << 52)  // bits 52..58 are the system's to use: SDM 3A, table 4-20

static uint32_t cores;
static uint64_t rounds;
static struct barrier gate;
static volatile uint64_t* entry;
static volatile uint32_t stop;

static void invalidate(uint64_t address) { __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory"); }

// --- the processor's own update of an entry must not undo the one of another core

static void walk(uint32_t core) {
    volatile uint64_t* data = (volatile uint64_t*)WINDOW;
    barrier_wait(&gate, cores);
    if (core == 0) {
        uint64_t count = 0, lost = 0;
        for (uint64_t i = 0; i < rounds; i++) {
            uint64_t before = __atomic_fetch_add(entry, COUNT_ONE, __ATOMIC_SEQ_CST);
            lost += before / COUNT_ONE % 128 != count % 128;
            count = before / COUNT_ONE + 1;
            // An entry whose count would run into the protection key or NX starts anew.
            if (count % 128 == 127) {
                __atomic_and_fetch(entry, COUNT_ONE - 1, __ATOMIC_SEQ_CST);
                count = 0;
            }
        }
        stop = 1;
        check(!lost, "%lu of %lu updates of a page table entry were undone by the processor's own", lost,
              rounds);
    } else {
        for (uint64_t i = 0; !stop; i++) {
            __atomic_and_fetch(entry, ~(ACCESSED | DIRTY), __ATOMIC_SEQ_CST);
            invalidate(WINDOW);
            if (i % 2)
                data[core] = i;
            else
                (void)data[core];
        }
    }
    barrier_wait(&gate, cores);
}

static void accessed_and_dirty(void) {
    page_map(WINDOW, FRAMES, PAGE_PRESENT | PAGE_WRITE);
    entry = page_entry(WINDOW);
    stop = 0;
    cores_run(walk, cores);
}

// --- shootdown: who has answered must not use the old frame any more

static volatile uint32_t answered, current_frame;
static volatile uint64_t stale, done;

static void on_shoot(struct trap_frame* frame) {
    (void)frame;
    invalidate(WINDOW + 0x1000);
    __atomic_add_fetch(&answered, 1, __ATOMIC_SEQ_CST);
    lapic_eoi();
}

static void use(uint32_t core) {
    volatile uint64_t* data = (volatile uint64_t*)(WINDOW + 0x1000);
    interrupts_on();
    barrier_wait(&gate, cores);
    if (core == 0) {
        uint64_t end = read_tsc() + tsc_hz();
        for (uint64_t i = 1; i <= rounds / 10 && (i < 10 || read_tsc() < end); i++) {
            uint32_t next = i % 2;
            done = i;
            *page_entry(WINDOW + 0x1000) = (FRAMES + 0x1000 + next * 0x1000) | PAGE_PRESENT | PAGE_WRITE;
            invalidate(WINDOW + 0x1000);
            answered = 0;
            lapic_send(0, ICR_OTHERS | ICR_ASSERT | SHOOT);
            while (answered < cores - 1) pause();
            // All have flushed: the frame that was left is ours alone now.
            current_frame = next;
            volatile uint64_t* old = (volatile uint64_t*)(uint64_t)(FRAMES + 0x1000 + (1 - next) * 0x1000);
            uint64_t was = old[0];
            for (unsigned wait = 0; wait < 50; wait++) pause();
            if (old[0] != was || data[1] != 1000 + next) stale++;
        }
        stop = 1;
    } else {
        while (!stop) __asm__ volatile("lock incq %0" : "+m"(data[0])::"cc");
    }
    barrier_wait(&gate, cores);
    interrupts_off();
}

static void shootdown(void) {
    trap_handlers[SHOOT] = on_shoot;
    for (uint64_t frame = 0; frame < 2; frame++)
        ((uint64_t*)(FRAMES + 0x1000 + frame * 0x1000))[1] = 1000 + frame;
    page_map(WINDOW + 0x1000, FRAMES + 0x1000, PAGE_PRESENT | PAGE_WRITE);
    stop = 0;
    stale = 0;
    uint64_t from = read_tsc();
    cores_run(use, cores);
    print("shootdown rounds=%lu us=%lu\n", done, (read_tsc() - from) / (tsc_hz() / 1000000));
    check(!stale, "%lu accesses through a mapping after its shootdown was answered", stale);
}

// --- what flushes what (SDM 3A, 4.10.4)

static uint64_t reads_through(uint64_t address) { return *(volatile uint64_t*)address; }

static void flushing(void) {
    uint64_t at = WINDOW + 0x4000, cr4 = read_cr4();
    *(uint64_t*)(uint64_t)(FRAMES + 0x4000) = 4;
    *(uint64_t*)(uint64_t)(FRAMES + 0x5000) = 5;
    for (unsigned how = 0; how < 4; how++) {
        page_map(at, FRAMES + 0x4000, PAGE_PRESENT | PAGE_WRITE);
        check(reads_through(at) == 4, "a page just mapped reads %lu", reads_through(at));
        *page_entry(at) = (FRAMES + 0x5000) | PAGE_PRESENT | PAGE_WRITE;
        if (how == 0) invalidate(at);
        if (how == 1) write_cr3(read_cr3());
        if (how == 2) {
            write_cr4(cr4 ^ 0x80);
            write_cr4(cr4);
        }
        if (how == 3) {
            write_cr0(read_cr0() & ~0x10000ull);
            write_cr0(read_cr0() | 0x10000);
            invalidate(at);
        }
        check(reads_through(at) == 5, "flush %u: the old frame is read", how);
    }
    // A page made read-only, then writable again; a page that becomes executable.
    page_map(at, FRAMES + 0x4000, PAGE_PRESENT);
    *page_entry(at) |= PAGE_WRITE;
    *(volatile uint64_t*)at = 6;  // more rights need no flush: the processor looks again before it faults
    check(reads_through(at) == 6, "a page that became writable");
    // A change in an upper level.
    extern uint64_t pml4[512];
    uint64_t saved = pml4[1];
    pml4[1] = 0;
    write_cr3(read_cr3());
    uint64_t seen = pml4[1];
    pml4[1] = saved;
    check(!seen && reads_through(at) == 6, "a table taken away and given back");
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (leaf[2] >> 17 & 1) print("pcid=1\n");
}

void guest_main(void) {
    cores_start();
    cores = cores_running;
    rounds = option_number("rounds", 3000);
    print("tables cores=%u\n", cores);
    flushing();
    if (cores > 1) {
        accessed_and_dirty();
        shootdown();
    }
    finish();
}
