// SPDX-License-Identifier: GPL-2.0-or-later
// A disk read by DMA, watched by all cores: when the interrupt line has risen, nothing is left to happen.
//
// The first core gives the commands. The others spin, the odd ones on the interrupt line (the request
// register of the slave 8259A), the even ones on the bus master's status; and in each round another core
// takes the interrupt. Each that learns of the end looks at once: the data must be in memory, the bus master
// inactive, the drive ready. The disk's sectors hold their numbers. Options: rounds=N (default 100).
#include "guest.h"

#define COMMAND_BLOCK 0x1f0u
#define CONTROL_BLOCK 0x3f6u
#define SLAVE_8259A 0xa0u
#define IOAPIC 0xfec00000ull
#define VECTOR 0x4e
#define SECTORS 16u
#define WORDS (SECTORS * 128)

enum { BSY = 0x80, DRQ = 0x08, ERR = 0x01 };
enum { BM_ACTIVE = 1, BM_ERROR = 2, BM_INTERRUPT = 4 };

static volatile uint32_t buffer[WORDS] __attribute__((aligned(4096)));
static volatile uint32_t table[4] __attribute__((aligned(4096)));
static volatile uint32_t round_now, seen[MAX_CORES], interrupts, first_sector;
static volatile uint32_t early_data, early_active, early_busy, no_interrupt_bit, over;
static uint16_t bus_master;

static void count(volatile uint32_t* counter) { __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST); }

// What is there at this moment? The data first: it is what a device could still be writing.
static void look(void) {
    bool there = true;
    for (uint32_t i = 0; i < WORDS; i += 127) there &= buffer[i] == first_sector + i / 128;
    there &= buffer[WORDS - 1] == first_sector + SECTORS - 1;
    uint8_t status = in8(bus_master + 2), drive = in8(CONTROL_BLOCK);
    if (!there) count(&early_data);
    if (status & (BM_ACTIVE | BM_ERROR)) count(&early_active);
    if (!(status & BM_INTERRUPT)) count(&no_interrupt_bit);
    if (drive & (BSY | DRQ | ERR)) count(&early_busy);
}

static void on_interrupt(struct trap_frame* frame) {
    (void)frame;
    look();
    count(&interrupts);
    lapic_eoi();
}

static void watch(uint32_t core) {
    if (core == 0) return;
    interrupts_on();
    for (uint32_t round = 1; !over; round++) {
        while (round_now != round && !over) pause();
        if (over) break;
        if (core & 1)
            while (!(in8(SLAVE_8259A) & 0x40)) pause();
        else
            while (!(in8(bus_master + 2) & BM_INTERRUPT)) pause();
        look();
        seen[core] = round;
    }
    interrupts_off();
}

static void ioapic_write(uint32_t index, uint32_t value) {
    *(volatile uint32_t*)IOAPIC = index;
    *(volatile uint32_t*)(IOAPIC + 0x10) = value;
}

static uint32_t config(uint32_t at) {
    out32(0xcf8, 0x80000000u | 1u << 11 | 1u << 8 | at);
    return in32(0xcfc);
}

static void read_by_dma(uint32_t sector) {
    table[0] = (uint32_t)(uint64_t)buffer;
    table[1] = 0x1000;
    table[2] = (uint32_t)(uint64_t)buffer + 0x1000;
    table[3] = (SECTORS * 512 - 0x1000) | 1u << 31;
    out32(bus_master + 4, (uint32_t)(uint64_t)table);
    out8(COMMAND_BLOCK + 6, 0xe0);
    out8(COMMAND_BLOCK + 2, SECTORS);
    out8(COMMAND_BLOCK + 3, (uint8_t)sector);
    out8(COMMAND_BLOCK + 4, (uint8_t)(sector >> 8));
    out8(COMMAND_BLOCK + 5, 0);
    out8(COMMAND_BLOCK + 7, 0xc8);  // READ DMA
}

void guest_main(void) {
    uint32_t rounds = (uint32_t)option_number("rounds", 100);
    cores_start();
    trap_handlers[VECTOR] = on_interrupt;
    if (!check(config(0) == 0x70108086, "no PIIX3 IDE function: %x", config(0))) finish();
    bus_master = (uint16_t)(config(0x20) & 0xfffc);
    out32(0xcf8, 0x80000000u | 1u << 11 | 1u << 8 | 4);
    out32(0xcfc, 5);          // I/O and bus master
    out8(SLAVE_8259A, 0x0a);  // reads give the request register
    uint32_t cores = cores_running;
    cores_post(watch, cores);
    interrupts_on();
    for (uint32_t round = 1; round <= rounds; round++) {
        ioapic_write(0x10 + 2 * 14 + 1, core_apic_ids[round % cores] << 24);
        ioapic_write(0x10 + 2 * 14, VECTOR);
        for (uint32_t i = 0; i < WORDS; i++) buffer[i] = 0xffffffff;
        first_sector = round * 5 % 1024;
        uint32_t before = interrupts;
        read_by_dma(first_sector);
        round_now = round;
        out8(bus_master, 0x09);
        for (uint32_t core = 1; core < cores; core++)
            while (seen[core] != round) pause();
        while (interrupts == before) pause();
        out8(bus_master, 0);
        uint8_t status = in8(COMMAND_BLOCK + 7);
        check(!(status & (BSY | DRQ | ERR)), "round %u: status %x", round, status);
        out8(bus_master + 2, BM_INTERRUPT);
        check(!in8(bus_master + 2), "round %u: bus master %x", round, in8(bus_master + 2));
    }
    over = 1;
    if (cores > 1) cores_join();
    interrupts_off();
    print("ide rounds=%u cores=%u interrupts=%u early_data=%u early_active=%u early_busy=%u\n", rounds, cores,
          interrupts, early_data, early_active, early_busy);
    check(!early_data, "%u times the data were not in memory", early_data);
    check(!early_active, "%u times the bus master was active", early_active);
    check(!early_busy, "%u times the drive was not ready", early_busy);
    check(!no_interrupt_bit, "%u times the bus master did not show the interrupt", no_interrupt_bit);
    check(interrupts == rounds, "%u interrupts in %u rounds", interrupts, rounds);
    finish();
}
