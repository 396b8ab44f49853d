// SPDX-License-Identifier: GPL-2.0-or-later
// Time and waiting: TSC, local APIC timer, PIT, RTC, HLT.
//
// Options: cpus=N; rounds=N for the STI;HLT race (default 20000); level tries pin polarity, which QEMU 7.2
// ignores; strict wants hardware's tolerances.
#include "timers.h"

volatile uint32_t ticks[256];
volatile uint64_t tick_tsc;
static uint32_t cores;
static struct barrier gate;

void on_tick(struct trap_frame* frame) {
    tick_tsc = read_tsc();
    ticks[frame->vector]++;
    lapic_eoi();
}

// A TSC value that a core publishes must never lie before one it has read from another.
static volatile uint64_t last_tsc __attribute__((aligned(64)));
static volatile uint64_t warps, largest_warp;

static void watch_tsc(uint32_t core) {
    (void)core;
    barrier_wait(&gate, cores);
    for (unsigned i = 0; i < 30000; i++) {
        uint64_t before = last_tsc, now = read_tsc();
        if (now < before) {
            __atomic_add_fetch(&warps, 1, __ATOMIC_SEQ_CST);
            if (before - now > largest_warp) largest_warp = before - now;
        }
        __atomic_compare_exchange_n(&last_tsc, &before, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    barrier_wait(&gate, cores);
}

static void test_tsc(void) {
    uint64_t last = read_tsc(), backwards = 0, aux_ok = 1;
    for (unsigned i = 0; i < 30000; i++) {
        uint64_t now = read_tsc();
        backwards += now < last;
        last = now;
    }
    check(!backwards, "the TSC went backwards %lu times on one core", backwards);
    cores_run(watch_tsc, cores);
    print("tsc_mhz=%lu warps=%lu largest=%lu\n", tsc_hz() / 1000000, warps, largest_warp);
    check(!warps, "the TSC went backwards %lu times between cores, by %lu at most", warps, largest_warp);
    uint32_t leaf[4];
    cpuid(0x80000001, 0, leaf);
    if (leaf[3] >> 27 & 1) {  // RDTSCP
        uint32_t low, high, aux;
        write_msr(0xc0000103, 0x1234);
        __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
        aux_ok = aux == 0x1234 && ((uint64_t)high << 32 | low) > last;
        check(aux_ok, "rdtscp: TSC %x%x aux %x", high, low, aux);
    }
    cpuid(0, 0, leaf);
    if (leaf[0] >= 0x15) {
        cpuid(0x15, 0, leaf);
        if (leaf[0] && leaf[1] && leaf[2]) {
            uint64_t said = (uint64_t)leaf[2] * leaf[1] / leaf[0];
            uint64_t apart = said > tsc_hz() ? said - tsc_hz() : tsc_hz() - said;
            check(apart < said / 50, "CPUID says the TSC runs at %lu Hz, the PM timer measures %lu", said,
                  tsc_hz());
        }
    }
}

void guest_main(void) {
    for (unsigned vector = 0x30; vector < 0xf0; vector++) trap_handlers[vector] = on_tick;
    cores_start();
    cores = cores_running;
    print("timers cores=%u\n", cores);
    test_tsc();
    test_lapic_timer();
    test_deadline();
    print("lapic done failures=%u\n", failures);
    test_pit();
    test_rtc();
    print("legacy done failures=%u\n", failures);
    test_shadow();
    test_halt();
    finish();
}
