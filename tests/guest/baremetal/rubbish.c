// SPDX-License-Identifier: GPL-2.0-or-later
// Pseudo-random rubbish into every port, device register, MSR and control register. The machine must live.
//
// Options: seed=N; rounds=N (default 20000 accesses of known devices); wild ends with rubbish in CR3, which
// no guest survives; nulltss ends with no task register and an interrupt from ring 3.
#include "guest.h"

static uint64_t state;
static volatile uint32_t interrupts;

static uint32_t random(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}
static uint64_t random64(void) { return (uint64_t)random() << 33 ^ (uint64_t)random() << 11 ^ random(); }

static void count(struct trap_frame* frame) {
    (void)frame;
    interrupts++;
    lapic_eoi();
    if (frame->vector >= 0x28 && frame->vector < 0x30) out8(0xa0, 0x20);
    if (frame->vector >= 0x20 && frame->vector < 0x30) out8(0x20, 0x20);
}

// Ports that end or reset the machine, or on QEMU's board belong to the firmware's own devices.
static bool fatal(uint32_t port, uint32_t size) {
    static const struct {
        uint16_t first, last;
    } ranges[] = {{0x64, 0x64},   {0x92, 0x92}, {0xf4, 0xf7},  {0x604, 0x605},
                  {0xcf8, 0xcff}, {0xb2, 0xb3}, {0x510, 0x51b}};
    for (unsigned i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (port + size > ranges[i].first && port <= ranges[i].last) return true;
    return port + size > 0x10000;
}

static void access_port(uint32_t port) {
    uint32_t kind = random(), size = 1u << kind % 3;
    if (kind >> 2 & 1) {
        if (size == 1) in8((uint16_t)port);
        if (size == 2) in16((uint16_t)port);
        if (size == 4) in32((uint16_t)port);
        return;
    }
    if (fatal(port, size)) return;
    if (size == 1) out8((uint16_t)port, (uint8_t)random());
    if (size == 2) out16((uint16_t)port, (uint16_t)random());
    if (size == 4) out32((uint16_t)port, random() << 1 ^ random());
}

static void ports(uint32_t rounds) {
    static const uint16_t known[] = {0x20,  0x21,  0x40,  0x41,  0x42,  0x43,  0x60,  0x61,
                                     0x64,  0x70,  0x71,  0x80,  0xa0,  0xa1,  0x3f8, 0x3f9,
                                     0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x4d0, 0x4d1,
                                     0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc, 0xcfe};
    for (uint32_t port = 0; port < 0x10000; port++) access_port(port);
    for (uint32_t i = 0; i < rounds; i++) access_port(known[random() % (sizeof known / 2)]);
    // PCI configuration, but for the register that resets.
    for (uint32_t i = 0; i < 2000; i++) {
        out32(0xcf8, 0x80000000 | (random() & 0xfffffc));
        in32(0xcfc);
        if (option("strict")) out32(0xcfc, random());
    }
}

static void console_back(void) {
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    out8(0x3fb, 0x80);
    out8(0x3f8, 1);
    out8(0x3f9, 0);
    out8(0x3fb, 3);
    out8(0x3fa, 7);
    out8(0x3f9, 0);
    out8(0x3fc, 3);
    out8(0x70, 0xb);
    out8(0x71, 2);
}

static void touch(void* address) {
    uint32_t kind = random();
    switch (kind % 6) {
        case 0:
            *(volatile uint8_t*)address = (uint8_t)random();
            break;
        case 1:
            *(volatile uint16_t*)address = (uint16_t)random();
            break;
        case 2:
            *(volatile uint64_t*)address = random64();
            break;
        case 3:
            (void)*(volatile uint8_t*)address;
            break;
        case 4:
            (void)*(volatile uint64_t*)address;
            break;
        case 5:
            __asm__ volatile("lock xaddl %0, (%1)" : "+r"(kind) : "r"(address) : "memory", "cc");
            break;
    }
}

static void lapic(uint32_t rounds) {
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t offset = random() % 64 * 16;
        uint32_t value = random() << 1 ^ random();
        if (offset == APIC_ICR) value = (value & ~0x700u) | ICR_SELF;  // no INIT and no start-up to ourselves
        // Vectors of exceptions with an error code would not fit their entries.
        if (offset == APIC_ICR || offset == APIC_SVR || (offset >= 0x2f0 && offset <= 0x370)) value |= 0x20;
        // A period shorter than its handler leaves no time for anything else, on a PC too.
        if (offset == APIC_TIMER_INITIAL) value |= 0x10000000;
        // The 8259A's output may stay high for ever after the rubbish in its own registers.
        if (offset == APIC_LVT_LINT0 || offset == APIC_LVT_LINT1) value |= 0x10000;
        // No LVT that resets or shuts down, and none that takes the 8259A's word for a vector.
        if (offset >= 0x2f0 && offset <= 0x370) value &= ~0x700u;
        if (random() & 1)
            *(volatile uint32_t*)(uint64_t)(0xfee00000 + offset) = value;
        else
            (void)*(volatile uint32_t*)(uint64_t)(0xfee00000 + offset);
        if (offset != APIC_ICR && offset != APIC_TIMER_INITIAL && (offset < 0x2f0 || offset > 0x370) &&
            offset != APIC_SVR && i % 4 == 0)
            trap_catch(touch, (void*)(uint64_t)(0xfee00000 + offset + random() % 16));
    }
    lapic_enable(false);
}

static void ioapic(uint32_t rounds) {
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t index = random() % 0x48, value = random() << 1 ^ random();
        if (index >= 0x10 && !(index & 1))
            value = (value & ~0x700u) | 0x20;  // fixed delivery, no exception's vector
        // An idle line that the pin takes for an active level would interrupt after each instruction.
        if (index >= 0x10 && !(index & 1) && value & 0x8000) value |= 0x10000;
        *(volatile uint32_t*)0xfec00000ull = index;
        *(volatile uint32_t*)0xfec00010ull = value;
        (void)*(volatile uint32_t*)0xfec00010ull;
        if (i % 4 == 0 && index != 0x10) {
            *(volatile uint32_t*)0xfec00000ull =
                0x3f;  // no such register: the window takes rubbish of any width
            trap_catch(touch, (void*)(0xfec00010ull + random() % 16));
        }
    }
    for (uint32_t pin = 0; pin < 24; pin++) {
        *(volatile uint32_t*)0xfec00000ull = 0x10 + 2 * pin;
        *(volatile uint32_t*)0xfec00010ull = 0x10000;
    }
}

static void write_rubbish(void* msr) { write_msr((uint32_t)(uint64_t)msr, random64()); }
static void read_any(void* msr) { read_msr((uint32_t)(uint64_t)msr); }

static uint32_t msrs(uint32_t rounds) {
    uint32_t refused = 0;
    for (uint32_t i = 0; i < rounds; i++) {
        static const uint32_t bases[] = {0,     0x100,      0x200,      0x300,      0x400,     0x600,
                                         0x800, 0xc0000000, 0xc0000080, 0xc0010000, 0x40000000};
        uint32_t msr = bases[random() % 11] + random() % 0x100;
        if (i % 16 == 0) msr = random() << 1;
        refused += trap_catch(read_any, (void*)(uint64_t)msr) == 13;
        // EFER and the APIC's base would take the ground from under our feet.
        if (msr == 0xc0000080 || msr == MSR_APIC_BASE || msr == 0x830) continue;
        refused += trap_catch(write_rubbish, (void*)(uint64_t)msr) == 13;
    }
    return refused;
}

static void rubbish_cr0(void* unused) {
    (void)unused;
    // PE, PG and WP stay, and so does the write-through that nobody emulates.
    write_cr0((random() & ~0x60000000u) | 0x80010001);
}
static void rubbish_cr4(void* unused) {
    (void)unused;
    write_cr4((random64() & ~0x21000ull) | 0x20);
}
static void rubbish_cr8(void* unused) {
    (void)unused;
    write_cr8(random64());
}
static void rubbish_dr(void* unused) {
    (void)unused;
    __asm__ volatile("mov %0, %%db0; mov %1, %%db1; mov %2, %%db6; mov %3, %%db7" ::"r"(random64()),
                     "r"(random64()), "r"((uint64_t)random()), "r"((uint64_t)random() & ~0x2000u));
}
static void rubbish_xcr(void* unused) {
    (void)unused;
    __asm__ volatile("xsetbv" ::"a"(random()), "d"(0), "c"(random() % 4));
}
static void rubbish_mxcsr(void* unused) {
    (void)unused;
    uint32_t value = random();
    __asm__ volatile("ldmxcsr %0" ::"m"(value));
}
static void rubbish_fxrstor(void* unused) {
    (void)unused;
    static uint64_t area[64] __attribute__((aligned(64)));
    for (unsigned i = 0; i < 64; i++) area[i] = random64();
    __asm__ volatile(
        "fxrstor %0; fld1; fadd %%st(0); fstp %%st(0); addps %%xmm0, %%xmm1; cvttsd2si %%xmm2, %%rax; "
        "fnclex" ::"m"(area)
        : "rax");
}

static uint32_t control(uint32_t rounds) {
    static void (*const bodies[])(void*) = {rubbish_cr0, rubbish_cr4,   rubbish_cr8,    rubbish_dr,
                                            rubbish_xcr, rubbish_mxcsr, rubbish_fxrstor};
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    uint32_t trapped = 0, mxcsr = 0x1f80;
    for (uint32_t i = 0; i < rounds; i++) {
        trapped += trap_catch(bodies[i % 7], NULL) >= 0;
        write_cr0(cr0);
        write_cr4(cr4);
        write_cr8(0);
        __asm__ volatile("mov %0, %%db7; ldmxcsr %1; fninit" ::"r"(0x400ull), "m"(mxcsr));
    }
    return trapped;
}

void guest_main(void) {
    state = option_number("seed", 1);
    uint32_t rounds = (uint32_t)option_number("rounds", 20000);
    trap_handlers[2] = count;
    for (unsigned vector = 0x20; vector < 256; vector++) trap_handlers[vector] = count;
    interrupts_on();
    ports(rounds);
    console_back();
    print("\nports done\n");
    lapic(rounds / 4);
    print("lapic done\n");
    ioapic(rounds / 4);
    print("ioapic done\n");
    print("msrs refused=%u\n", msrs(rounds / 4));
    lapic_enable(false);
    print("control trapped=%u\n", control(rounds / 4));
    print("interrupts=%u\n", interrupts);
    if (option("wild"))
        for (;;) write_cr3(random64() & 0xffffff000);
    finish();
}
