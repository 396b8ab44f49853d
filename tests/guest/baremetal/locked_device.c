// SPDX-License-Identifier: GPL-2.0-or-later
// Locked instructions on a device whose registers are RAM: at each access it does DMA to the page behind it.
//
// Each core stores into the page first, so that its host has it; the DMA must get it from there, while the
// core is in the midst of its instruction. Over the page's end one instruction reaches RAM and the device.
#include "guest.h"

#define DEVICE 0xfe700000ull
#define BEHIND 0x1500000ull  // where the device's registers are in RAM
#define WINDOW 0x8000000000ull
#define ROUNDS 40u

static volatile uint32_t turn;

static void of_one_register(uint32_t core, uint32_t round) {
    volatile uint32_t* behind = (volatile uint32_t*)BEHIND + 1 + core;
    volatile uint32_t* at = (volatile uint32_t*)DEVICE + 1 + core;
    *behind = round;
    uint32_t old = 5;
    __asm__ volatile("lock xaddl %0, %1" : "+r"(old), "+m"(*at)::"memory");
    check(old == round, "core %u: LOCK XADD on the device gives %u for %u", core, old, round);
    check(*behind == round + 5, "core %u: it left %u in RAM for %u", core, *behind, round + 5);
    old = 9;
    __asm__ volatile("xchgl %0, %1" : "+r"(old), "+m"(*at)::"memory");
    check(old == round + 5 && *behind == 9, "core %u: XCHG gives %u and leaves %u", core, old, *behind);
}

// The low half lies in RAM, the high half in the device.
static void over_the_end(uint32_t core, uint32_t round) {
    volatile uint32_t* ram = (volatile uint32_t*)(WINDOW + 4092);
    volatile uint32_t* behind = (volatile uint32_t*)BEHIND;
    *ram = 0xffffffff;
    *behind = round;
    __asm__ volatile("lock incq (%0)" ::"r"(ram) : "memory");
    check(*ram == 0 && *behind == round + 1, "core %u: LOCK INC over RAM and the device leaves %x, %u", core,
          *ram, *behind);
}

static void work(uint32_t core) {
    for (uint32_t round = 0; round < ROUNDS; round++) {
        of_one_register(core, round);
        while (turn % cores_running != core) pause();
        over_the_end(core, round);
        turn++;
    }
}

void guest_main(void) {
    page_map(WINDOW, BEHIND + 0x100000, PAGE_PRESENT | PAGE_WRITE);
    page_map(WINDOW + 4096, DEVICE, PAGE_PRESENT | PAGE_WRITE);
    cores_start();
    cores_run(work, cores_running);
    finish();
}
