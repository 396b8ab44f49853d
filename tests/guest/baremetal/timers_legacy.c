// SPDX-License-Identifier: GPL-2.0-or-later
// The old timers of the board: 8254 through IOAPIC pin 2 and through the 8259A pair, RTC on IRQ 8.
#include "timers.h"

#define IOAPIC 0xfec00000u
#define PIT_HZ 1193182u
#define MASKED 0x10000u

static uint32_t ioapic_read(uint8_t index) {
    *(volatile uint32_t*)(uint64_t)IOAPIC = index;
    return *(volatile uint32_t*)(uint64_t)(IOAPIC + 0x10);
}
static void ioapic_write(uint8_t index, uint32_t value) {
    *(volatile uint32_t*)(uint64_t)IOAPIC = index;
    *(volatile uint32_t*)(uint64_t)(IOAPIC + 0x10) = value;
}
static void route(uint8_t pin, uint32_t low, uint32_t destination) {
    ioapic_write((uint8_t)(0x10 + 2 * pin), MASKED);
    ioapic_write((uint8_t)(0x11 + 2 * pin), destination << 24);
    ioapic_write((uint8_t)(0x10 + 2 * pin), low);
}

static void pit_start(uint8_t mode, uint32_t count) {
    out8(0x43, (uint8_t)(0x30 | mode << 1));
    out8(0x40, (uint8_t)count);
    out8(0x40, (uint8_t)(count >> 8));
}

static uint32_t pit_count(void) {
    out8(0x43, 0);  // latch
    uint32_t low = in8(0x40);
    return low | (uint32_t)in8(0x40) << 8;
}

static void pic_start(uint8_t master_mask, uint8_t slave_mask) {
    static const uint8_t words[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1},
                                       {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2}, {0xa1, 1}};
    for (unsigned i = 0; i < 8; i++) out8(words[i][0], words[i][1]);
    out8(0x21, master_mask);
    out8(0xa1, slave_mask);
}

static void expect_rate(const char* what, uint8_t vector, uint32_t wanted, uint64_t period_us) {
    uint64_t from = read_tsc();
    uint32_t before = ticks[vector];
    bool came = ticked(vector, before + wanted, 30000000);
    uint64_t took = (read_tsc() - from) / (tsc_hz() / 1000000);
    check(came && took + period_us * 2 > wanted * period_us * 9 / 10,
          "%s: %u interrupts in %lu us, expected %u in %lu", what, ticks[vector] - before, took, wanted,
          wanted * period_us);
    print("%s us=%lu of=%lu\n", what, took, wanted * period_us);
}

static void on_pic_tick(struct trap_frame* frame) {
    ticks[frame->vector]++;
    if (frame->vector >= 0x28) out8(0xa0, 0x20);
    out8(0x20, 0x20);
}

static void on_rtc(struct trap_frame* frame) {
    out8(0x70, 0x0c);  // the interrupt stays up until register C is read
    in8(0x71);
    ticks[frame->vector]++;
    lapic_eoi();
}

static void on_pic_rtc(struct trap_frame* frame) {
    out8(0x70, 0x0c);
    in8(0x71);
    on_pic_tick(frame);
}

void test_pit(void) {
    check((ioapic_read(1) & 0xff) >= 0x11 && (ioapic_read(1) >> 16 & 0xff) >= 23, "IOAPIC version %x",
          ioapic_read(1));
    route(4, 0xe955 | MASKED, 0xa5);
    check((ioapic_read(0x18) & ~0x1000u) == (0xa955 | MASKED | (ioapic_read(0x18) & 0x4000)) &&
              ioapic_read(0x19) == 0xa5000000,
          "a redirection entry reads %x %x", ioapic_read(0x19), ioapic_read(0x18));
    route(4, MASKED, 0);
    interrupts_on();
    // A count read back falls.
    uint32_t fell = 0;
    pit_start(2, 0xffff);
    // Again when the emulator lost the processor meanwhile: the counter wraps after 55 ms.
    for (unsigned attempt = 0; attempt < 50 && (fell <= 1000 || fell >= 12000); attempt++) {
        uint32_t first = pit_count();
        delay_us(1000);
        fell = (first - pit_count()) & 0xffff;
    }
    check(fell > 1000 && fell < 12000, "the 8254 fell by %u in a millisecond, expected 1193", fell);
    // Rate generator, 1 kHz.
    ticks[0x50] = 0;
    route(2, 0x50, core_apic_ids[0]);
    pit_start(2, PIT_HZ / 1000);
    expect_rate("pit-ioapic", 0x50, 50, 1000);
    route(2, 0x50 | MASKED, core_apic_ids[0]);
    delay_us(100);
    uint32_t then = ticks[0x50];
    delay_us(5000);
    check(ticks[0x50] == then, "%u interrupts of a masked IOAPIC pin", ticks[0x50] - then);
    // Interrupt on terminal count: once.
    pit_start(0, 0xffff);
    ticks[0x52] = 0;
    route(2, 0x52, core_apic_ids[0]);
    pit_start(0, PIT_HZ / 500);
    check(ticked(0x52, 1, 20000000), "8254 mode 0: no interrupt");
    delay_us(5000);
    check(ticks[0x52] == 1, "8254 mode 0: %u interrupts", ticks[0x52]);
    route(2, MASKED, 0);
    // Through the 8259A as a virtual wire on LINT0.
    trap_handlers[0x20] = on_pic_tick;
    ticks[0x20] = 0;
    pic_start(0xfe, 0xff);
    lapic_write(APIC_LVT_LINT0, 0x700);
    pit_start(2, PIT_HZ / 1000);
    expect_rate("pit-8259", 0x20, 50, 1000);
    check(in8(0x21) == 0xfe, "8259A mask reads %x", in8(0x21));
    out8(0x21, 0xff);
    delay_us(100);
    then = ticks[0x20];
    delay_us(5000);
    check(ticks[0x20] == then, "%u interrupts of a masked 8259A line", ticks[0x20] - then);
    lapic_write(APIC_LVT_LINT0, MASKED);
    interrupts_off();
}

static volatile uint32_t taken_by[MAX_CORES], stop;

static void on_routed(struct trap_frame* frame) {
    taken_by[this_core()->index]++;
    ticks[frame->vector]++;
    lapic_eoi();
}

static void listen(uint32_t core) {
    if (core == 0) return;
    interrupts_on();
    while (!stop) pause();
    interrupts_off();
}

// The same timer to every other core: by APIC id, by logical id, to the one of lowest priority.
static void routes(void) {
    uint32_t others = cores_running < 5 ? cores_running : 5;
    trap_handlers[0x5a] = on_routed;
    stop = 0;
    pit_start(2, PIT_HZ / 1000);
    cores_post(listen, others);
    for (uint32_t core = 1; core < others; core++) {
        memset((void*)taken_by, 0, sizeof taken_by);
        ticks[0x5a] = 0;
        route(2, 0x5a, core_apic_ids[core]);
        check(ticked(0x5a, 5, 20000000), "the IOAPIC does not reach core %u", core);
        route(2, 0x5a | MASKED, core_apic_ids[core]);
        delay_us(2000);
        check(taken_by[core] == ticks[0x5a], "of %u interrupts for core %u it took %u", ticks[0x5a], core,
              taken_by[core]);
    }
    lapic_write(APIC_DFR, 0xffffffff);
    lapic_write(APIC_LDR, 1u << 24);
    interrupts_on();
    ticks[0x5a] = 0;
    route(2, 0x5a | ICR_LOGICAL, 1);
    check(ticked(0x5a, 5, 20000000), "the IOAPIC does not reach a logical id");
    ticks[0x5a] = 0;
    route(2, 0x5a | ICR_LOGICAL | ICR_LOWEST, 1);
    check(ticked(0x5a, 5, 20000000), "the IOAPIC does not reach the core of lowest priority");
    route(2, MASKED, 0);
    stop = 1;
    if (others > 1) cores_join();
}

static volatile uint32_t levels, remote_irr_missing;

static void on_level(struct trap_frame* frame) {
    (void)frame;
    levels++;
    remote_irr_missing += !(ioapic_read(0x10 + 2 * 5) & 0x4000);
    // The sixth masks the pin; before, each EOI brings the next.
    if (levels == 6) ioapic_write(0x10 + 2 * 5, MASKED | 0xa000 | 0x5b);
    lapic_eoi();
}

// An idle line taken for active low and level: it interrupts until somebody masks it.
static void level_triggered(void) {
    trap_handlers[0x5b] = on_level;
    levels = remote_irr_missing = 0;
    interrupts_on();
    route(5, 0xa000 | 0x5b, core_apic_ids[0]);
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); levels < 6 && read_tsc() < end;) pause();
    delay_us(2000);
    check(levels == 6, "a level interrupt came %u times, expected 6", levels);
    check(!remote_irr_missing, "remote IRR was not set in %u of 6 handlers", remote_irr_missing);
    check(!(ioapic_read(0x10 + 2 * 5) & 0x4000), "remote IRR is still set after the EOI");
    // Active high it is idle.
    levels = 0;
    route(5, 0x8000 | 0x5b, core_apic_ids[0]);
    delay_us(2000);
    check(!levels, "a level interrupt of an idle line");
    route(5, MASKED, 0);
    interrupts_off();
}

void test_rtc(void) {
    routes();
    if (option("level")) level_triggered();
    interrupts_on();
    out8(0x70, 0x0d);
    check(in8(0x71) & 0x80, "RTC register D %x: time not valid", in8(0x71));
    out8(0x70, 0x0a);
    out8(0x71, 0x26);  // 1024 Hz
    out8(0x70, 0x0b);
    uint8_t control = in8(0x71);
    out8(0x70, 0x0c);
    in8(0x71);
    trap_handlers[0x58] = on_rtc;
    ticks[0x58] = 0;
    route(8, 0x58, core_apic_ids[0]);
    out8(0x70, 0x0b);
    out8(0x71, control | 0x40);
    expect_rate("rtc-ioapic", 0x58, 40, 977);
    route(8, MASKED, 0);
    // The same by the slave 8259A.
    trap_handlers[0x28] = on_pic_rtc;
    ticks[0x28] = 0;
    out8(0x70, 0x0c);
    in8(0x71);
    pic_start(0xfb, 0xfe);
    lapic_write(APIC_LVT_LINT0, 0x700);
    out8(0x70, 0x0c);
    in8(0x71);
    expect_rate("rtc-8259", 0x28, 40, 977);
    out8(0x70, 0x0b);
    out8(0x71, control);
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    lapic_write(APIC_LVT_LINT0, MASKED);
    interrupts_off();
    trap_handlers[0x20] = trap_handlers[0x28] = NULL;
}
