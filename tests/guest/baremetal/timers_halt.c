// SPDX-License-Identifier: GPL-2.0-or-later
// HLT and what ends it; the instruction after STI (SDM 2B, HLT and STI).
#include "timers.h"

#define WAKE 0x61
#define WATCHDOG 0x62

static volatile uint32_t asleep, awake, nmis, wanted, got, stuck, dog_saw, sent;
static volatile uint32_t rounds;

static void on_nmi(struct trap_frame* frame) {
    (void)frame;
    nmis++;
}

static void deep_sleep(uint32_t core) {
    if (core != 1) return;
    interrupts_off();
    asleep = 1;
    __asm__ volatile("hlt" ::: "memory");
    awake = 1;
}

static void closed_halt(void) {
    trap_handlers[2] = on_nmi;
    asleep = awake = nmis = ticks[WAKE] = 0;
    cores_post(deep_sleep, 2);
    while (!asleep) pause();
    delay_us(3000);
    lapic_send(core_apic_ids[1], ICR_ASSERT | WAKE);
    delay_us(5000);
    check(!awake && !ticks[WAKE], "HLT with IF=0 was ended by an IPI");
    // More than one where the host had not let the core come as far as its HLT.
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); !awake && read_tsc() < end;) {
        lapic_send(core_apic_ids[1], ICR_NMI | ICR_ASSERT);
        delay_us(5000);
    }
    check(awake && nmis, "HLT with IF=0 was not ended by %u NMIs", nmis);
    if (awake) cores_join();
    // The IPI is still pending, and is taken when the core opens again.
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); !ticks[WAKE] && read_tsc() < end;) pause();
    check(ticks[WAKE] == 1, "the IPI sent to a closed core was taken %u times", ticks[WAKE]);
    trap_handlers[2] = NULL;
}

static void on_wake(struct trap_frame* frame) {
    (void)frame;
    got++;
    lapic_eoi();
}

// Runs on the sleeper: if it still sleeps a period after the wake-up was sent, that was lost.
static void on_watchdog(struct trap_frame* frame) {
    (void)frame;
    uint32_t now = sent;
    if (dog_saw == now && now == wanted && got < wanted) {
        stuck++;
        got = wanted;
    }
    dog_saw = now;
    lapic_eoi();
}

static void wake(uint32_t core) {
    if (core != 1) return;
    uint32_t random = 1;
    for (uint32_t i = 1; i <= rounds; i++) {
        while (wanted < i) pause();
        random = random * 1664525 + 1013904223;
        for (volatile uint32_t spin = random >> 26; spin; spin--) {
        }
        lapic_send(core_apic_ids[0], ICR_ASSERT | WAKE);
        sent = i;
    }
}

static void watchdog(bool on) {
    dog_saw = 0;
    lapic_write(APIC_TIMER_DIVIDE, 3);
    lapic_write(APIC_LVT_TIMER, on ? 0x20000 | WATCHDOG : 0x10000);
    lapic_write(APIC_TIMER_INITIAL, on ? 250000000 : 0);
}

static void sleep_until(uint32_t count) {
    interrupts_off();
    while (got < count) {
        wait_for_interrupt();
        interrupts_off();
    }
}

void test_halt(void) {
    trap_handlers[WATCHDOG] = on_watchdog;
    rounds = (uint32_t)option_number("rounds", 20000);
    if (cores_running > 1) {
        closed_halt();
        trap_handlers[WAKE] = on_wake;
        got = wanted = stuck = sent = 0;
        watchdog(true);
        cores_post(wake, 2);
        uint64_t from = read_tsc(), end = from + 3 * tsc_hz();
        for (uint32_t i = 1; i <= rounds; i++) {
            if (i > 100 && read_tsc() > end) rounds = i;
            wanted = i;
            sleep_until(i);
        }
        watchdog(false);
        cores_join();
        print("sti_hlt rounds=%u lost=%u ns=%lu\n", rounds, stuck,
              (read_tsc() - from) * 1000 / (tsc_hz() / 1000000) / rounds);
        check(!stuck, "%u of %u wake-ups were lost between STI and HLT", stuck, rounds);
    }
    // The same alone, with timers so short that they end before, in and after the HLT.
    trap_handlers[WAKE] = on_wake;
    got = 0;
    uint32_t alone = rounds / 4, random = 7;
    uint64_t limit = read_tsc() + 2 * tsc_hz();
    lapic_write(APIC_TIMER_DIVIDE, 0xb);
    lapic_write(APIC_LVT_TIMER, WAKE);
    for (uint32_t i = 1; i <= alone; i++) {
        random = random * 1664525 + 1013904223;
        if (i > 100 && read_tsc() > limit) alone = i;
        interrupts_off();
        lapic_write(APIC_TIMER_INITIAL, 1 + (random >> 18));
        sleep_until(i);
    }
    lapic_write(APIC_LVT_TIMER, 0x10000);
    check(got == alone, "%u timer wake-ups, expected %u", got, alone);
    print("halt done failures=%u\n", failures);
}

static volatile uint64_t taken_rip;
static volatile uint32_t taken;

static void on_shadow(struct trap_frame* frame) {
    taken_rip = frame->rip;
    taken++;
    lapic_eoi();
}

void test_shadow(void) {
    trap_handlers[0x63] = on_shadow;
    uint32_t wrong = 0;
    for (unsigned i = 0; i < 500; i++) {
        interrupts_off();
        taken = 0;
        lapic_send(0, ICR_SELF | ICR_ASSERT | 0x63);
        for (unsigned wait = 0; wait < 1000 && !(lapic_read(APIC_IRR + 0x30) & 8); wait++) pause();
        // STI then CLI: the window never opens.
        __asm__ volatile("sti; cli; nop; nop" ::: "memory");
        wrong += taken;
        // STI, one instruction, then the interrupt.
        uint64_t expected;
        __asm__ volatile("leaq 1f(%%rip), %0\n sti\n nop\n 1: nop\n nop\n cli" : "=r"(expected)::"memory");
        wrong += taken != 1 || taken_rip != expected;
    }
    check(!wrong, "%u interrupts in the shadow of STI, or late", wrong);
    // One that was sent with IF=0 is taken when IF is set.
    taken = 0;
    wrong = 0;
    for (unsigned i = 0; i < 100; i++) {
        interrupts_off();
        taken = 0;
        lapic_send(0, ICR_SELF | ICR_ASSERT | 0x63);
        interrupts_on();
        for (unsigned wait = 0; wait < 1000 && !taken; wait++) pause();
        wrong += taken != 1;
    }
    check(!wrong, "%u self-IPIs with IF=0 were not taken at STI", wrong);
    interrupts_off();
}
