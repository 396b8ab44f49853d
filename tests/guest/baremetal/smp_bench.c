// SPDX-License-Identifier: GPL-2.0-or-later
// From the ICR write of one core to the first instruction of the other's handler, in TSC cycles.
#include "smp.h"

#define ROUNDS 2000u
#define PING 0x81
#define PONG 0x82

static volatile uint64_t arrived;
static volatile uint32_t stop;
static uint32_t samples[ROUNDS];

static void ping(struct trap_frame* frame) {
    (void)frame;
    arrived = read_tsc();
    lapic_eoi();
}

static void pong(struct trap_frame* frame) {
    count_handler(frame);
    if (this_core()->index == 1) lapic_send(core_apic_ids[0], ICR_ASSERT | PONG);
}

static void spin(uint32_t core) {
    if (core == 0) return;
    interrupts_on();
    while (!stop) __asm__ volatile("" ::: "memory");
    interrupts_off();
}

static void sleep(uint32_t core) {
    if (core == 0) return;
    while (!stop) wait_for_interrupt();
    interrupts_off();
}

static void sort(uint32_t* values, uint32_t n) {
    for (uint32_t gap = n / 2; gap; gap /= 2)
        for (uint32_t i = gap; i < n; i++)
            for (uint32_t j = i; j >= gap && values[j - gap] > values[j]; j -= gap) {
                uint32_t t = values[j];
                values[j] = values[j - gap], values[j - gap] = t;
            }
}

static uint64_t in_ns(uint64_t cycles) { return cycles * 1000 / (tsc_hz() / 1000000); }

static void latency(const char* name, void (*receiver)(uint32_t), uint32_t pause_us) {
    stop = 0;
    cores_post(receiver, 2);
    delay_us(2000);
    uint32_t n = 0;
    for (uint32_t i = 0; i < (pause_us ? ROUNDS / 4 : ROUNDS); i++) {
        arrived = 0;
        if (pause_us) delay_us(pause_us);
        uint64_t from = read_tsc();
        lapic_send(core_apic_ids[1], ICR_ASSERT | PING);
        while (!arrived && read_tsc() - from < tsc_hz()) pause();
        if (!check(arrived, "%s: an IPI was lost", name)) break;
        samples[n++] = (uint32_t)(arrived - from);
    }
    stop = 1;
    lapic_send(core_apic_ids[1], ICR_ASSERT | PING);
    cores_join();
    sort(samples, n);
    print("ipi_%s_cycles min=%u median=%u p99=%u\n", name, samples[0], samples[n / 2], samples[n * 99 / 100]);
    print("ipi_%s_ns=%lu\n", name, in_ns(samples[n / 2]));
}

static void self_latency(void) {
    interrupts_on();
    uint64_t from = read_tsc();
    for (unsigned i = 0; i < ROUNDS; i++) {
        arrived = 0;
        lapic_send(0, ICR_SELF | ICR_ASSERT | PING);
        while (!arrived) __asm__ volatile("" ::: "memory");
    }
    print("ipi_self_ns=%lu\n", in_ns((read_tsc() - from) / ROUNDS));
    interrupts_off();
}

static void round_trip(const char* name, void (*receiver)(uint32_t)) {
    stop = 0;
    cores_post(receiver, 2);
    delay_us(2000);
    clear_counts();
    interrupts_on();
    uint64_t from = read_tsc();
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        lapic_send(core_apic_ids[1], ICR_ASSERT | PONG);
        if (!check(eventually(&counts[PONG][0], i), "%s: a ping-pong was lost", name)) break;
    }
    print("ipi_round_trip_%s_ns=%lu\n", name, in_ns((read_tsc() - from) / ROUNDS));
    interrupts_off();
    stop = 1;
    lapic_send(core_apic_ids[1], ICR_ASSERT | PING);
    cores_join();
}

void bench_latency(void) {
    trap_handlers[PING] = ping;
    trap_handlers[PONG] = pong;
    self_latency();
    if (cores < 2) return;
    latency("running", spin, 0);
    latency("halted", sleep, 0);
    latency("long_halted", sleep, 500);
    round_trip("running", spin);
    round_trip("halted", sleep);
}
