// SPDX-License-Identifier: GPL-2.0-or-later
// What the parts of the multiprocessor guest share.
#pragma once
#include "guest.h"

#define CORES 32u

// How often each vector came to each core; written by handlers only.
extern volatile uint32_t counts[256][CORES];
extern uint32_t cores;

// Patient: a host with far more threads than processors may not run a core for seconds.
static inline bool eventually(volatile uint32_t* value, uint32_t wanted) {
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); *value != wanted;) {
        if (read_tsc() > end) return false;
        pause();
    }
    return true;
}

void listen_begin(void);  // the other cores take interrupts until listen_end
void listen_end(void);
void clear_counts(void);
void count_handler(struct trap_frame* frame);  // counts and sends EOI

void test_start_up(void);  // smp_start.c
void test_init_again(void);
void test_ipis(void);  // smp_ipi.c
void test_nmi(void);
void test_storm(void);
void test_priority(void);  // smp_priority.c
void test_x2apic(void);
void bench_latency(void);  // smp_bench.c
