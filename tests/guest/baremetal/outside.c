// SPDX-License-Identifier: GPL-2.0-or-later
// A guest that something outside works on: its code is rewritten by a device, interrupts come from a bus, it
// is paused.
//
// It shares a page with the one who drives it; the words are named in struct mailbox. Options: cpus=N.
#include "guest.h"

#define MAILBOX 0x700000u
#define CODE 0x701000u
#define LAST 0xffffffffu

struct mailbox {
    volatile uint32_t ready, generation;  // the driver writes generation g after code that returns g
    volatile uint32_t stale, calls;
    volatile uint32_t seen[16];         // by core: the generation last run
    volatile uint32_t interrupts[256];  // by vector, on any core
    volatile uint32_t nmis;
    volatile uint32_t beats[16];  // by core: counts as long as the core runs
};
#define BOX ((struct mailbox*)(uint64_t)MAILBOX)

static uint32_t cores;

static void on_interrupt(struct trap_frame* frame) {
    __atomic_add_fetch(&BOX->interrupts[frame->vector], 1, __ATOMIC_SEQ_CST);
    lapic_eoi();
}

static void on_nmi(struct trap_frame* frame) {
    (void)frame;
    __atomic_add_fetch(&BOX->nmis, 1, __ATOMIC_SEQ_CST);
}

static void follow(uint32_t core) {
    uint32_t generation;
    if (core == 0) lapic_write(APIC_LVT_LINT1, 0x400);
    interrupts_on();
    do {
        generation = __atomic_load_n(&BOX->generation, __ATOMIC_ACQUIRE);
        uint32_t got = ((uint32_t(*)(void))(uint64_t)CODE)();
        if (generation != LAST && got < generation) __atomic_add_fetch(&BOX->stale, 1, __ATOMIC_SEQ_CST);
        BOX->calls++;
        BOX->beats[core]++;
        BOX->seen[core] = generation;
        if (core % 2) pause();
    } while (generation != LAST);
    interrupts_off();
}

void guest_main(void) {
    static const uint8_t zero[] = {0xb8, 0, 0, 0, 0, 0xc3};
    cores_start();
    cores = cores_running;
    for (unsigned vector = 0x30; vector < 0xf0; vector++) trap_handlers[vector] = on_interrupt;
    trap_handlers[2] = on_nmi;
    memset((void*)BOX, 0, sizeof *BOX);
    memcpy((void*)(uint64_t)CODE, zero, sizeof zero);
    print("outside cores=%u\n", cores);
    BOX->ready = 1;
    cores_run(follow, cores);
    print("calls=%u stale=%u nmis=%u\n", BOX->calls, BOX->stale, BOX->nmis);
    check(!BOX->stale, "%u calls ran code that a device had replaced", BOX->stale);
    finish();
}
