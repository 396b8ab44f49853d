// SPDX-License-Identifier: GPL-2.0-or-later
// Starting cores and interrupting them: INIT, SIPI, IPIs of every kind, NMI, priorities, xAPIC and x2APIC.
//
// Options: cpus=N; strict checks also what QEMU 7.2 does not do; bench prints latencies only.
#include "smp.h"

volatile uint32_t counts[256][CORES];
uint32_t cores;
static volatile uint32_t listening, listen_stop;

void clear_counts(void) { memset((void*)counts, 0, sizeof counts); }

void count_handler(struct trap_frame* frame) {
    counts[frame->vector][this_core()->index]++;
    lapic_eoi();
}

static void listen(uint32_t core) {
    if (core == 0) return;
    interrupts_on();
    __atomic_add_fetch(&listening, 1, __ATOMIC_SEQ_CST);
    // Odd cores sleep, even ones spin: an interrupt must come to both.
    while (!listen_stop) {
        if (core % 2)
            __asm__ volatile("hlt" ::: "memory");
        else
            pause();
    }
    interrupts_off();
    __atomic_sub_fetch(&listening, 1, __ATOMIC_SEQ_CST);
}

void listen_begin(void) {
    listen_stop = 0;
    clear_counts();
    cores_post(listen, cores);
    check(eventually(&listening, cores - 1), "the other cores do not listen");
}

void listen_end(void) {
    listen_stop = 1;
    // One at a time until all are out: a sleeper may look at the flag just before this wakes it.
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); listening && read_tsc() < end;) {
        if (cores > 1) lapic_send(0, ICR_OTHERS | ICR_ASSERT | 0xf0);
        delay_us(50);
    }
    check(!listening, "%u cores sleep through IPIs", listening);
}

static uint64_t last_done;

static void done(const char* part) {
    uint64_t now = read_tsc();
    print("%s us=%lu failures=%u\n", part, (now - last_done) / (tsc_hz() / 1000000), failures);
    last_done = now;
}

static void enter_x2(uint32_t core) {
    (void)core;
    lapic_enable(true);
}

void guest_main(void) {
    for (unsigned vector = 0x30; vector < 0xf0; vector++) trap_handlers[vector] = count_handler;
    check(read_msr(MSR_APIC_BASE) & 0x100, "the first core's APIC base says it is no bootstrap processor");
    if (option("bench")) {
        cores_start();
        cores = cores_running;
        bench_latency();
        finish();
    }
    test_start_up();
    cores = cores_running < CORES ? cores_running : CORES;
    print("smp cores=%u of=%u xapic\n", cores, cores_found);
    last_done = read_tsc();
    test_priority();
    done("priority");
    test_ipis();
    done("ipis");
    test_nmi();
    done("nmi");
    test_storm();
    done("storm");
    test_init_again();
    done("init");
    if (lapic_has_x2()) {
        print("x2apic\n");
        cores_run(enter_x2, cores_running);
        test_x2apic();
        test_priority();
        test_ipis();
        test_nmi();
        test_storm();
        done("x2apic");
        test_init_again();
        done("init");
    }
    finish();
}
