// SPDX-License-Identifier: GPL-2.0-or-later
// The local APIC (SDM 3A, chapter 11): memory-mapped in xAPIC mode, MSRs 0x800.. in x2APIC mode.
#include "guest.h"

#define BASE_X2 (1u << 10)
#define BASE_ENABLE (1u << 11)
#define ICR_PENDING 0x1000u

static volatile uint32_t* const xapic = (volatile uint32_t*)0xfee00000u;

bool lapic_has_x2(void) {
    uint32_t r[4];
    cpuid(1, 0, r);
    return r[2] >> 21 & 1;
}

bool lapic_is_x2(void) { return read_msr(MSR_APIC_BASE) & BASE_X2; }

uint32_t lapic_read(uint32_t reg) {
    return lapic_is_x2() ? (uint32_t)read_msr(MSR_X2APIC + reg / 16) : xapic[reg / 4];
}

void lapic_write(uint32_t reg, uint32_t value) {
    if (lapic_is_x2())
        write_msr(MSR_X2APIC + reg / 16, value);
    else
        xapic[reg / 4] = value;
}

uint32_t lapic_id(void) { return lapic_is_x2() ? lapic_read(APIC_ID) : lapic_read(APIC_ID) >> 24; }

void lapic_enable(bool x2) {
    uint64_t base = read_msr(MSR_APIC_BASE);
    if (x2)
        write_msr(MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2);
    else if (base & BASE_X2) {
        // x2APIC to xAPIC goes through "disabled" only: SDM 3A, figure 11-27.
        write_msr(MSR_APIC_BASE, base & ~(uint64_t)(BASE_ENABLE | BASE_X2));
        write_msr(MSR_APIC_BASE, (base & ~(uint64_t)BASE_X2) | BASE_ENABLE);
    }
    lapic_write(APIC_SVR, 0x1ff);
    lapic_write(APIC_TPR, 0);
    lapic_write(APIC_LVT_TIMER, 0x10000);
    lapic_write(APIC_LVT_LINT0, 0x10000);
    lapic_write(APIC_LVT_LINT1, 0x10000);
    lapic_write(APIC_LVT_ERROR, 0x10000);
}

void lapic_send(uint32_t destination, uint32_t command) {
    if (lapic_is_x2()) {
        write_msr(MSR_X2APIC + APIC_ICR / 16, (uint64_t)destination << 32 | command);
        return;
    }
    while (xapic[APIC_ICR / 4] & ICR_PENDING) pause();
    xapic[APIC_ICR_HIGH / 4] = destination << 24;
    xapic[APIC_ICR / 4] = command;
}
