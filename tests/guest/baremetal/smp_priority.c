// SPDX-License-Identifier: GPL-2.0-or-later
// Acceptance of interrupts by one local APIC: IRR, ISR, TPR, PPR, EOI (SDM 3A, 11.8), and x2APIC's own rules.
#include "smp.h"

static uint8_t order[32];
static volatile uint32_t taken;

static void note(struct trap_frame* frame) {
    if (taken < sizeof order) order[taken] = (uint8_t)frame->vector;
    taken++;
    lapic_eoi();
}

static void send_self(uint8_t vector) { lapic_send(0, ICR_SELF | ICR_ASSERT | vector); }

static bool bit(uint32_t reg, uint8_t vector) {
    return lapic_read(reg + vector / 32 * 0x10) >> vector % 32 & 1;
}

static void settle(uint32_t wanted) {
    for (unsigned i = 0; i < 2000 && taken < wanted; i++) pause();
    for (unsigned i = 0; i < 50; i++) pause();
}

static void in_order(void) {
    static const uint8_t sent[] = {0x41, 0x71, 0x51, 0x75, 0x72, 0x31},
                         wanted[] = {0x75, 0x72, 0x71, 0x51, 0x41, 0x31};
    taken = 0;
    interrupts_off();
    for (unsigned i = 0; i < sizeof sent; i++) send_self(sent[i]);
    for (unsigned i = 0; i < sizeof sent; i++) {
        for (unsigned wait = 0; wait < 1000 && !bit(APIC_IRR, sent[i]); wait++) pause();
        check(bit(APIC_IRR, sent[i]), "vector %x is not in IRR with IF=0", sent[i]);
    }
    check(!taken, "%u interrupts with IF=0", taken);
    interrupts_on();
    settle(sizeof sent);
    interrupts_off();
    check(taken == sizeof sent && !memcmp(order, wanted, sizeof sent),
          "%u taken in the order %x %x %x %x %x %x", taken, order[0], order[1], order[2], order[3], order[4],
          order[5]);
    for (unsigned i = 0; i < 8; i++)
        check(!lapic_read(APIC_IRR + i * 16) && !lapic_read(APIC_ISR + i * 16),
              "IRR or ISR word %u not empty after", i);
}

static void by_task_priority(bool cr8) {
    taken = 0;
    if (cr8)
        write_cr8(5);
    else
        lapic_write(APIC_TPR, 0x5a);
    check(lapic_read(APIC_TPR) == (cr8 ? 0x50 : 0x5a) && read_cr8() == 5, "TPR %x CR8 %lx",
          lapic_read(APIC_TPR), read_cr8());
    check((lapic_read(APIC_PPR) & 0xf0) == 0x50, "PPR %x with TPR 5x", lapic_read(APIC_PPR));
    interrupts_on();
    send_self(0x41);
    send_self(0x5f);  // same class as the TPR: held
    send_self(0x61);
    settle(1);
    check(taken == 1 && order[0] == 0x61, "TPR 5x: %u taken, first %x, expected 61 alone", taken, order[0]);
    check(bit(APIC_IRR, 0x41) && bit(APIC_IRR, 0x5f) && !bit(APIC_IRR, 0x61),
          "TPR 5x: held vectors not in IRR");
    if (cr8)
        write_cr8(4);
    else
        lapic_write(APIC_TPR, 0x40);
    settle(2);
    check(taken == 2 && order[1] == 0x5f, "TPR 4x: %u taken, then %x, expected 5f", taken, order[1]);
    if (cr8)
        write_cr8(0);
    else
        lapic_write(APIC_TPR, 0);
    settle(3);
    check(taken == 3 && order[2] == 0x41, "TPR 0: %u taken, then %x, expected 41", taken, order[2]);
    interrupts_off();
}

static volatile uint32_t depth, deepest, outer_saw, in_service;

static void nesting(struct trap_frame* frame) {
    uint8_t vector = (uint8_t)frame->vector;
    if (taken < sizeof order) order[taken] = vector;
    taken++;
    depth++;
    if (depth > deepest) deepest = depth;
    in_service += bit(APIC_ISR, vector) && !bit(APIC_IRR, vector);
    if (vector == 0x51 && taken == 1) {
        check((lapic_read(APIC_PPR) & 0xf0) == 0x50, "PPR %x in a handler of 51", lapic_read(APIC_PPR));
        interrupts_on();
        send_self(0x81);  // higher: at once
        send_self(0x41);  // lower: after this one's EOI
        send_self(0x5e);  // same class: after this one's EOI
        send_self(0x51);  // itself: pends once behind the one in service
        for (unsigned i = 0; i < 300; i++) pause();
        interrupts_off();
        outer_saw = taken;
    }
    lapic_eoi();
    depth--;
}

static void nested(void) {
    static const uint8_t wanted[] = {0x51, 0x81, 0x5e, 0x51, 0x41};
    for (unsigned i = 0; i < sizeof wanted; i++) trap_handlers[wanted[i]] = nesting;
    taken = depth = deepest = in_service = 0;
    interrupts_on();
    send_self(0x51);
    settle(5);
    interrupts_off();
    check(taken == 5 && !memcmp(order, wanted, 5), "nested: %u taken in the order %x %x %x %x %x", taken,
          order[0], order[1], order[2], order[3], order[4]);
    check(outer_saw == 2 && deepest == 2 && in_service == 5,
          "nested: seen by the outer %u, depth %u, in service %u", outer_saw, deepest, in_service);
    for (unsigned i = 0; i < sizeof wanted; i++) trap_handlers[wanted[i]] = note;
}

static void try_vector_15(void* unused) {
    (void)unused;
    send_self(15);
}

static void software_disable(void) {
    lapic_write(APIC_LVT_TIMER, 0x20000 | 0x41);
    lapic_write(APIC_SVR, 0xff);
    check(lapic_read(APIC_LVT_TIMER) & 0x10000, "LVTs are not masked by a software disable");
    lapic_write(APIC_SVR, 0x1ff);
    check(lapic_read(APIC_LVT_TIMER) & 0x10000, "a software enable unmasks LVTs");
    lapic_write(APIC_LVT_TIMER, 0x10000);
}

void test_priority(void) {
    for (unsigned vector = 0x30; vector < 0x90; vector++) trap_handlers[vector] = note;
    in_order();
    by_task_priority(false);
    by_task_priority(true);
    nested();
    if (option("strict")) {
        software_disable();
        lapic_write(APIC_ESR, 0);
        trap_catch(try_vector_15, NULL);
        lapic_write(APIC_ESR, 0);
        check(lapic_read(APIC_ESR) & 0x20, "ESR %x after sending vector 15, expected bit 5",
              lapic_read(APIC_ESR));
        lapic_write(APIC_ESR, 0);
    }
    // The same vector many times with interrupts off is one interrupt.
    taken = 0;
    for (unsigned i = 0; i < 10; i++) send_self(0x61);
    interrupts_on();
    settle(1);
    interrupts_off();
    check(taken == 1, "ten times the same vector with IF=0: %u interrupts", taken);
    for (unsigned vector = 0x30; vector < 0x90; vector++) trap_handlers[vector] = count_handler;
}

// --- x2APIC (SDM 3A, 11.12)

static void read_one(void* msr) { read_msr((uint32_t)(uint64_t)msr); }
static void write_zero(void* msr) { write_msr((uint32_t)(uint64_t)msr, 0); }
static void write_upper(void* msr) { write_msr((uint32_t)(uint64_t)msr, 1ull << 32); }
static void write_base(void* value) { write_msr(MSR_APIC_BASE, (uint64_t)value); }

void test_x2apic(void) {
    static const uint16_t unreadable[] = {0x800, 0x80e, 0x831, 0x83f, 0x80b, 0x840, 0x8ff};
    static const uint16_t unwritable[] = {0x802, 0x803, 0x80a, 0x80d, 0x80e,
                                          0x810, 0x820, 0x831, 0x839, 0x840};
    check(read_msr(MSR_APIC_BASE) >> 10 & 1, "APIC base %lx after entering x2APIC mode",
          read_msr(MSR_APIC_BASE));
    check(lapic_id() == core_apic_ids[0], "x2APIC id %x", lapic_id());
    uint32_t ldr = core_apic_ids[0] >> 4 << 16 | 1u << (core_apic_ids[0] & 15);
    check(lapic_read(APIC_LDR) == ldr, "x2APIC LDR %x, expected %x", lapic_read(APIC_LDR), ldr);
    for (unsigned i = 0; i < sizeof unreadable / 2; i++) {
        int vector = trap_catch(read_one, (void*)(uint64_t)unreadable[i]);
        check(vector == 13, "RDMSR %x: vector %d, expected #GP", unreadable[i], vector);
    }
    for (unsigned i = 0; i < sizeof unwritable / 2; i++) {
        int vector = trap_catch(write_zero, (void*)(uint64_t)unwritable[i]);
        check(vector == 13, "WRMSR %x: vector %d, expected #GP", unwritable[i], vector);
    }
    check(trap_catch(write_upper, (void*)(uint64_t)0x808) == 13,
          "WRMSR of a reserved upper half to TPR: no #GP");
    uint64_t base = read_msr(MSR_APIC_BASE);
    check(trap_catch(write_base, (void*)(base & ~0x400ull)) == 13, "x2APIC to xAPIC in one step: no #GP");
    clear_counts();
    write_msr(0x83f, 0x58);
    interrupts_on();
    check(eventually(&counts[0x58][0], 1), "SELF IPI was not taken");
    interrupts_off();
}
