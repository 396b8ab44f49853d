// SPDX-License-Identifier: GPL-2.0-or-later
// A reset begins the machine anew: this guest resets it in each way there is, and passes at the last start.
// What it counts stands in RAM where no image lies, and in CMOS RAM: both outlive a reset.
#include "guest.h"

#define KEPT 0x3000000u
#define MAGIC 0x72657374617274ull
#define CMOS_CELL 0x60

static volatile uint64_t* const magic = (uint64_t*)KEPT;
static volatile uint32_t* const starts = (uint32_t*)(KEPT + 8);

static volatile uint32_t initialized = 0x1234;  // of the image, which a restart lays again

static void fault(uint32_t core) {
    if (core != cores_running - 1) return;
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } none = {0, 0};
    __asm__ volatile("lidt %0; ud2" ::"m"(none));
}

static void reset(uint32_t way) {
    switch (way) {
        case 0:  // PIIX reset control, as ACPI's reset register
            out8(0xcf9, 0x06);
            break;
        case 1:  // system control port A
            out8(0x92, in8(0x92) & 0xfe);
            out8(0x92, in8(0x92) | 1);
            break;
        case 2:  // keyboard controller: pulse output port bit 0
            out8(0x64, 0xfe);
            break;
        case 3:  // triple fault of the last core, which may be on another host
            cores_run(fault, cores_running);
            break;
        case 4:  // INIT of the bootstrap processor
            lapic_send(0, ICR_INIT);
            break;
    }
    for (;;) __asm__ volatile("hlt");
}

static uint8_t cmos(uint8_t index) {
    out8(0x70, index);
    return in8(0x71);
}

void guest_main(void) {
    if (*magic != MAGIC) {
        *magic = MAGIC;
        *starts = 0;
        out8(0x70, CMOS_CELL);
        out8(0x71, 0);
    }
    const uint32_t start = *starts;
    check(in8(0x80) == 0, "a device remembers %x of an earlier life", in8(0x80));
    check(cmos(CMOS_CELL) == (uint8_t)start, "CMOS RAM counts %u starts, RAM %u", cmos(CMOS_CELL), start);
    check(initialized == 0x1234, "the kernel is still the old one: %x", initialized);
    initialized = 0x4321;
    out8(0x80, 0x55);
    *starts = start + 1;
    out8(0x70, CMOS_CELL);
    out8(0x71, (uint8_t)(start + 1));
    cores_start();
    check(cores_running == cores_found, "%u cores of %u start", cores_running, cores_found);
    print("start=%u cores=%u\n", start, cores_running);
    if (start < 5) reset(start);
    finish();
}
