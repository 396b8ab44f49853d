// SPDX-License-Identifier: GPL-2.0-or-later
// Interrupts from core to core: destinations, delivery modes, none lost (SDM 3A, 11.6).
#include "smp.h"

#define BROADCAST_X1 0xffu
#define BROADCAST_X2 0xffffffffu

// Sends, then expects the vector once at each core of the mask and nowhere else.
static void expect(const char* what, uint8_t vector, uint32_t destination, uint32_t command, uint32_t mask) {
    for (uint32_t core = 0; core < cores; core++) counts[vector][core] = 0;
    lapic_send(destination, command | ICR_ASSERT | vector);
    for (uint32_t core = 0; core < cores; core++)
        if (mask >> core & 1)
            check(eventually(&counts[vector][core], 1), "%s: vector %x came to core %u %u times", what,
                  vector, core, counts[vector][core]);
    delay_us(20);
    for (uint32_t core = 0; core < cores; core++)
        check(counts[vector][core] == (mask >> core & 1), "%s: vector %x came to core %u %u times", what,
              vector, core, counts[vector][core]);
}

static void destinations(uint32_t all) {
    for (uint32_t core = 0; core < cores; core++) {
        expect("physical", 0x31, core_apic_ids[core], 0, 1u << core);
        expect("physical, high vector", 0xef, core_apic_ids[core], 0, 1u << core);
    }
    expect("self", 0x32, 0, ICR_SELF, 1);
    expect("all excluding self", 0x33, 0, ICR_OTHERS, all & ~1u);
    expect("all including self", 0x34, 0, ICR_ALL, all);
    expect("physical broadcast", 0x35, lapic_is_x2() ? BROADCAST_X2 : BROADCAST_X1, 0, all);
    expect("no such core", 0x36, lapic_is_x2() ? 0x12345 : 0xfd, 0, 0);
}

static void icr_read_back(void) {
    uint32_t target = core_apic_ids[cores - 1];
    lapic_send(target, ICR_ASSERT | 0x3a);
    if (lapic_is_x2()) {
        uint64_t value = read_msr(MSR_X2APIC + APIC_ICR / 16);
        check(value == ((uint64_t)target << 32 | ICR_ASSERT | 0x3a), "ICR reads %lx", value);
        return;
    }
    for (unsigned i = 0; i < 1000 && lapic_read(APIC_ICR) & 0x1000; i++) pause();
    uint32_t low = lapic_read(APIC_ICR), high = lapic_read(APIC_ICR_HIGH);
    check((low & ~0x1000u) == (ICR_ASSERT | 0x3a) && high == target << 24, "ICR reads %x %x", high, low);
}

static bool cluster_model;

static void set_logical(uint32_t core) {
    if (cluster_model) {
        lapic_write(APIC_DFR, 0x0fffffff);
        lapic_write(APIC_LDR, (core / 4 << 4 | 1u << core % 4) << 24);
    } else {
        lapic_write(APIC_DFR, 0xffffffff);
        lapic_write(APIC_LDR, core < 8 ? 1u << core << 24 : 0);
    }
}

static uint32_t x2_logical(uint32_t core) {
    return core_apic_ids[core] >> 4 << 16 | 1u << (core_apic_ids[core] & 15);
}

static void logical_x2(uint32_t all) {
    for (uint32_t core = 0; core < cores; core++)
        expect("x2APIC logical", 0x41, x2_logical(core), ICR_LOGICAL, 1u << core);
    uint32_t cluster = core_apic_ids[0] >> 4, mask = 0, odd = 0;
    for (uint32_t core = 0; core < cores; core++) {
        if (core_apic_ids[core] >> 4 != cluster) continue;
        mask |= 1u << core;
        if (core % 2) odd |= 1u << core;
    }
    expect("x2APIC logical cluster", 0x42, cluster << 16 | 0xffff, ICR_LOGICAL, mask);
    uint32_t bits = 0;
    for (uint32_t core = 0; core < cores; core++)
        if (odd >> core & 1) bits |= 1u << (core_apic_ids[core] & 15);
    if (bits) expect("x2APIC logical, odd cores", 0x43, cluster << 16 | bits, ICR_LOGICAL, odd);
    expect("x2APIC logical broadcast", 0x44, BROADCAST_X2, ICR_LOGICAL, all);
}

static void logical_x1(uint32_t all) {
    uint32_t flat = all & 0xff;
    for (uint32_t core = 0; core < cores && core < 8; core++)
        expect("logical flat", 0x41, 1u << core, ICR_LOGICAL, 1u << core);
    expect("logical flat, all", 0x42, 0xff, ICR_LOGICAL, flat);
    expect("logical flat, odd cores", 0x43, 0xaa, ICR_LOGICAL, flat & 0xaa);
    listen_end();
    cluster_model = true;
    cores_run(set_logical, cores);
    listen_begin();
    for (uint32_t core = 0; core < cores; core++)
        expect("logical cluster", 0x45, core / 4 << 4 | 1u << core % 4, ICR_LOGICAL, 1u << core);
    expect("logical cluster, first cluster", 0x46, 0x0f, ICR_LOGICAL, all & 0xf);
    if (option("strict")) expect("logical cluster, broadcast", 0x47, 0xff, ICR_LOGICAL, all);
    listen_end();
    cluster_model = false;
    cores_run(set_logical, cores);
    listen_begin();
}

static void lowest_priority(void) {
    // Exactly one takes it, whichever the arbitration chooses.
    for (unsigned round = 0; round < 20; round++) {
        for (uint32_t core = 0; core < cores; core++) counts[0x48][core] = 0;
        uint32_t destination = lapic_is_x2() ? (core_apic_ids[0] >> 4 << 16 | 0xffff) : 0xff;
        lapic_send(destination, ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | 0x48);
        uint32_t sum = 0;
        for (uint64_t end = read_tsc() + 20 * tsc_hz(); !sum && read_tsc() < end;)
            for (uint32_t core = 0; core < cores; core++) sum += counts[0x48][core];
        delay_us(20);
        sum = 0;
        for (uint32_t core = 0; core < cores; core++) sum += counts[0x48][core];
        check(sum == 1, "a lowest-priority interrupt was taken %u times", sum);
    }
}

void test_ipis(void) {
    uint32_t all = cores == 32 ? ~0u : (1u << cores) - 1;
    cluster_model = false;
    if (!lapic_is_x2()) cores_run(set_logical, cores);
    listen_begin();
    interrupts_on();
    destinations(all);
    if (lapic_is_x2())
        logical_x2(all);
    else
        logical_x1(all);
    if (cores <= 8) lowest_priority();
    icr_read_back();
    delay_us(100);
    interrupts_off();
    listen_end();
}

// --- NMI

static volatile uint32_t nmi_in, nmi_nested, nmi_again;

static void nmi_handler(struct trap_frame* frame) {
    (void)frame;
    uint32_t core = this_core()->index;
    if (nmi_in) nmi_nested++;
    if (core == 0) nmi_in = 1;
    if (core == 0 && nmi_again) {
        // Two more while NMIs are blocked: they become one, after IRET.
        nmi_again = 0;
        for (unsigned i = 0; i < 2; i++) {
            lapic_send(core_apic_ids[0], ICR_NMI | ICR_ASSERT);
            delay_us(50);
        }
    }
    counts[2][core]++;
    if (core == 0) nmi_in = 0;
}

void test_nmi(void) {
    trap_handlers[2] = nmi_handler;
    listen_begin();
    for (uint32_t core = 1; core < cores; core++) {
        for (unsigned i = 1; i <= 10; i++) {
            lapic_send(core_apic_ids[core], ICR_NMI | ICR_ASSERT);
            check(eventually(&counts[2][core], i), "NMI %u did not come to core %u", i, core);
        }
    }
    clear_counts();
    lapic_send(0, ICR_OTHERS | ICR_NMI | ICR_ASSERT);
    for (uint32_t core = 1; core < cores; core++)
        check(eventually(&counts[2][core], 1), "NMI to all others: %u at core %u", counts[2][core], core);
    listen_end();
    // To this core, with interrupts off; then one that blocks two others.
    clear_counts();
    lapic_send(core_apic_ids[0], ICR_NMI | ICR_ASSERT);
    check(eventually(&counts[2][0], 1), "an NMI with IF=0 was not taken");
    nmi_again = 1;
    nmi_nested = 0;
    lapic_send(core_apic_ids[0], ICR_NMI | ICR_ASSERT);
    eventually(&counts[2][0], 3);
    delay_us(500);
    check(counts[2][0] == 3 && !nmi_nested, "NMIs while blocked: %u taken, %u nested; expected 2 and 0",
          counts[2][0] - 1, nmi_nested);
    trap_handlers[2] = NULL;
}

// --- every core sends to every other as fast as it is answered

static struct barrier storm_gate;
static uint32_t storm_rounds;

static void storm(uint32_t core) {
    uint32_t sent = 0, answered = 0;
    interrupts_on();
    barrier_wait(&storm_gate, cores);
    // A busy host turns each round into a wait for its scheduler: some rounds are enough then.
    uint64_t end = read_tsc() + tsc_hz() / 2;
    for (uint32_t i = 0; i < storm_rounds && (i < 5 || read_tsc() < end); i++) {
        for (uint32_t step = 1; step < cores; step++) {
            uint32_t target = (core + step) % cores;
            uint8_t vector = (uint8_t)(0x60 + core);
            uint32_t before = counts[vector][target];
            lapic_send(core_apic_ids[target], ICR_ASSERT | vector);
            sent++;
            answered += eventually(&counts[vector][target], before + 1);
            if (answered != sent) break;
        }
        if (answered != sent) break;
    }
    check(sent == answered, "core %u: IPI %u of the storm was lost", core, sent);
    barrier_wait(&storm_gate, cores);
    interrupts_off();
}

void test_storm(void) {
    if (cores < 2) return;
    clear_counts();
    storm_rounds = cores <= 2 ? 1000 : cores <= 4 ? 200 : 10;
    cores_run(storm, cores);
}
