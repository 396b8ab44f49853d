// SPDX-License-Identifier: GPL-2.0-or-later
// Work that is interrupted at every moment must come out as if it were not: no instruction is done twice or
// by half.
//
// The first core computes batches; its own timer and all other cores interrupt it, some by NMI. Options:
// cpus=N; batches=N (default 3000), and more until enough interrupts have come: a busy host gives few.
#include "guest.h"

#define WORDS 512u

static volatile uint32_t interrupts, nmis, stop;
static uint32_t cores;
static uint64_t from_area[WORDS] __attribute__((aligned(4096)));
static uint64_t to_area[WORDS + 8] __attribute__((aligned(4096)));
static uint32_t counters[16];

static void on_interrupt(struct trap_frame* frame) {
    (void)frame;
    interrupts++;
    lapic_eoi();
}

static void on_nmi(struct trap_frame* frame) {
    (void)frame;
    nmis++;
}

static uint64_t mix(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 0x9e3779b97f4a7c15ull + (hash >> 29);
}

static void move(void* to, const void* from, uint64_t bytes, bool backwards) {
    if (backwards)
        __asm__ volatile("std; rep movsb; cld" : "+S"(from), "+D"(to), "+c"(bytes)::"memory");
    else
        __asm__ volatile("shr $3, %2; rep movsq" : "+S"(from), "+D"(to), "+c"(bytes)::"memory", "cc");
}

// Read-modify-write in memory, carries, the stack, strings, x87 and SSE. Each step depends on the ones
// before.
static uint64_t batch(uint64_t seed) {
    uint64_t hash = seed, a = seed, b = ~seed;
    memset(counters, 0, sizeof counters);
    for (unsigned i = 0; i < 40; i++) {
        __asm__ volatile(
            "addl $3, 0(%2)\n incl 4(%2)\n subl $5, 8(%2)\n negl 12(%2)\n notl 16(%2)\n"
            "xorl $0x55, 20(%2)\n rolq $7, 24(%2)\n btcl $9, 32(%2)\n lock incl 36(%2)\n"
            "addq %0, 40(%2)\n adcq $0, 48(%2)\n sbbq $1, 56(%2)\n"
            "push %0\n push %1\n addq $11, (%%rsp)\n addq %1, 8(%%rsp)\n pop %1\n pop %0\n"
            "call 1f\n jmp 2f\n 1: push %0\n add $1, %1\n pop %0\n incl 4(%2)\n ret\n 2:\n"
            "pushfq\n popfq\n xchg %0, 40(%2)\n lock xadd %1, 48(%2)\n"
            : "+r"(a), "+r"(b)
            : "r"(counters)
            : "memory", "cc");
        hash = mix(mix(hash, a), b);
    }
    for (unsigned i = 0; i < 16; i++) hash = mix(hash, counters[i]);
    // Strings: forwards and backwards, across a page boundary, over themselves.
    for (unsigned i = 0; i < WORDS; i++) from_area[i] = hash = mix(hash, i);
    memcpy((uint8_t*)to_area + 3, from_area, WORDS * 8);
    move(to_area + 1, to_area + 9, 400 * 8, false);
    move((uint8_t*)to_area + 1033, (uint8_t*)to_area + 900, 777, true);
    uint64_t left = WORDS;
    void* at = to_area;
    __asm__ volatile("repne scasq" : "+c"(left), "+D"(at) : "a"(from_area[100]) : "cc", "memory");
    hash = mix(hash, left);
    for (unsigned i = 0; i < WORDS; i++) hash = mix(hash, to_area[i]);
    // Floating point: registers survive the interrupt.
    double sum = 0;
    uint32_t packed[4];
    __asm__ volatile(
        "fninit\n fld1\n fldpi\n mov $50, %%ecx\n 1: fadd %%st(1), %%st\n fmul %%st(1), %%st\n sub $1, "
        "%%ecx\n jnz 1b\n"
        "fstpl %0\n fstp %%st(0)\n"
        "movq %2, %%xmm0\n pshufd $0x44, %%xmm0, %%xmm0\n movaps %%xmm0, %%xmm1\n mov $50, %%ecx\n"
        "2: paddd %%xmm0, %%xmm1\n pxor %%xmm1, %%xmm0\n pslld $1, %%xmm0\n sub $1, %%ecx\n jnz 2b\n movups "
        "%%xmm1, %1\n"
        : "=m"(sum), "=m"(packed)
        : "r"(hash)
        : "rcx", "memory", "cc");
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    hash = mix(hash, bits);
    for (unsigned i = 0; i < 4; i++) hash = mix(hash, packed[i]);
    return hash;
}

static void disturb(uint32_t core) {
    if (core == 0) return;
    uint32_t random = core;
    while (!stop) {
        random = random * 1664525 + 1013904223;
        for (volatile uint32_t spin = random >> 22; spin && !stop; spin--) {
        }
        lapic_send(core_apic_ids[0], ICR_ASSERT | (random >> 20 & 15 ? 0x40 + core % 32 : ICR_NMI));
    }
}

static bool disturbed(void) { return interrupts > 20 && (cores == 1 || nmis); }

void guest_main(void) {
    static uint64_t expected[16];
    uint32_t batches = (uint32_t)option_number("batches", 3000), wrong = 0;
    cores_start();
    cores = cores_running;
    for (unsigned vector = 0x30; vector < 0xf0; vector++) trap_handlers[vector] = on_interrupt;
    trap_handlers[2] = on_nmi;
    for (unsigned i = 0; i < 16; i++) expected[i] = batch(i);
    for (unsigned i = 0; i < 16; i++)
        check(batch(i) == expected[i], "batch %u differs without interrupts", i);
    cores_post(disturb, cores);
    lapic_write(APIC_TIMER_DIVIDE, 3);
    lapic_write(APIC_LVT_TIMER, 0x20000 | 0x71);
    lapic_write(APIC_TIMER_INITIAL, 120000);  // 2 ms of a 1 GHz clock by 16
    interrupts_on();
    uint32_t done = 0;
    for (uint32_t i = 0; i < batches || (!disturbed() && i < 100 * batches); i++) {
        if (i % 8 == 7) interrupts_off();  // NMIs alone
        wrong += batch(i % 16) != expected[i % 16];
        interrupts_on();
        done++;
    }
    stop = 1;
    lapic_write(APIC_LVT_TIMER, 0x10000);
    if (cores > 1) cores_join();
    interrupts_off();
    print("interrupted batches=%u interrupts=%u nmis=%u wrong=%u\n", done, interrupts, nmis, wrong);
    check(!wrong, "%u of %u batches came out wrong under interrupts", wrong, done);
    check(disturbed(), "only %u interrupts and %u NMIs", interrupts, nmis);
    finish();
}
