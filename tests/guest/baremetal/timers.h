// SPDX-License-Identifier: GPL-2.0-or-later
// What the parts of the timer guest share.
#pragma once
#include "guest.h"

extern volatile uint32_t ticks[256];
extern volatile uint64_t tick_tsc;
void on_tick(struct trap_frame* frame);  // counts, notes the TSC, EOI

static inline bool ticked(uint8_t vector, uint32_t wanted, uint64_t microseconds) {
    for (uint64_t end = read_tsc() + microseconds * (tsc_hz() / 1000000); ticks[vector] < wanted;) {
        if (read_tsc() > end) return false;
        pause();
    }
    return true;
}

void test_lapic_timer(void);  // timers_lapic.c
void test_deadline(void);
void test_pit(void);  // timers_legacy.c
void test_rtc(void);
void test_halt(void);  // timers_halt.c
void test_shadow(void);
