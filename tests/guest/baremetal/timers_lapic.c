// SPDX-License-Identifier: GPL-2.0-or-later
// The local APIC's timer: one-shot, periodic, TSC-deadline (SDM 3A, 11.5.4).
#include "timers.h"

#define VECTOR 0x51
#define MASKED 0x10000u
#define PERIODIC 0x20000u
#define DEADLINE 0x40000u
#define MSR_TSC_DEADLINE 0x6e0

static uint64_t hz;  // of the timer's input clock

static uint64_t measure(uint32_t divide_code, uint32_t divisor) {
    uint64_t cycles = 0;
    uint32_t left = 0;
    lapic_write(APIC_TIMER_DIVIDE, divide_code);
    lapic_write(APIC_LVT_TIMER, MASKED);
    // The emulator itself may lose the processor for a while: then measure again.
    for (unsigned attempt = 0; attempt < 50; attempt++) {
        uint64_t before = read_tsc();
        lapic_write(APIC_TIMER_INITIAL, 0xffffffff);
        uint64_t from = read_tsc();
        delay_us(5000);
        uint64_t until = read_tsc();
        left = lapic_read(APIC_TIMER_CURRENT);
        cycles = until - from;
        if (from - before + (read_tsc() - until) < cycles / 100) break;
    }
    lapic_write(APIC_TIMER_INITIAL, 0);
    return (uint64_t)(0xffffffff - left) * divisor * (tsc_hz() / 1000) / (cycles / 1000);
}

static void one_shot(uint64_t microseconds) {
    uint32_t count = (uint32_t)(hz / 16 * microseconds / 1000000);
    ticks[VECTOR] = 0;
    lapic_write(APIC_TIMER_DIVIDE, 3);
    lapic_write(APIC_LVT_TIMER, VECTOR);
    uint64_t from = read_tsc();
    lapic_write(APIC_TIMER_INITIAL, count);
    uint32_t current = lapic_read(APIC_TIMER_CURRENT);
    check(current <= count, "current count %u above the initial one, %u", current, count);
    bool came = ticked(VECTOR, 1, 20000000);
    uint64_t took = (tick_tsc - from) / (tsc_hz() / 1000000);
    check(came && took + took / 50 + 2 >= microseconds, "a one-shot of %lu us: %u interrupts, after %lu us",
          microseconds, ticks[VECTOR], took);
    check(!lapic_read(APIC_TIMER_CURRENT), "current count %u after the end", lapic_read(APIC_TIMER_CURRENT));
    delay_us(microseconds + 1000);
    check(ticks[VECTOR] == 1, "a one-shot of %lu us came %u times", microseconds, ticks[VECTOR]);
    print("one_shot us=%lu late_us=%ld\n", microseconds, (int64_t)(took - microseconds));
}

void test_lapic_timer(void) {
    static const uint8_t codes[] = {0xb, 0, 1, 2, 3, 8, 9, 10};
    interrupts_on();
    hz = measure(3, 16);
    for (unsigned i = 0; i < sizeof codes; i++) {
        uint64_t other = measure(codes[i], 1u << i);
        // A divisor of 1 may wrap within the time of a slow host's pause; the rest must agree.
        uint64_t apart = other > hz ? other - hz : hz - other;
        check(apart < hz / 10, "divided by %u the timer's clock is %lu Hz, by 16 %lu Hz", 1u << i, other, hz);
    }
    one_shot(200);
    one_shot(3000);
    // Periodic, 1 kHz for 50 ms.
    ticks[VECTOR] = 0;
    lapic_write(APIC_TIMER_DIVIDE, 3);
    lapic_write(APIC_LVT_TIMER, PERIODIC | VECTOR);
    uint64_t from = read_tsc();
    lapic_write(APIC_TIMER_INITIAL, (uint32_t)(hz / 16 / 1000));
    bool came = ticked(VECTOR, 50, 30000000);
    uint64_t took = (read_tsc() - from) / (tsc_hz() / 1000000);
    check(came && took > 45000, "50 periods of 1 ms: %u interrupts in %lu us", ticks[VECTOR], took);
    if (option("strict")) check(took < 200000, "50 periods of 1 ms took %lu us", took);
    print("periodic us_for_50=%lu\n", took);
    // Masked it still counts; stopped it does not.
    lapic_write(APIC_LVT_TIMER, PERIODIC | MASKED | VECTOR);
    delay_us(100);
    uint32_t then = ticks[VECTOR];
    delay_us(5000);
    check(ticks[VECTOR] == then, "%u interrupts of a masked timer", ticks[VECTOR] - then);
    lapic_write(APIC_LVT_TIMER, PERIODIC | VECTOR);
    check(ticked(VECTOR, then + 2, 20000000), "a periodic timer is dead after unmasking");
    lapic_write(APIC_TIMER_INITIAL, 0);
    delay_us(100);
    then = ticks[VECTOR];
    delay_us(5000);
    check(ticks[VECTOR] == then, "%u interrupts of a stopped timer", ticks[VECTOR] - then);
    lapic_write(APIC_LVT_TIMER, MASKED);
    interrupts_off();
}

void test_deadline(void) {
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (!(leaf[2] >> 24 & 1)) return;
    uint64_t us = tsc_hz() / 1000000, worst = 0, sum = 0, early = 0;
    interrupts_on();
    lapic_write(APIC_LVT_TIMER, DEADLINE | VECTOR);
    __asm__ volatile("mfence");
    uint64_t far = read_tsc() + 10000000 * us;
    write_msr(MSR_TSC_DEADLINE, far);
    check(read_msr(MSR_TSC_DEADLINE) == far, "the deadline reads %lx", read_msr(MSR_TSC_DEADLINE));
    for (unsigned i = 0; i < 100; i++) {
        ticks[VECTOR] = 0;
        uint64_t deadline = read_tsc() + (20 + i * 7) * us;
        write_msr(MSR_TSC_DEADLINE, deadline);
        if (!check(ticked(VECTOR, 1, 20000000), "deadline %u did not come", i)) break;
        early += tick_tsc < deadline;
        uint64_t late = tick_tsc - deadline;
        sum += late;
        if (late > worst) worst = late;
        check(!read_msr(MSR_TSC_DEADLINE), "the deadline reads %lx after its interrupt",
              read_msr(MSR_TSC_DEADLINE));
    }
    check(!early, "%lu of 100 deadlines came early", early);
    print("deadline late_cycles_mean=%lu worst=%lu\n", sum / 100, worst);
    // One in the past comes at once; zero disarms.
    ticks[VECTOR] = 0;
    write_msr(MSR_TSC_DEADLINE, read_tsc() - 1000);
    check(ticked(VECTOR, 1, 100000), "a deadline in the past did not come");
    uint64_t deadline = read_tsc() + 5000 * us;
    write_msr(MSR_TSC_DEADLINE, deadline);
    write_msr(MSR_TSC_DEADLINE, 0);
    uint32_t then = ticks[VECTOR];
    bool in_time = read_tsc() < deadline;
    delay_us(7000);
    check(ticks[VECTOR] == then && (then == 1 || !in_time), "a disarmed deadline came");
    // In another mode the MSR reads zero and ignores writes.
    lapic_write(APIC_LVT_TIMER, MASKED | VECTOR);
    write_msr(MSR_TSC_DEADLINE, read_tsc() + 100 * us);
    check(!read_msr(MSR_TSC_DEADLINE), "the deadline reads %lx in one-shot mode", read_msr(MSR_TSC_DEADLINE));
    lapic_write(APIC_LVT_TIMER, DEADLINE | VECTOR);
    delay_us(1000);
    check(ticks[VECTOR] == then, "a deadline written in one-shot mode came");
    // From sleep.
    uint64_t slept = 0;
    for (unsigned i = 0; i < 50; i++) {
        interrupts_off();
        uint32_t before = ticks[VECTOR];
        uint64_t deadline = read_tsc() + 300 * us;
        write_msr(MSR_TSC_DEADLINE, deadline);
        while (ticks[VECTOR] == before) {
            wait_for_interrupt();
            interrupts_off();
        }
        slept += tick_tsc - deadline;
    }
    print("deadline_from_halt late_cycles_mean=%lu\n", slept / 50);
    lapic_write(APIC_LVT_TIMER, MASKED);
}
