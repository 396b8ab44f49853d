// SPDX-License-Identifier: GPL-2.0-or-later
// #NM, #MF and #XM: the floating-point unit absent, and its own exceptions unmasked.
#include "exceptions.h"

static void x87(void* unused) {
    (void)unused;
    __asm__ volatile("fld1; fstp %%st(0)" ::: "memory");
}
static void sse(void* unused) {
    (void)unused;
    __asm__ volatile("xorps %%xmm0, %%xmm0" ::: "memory");
}
static void wait(void* unused) {
    (void)unused;
    __asm__ volatile("fwait");
}
static void x87_divide_by_zero(void* unused) {
    (void)unused;
    uint16_t control = 0x37b;  // ZE unmasked
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" ::"m"(control));
}
static void x87_divide_then_nothing(void* unused) {
    (void)unused;
    uint16_t control = 0x37b;
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; nop; fnclex" ::"m"(control));
}

static uint32_t mxcsr;
static double one = 1.0, zero = 0.0;

static void sse_divide_by_zero(void* unused) {
    (void)unused;
    __asm__ volatile("ldmxcsr %0; movsd %1, %%xmm0; divsd %2, %%xmm0" ::"m"(mxcsr), "m"(one), "m"(zero));
}
static void bad_mxcsr(void* unused) {
    (void)unused;
    uint32_t value = 0x80001f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(value));
}

// Devices are code of the host: the guest's rounding and unmasked exceptions must not reach them.
static void ports_with_open_exceptions(void) {
    uint16_t control = 0;
    uint32_t unmasked = 0x6000, masked = 0x1f80;  // everything unmasked, towards zero
    __asm__ volatile("fninit; fldcw %0; ldmxcsr %1" ::"m"(control), "m"(unmasked));
    for (unsigned i = 0; i < 200; i++) {
        in32(0x608);
        out8(0x43, 0);
        in8(0x40);
        in8(0x40);
        out8(0x70, (uint8_t)(i % 10));
        in8(0x71);
        lapic_write(APIC_TIMER_INITIAL, 1000 + i);
        lapic_read(APIC_TIMER_CURRENT);
    }
    lapic_write(APIC_TIMER_INITIAL, 0);
    uint32_t after;
    __asm__ volatile("stmxcsr %0; ldmxcsr %1; fninit" : "=m"(after) : "m"(masked));
    check(after == unmasked, "MXCSR %x after port accesses, expected %x", after, unmasked);
}

static void expect(const char* what, void (*body)(void*), int vector) {
    int got = trap_catch(body, NULL);
    check(got == vector && (got < 0 || this_core()->trap.error == 0), "%s: vector %d, expected %d", what, got,
          vector);
}

void test_float(void) {
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    write_cr0(cr0 | 8);  // TS
    expect("x87 with TS", x87, 7);
    expect("SSE with TS", sse, 7);
    expect("fwait with TS and MP", wait, 7);
    write_cr0((cr0 | 8) & ~2ull);
    expect("fwait with TS and no MP", wait, -1);
    write_cr0(cr0);
    __asm__ volatile("clts");
    expect("x87", x87, -1);
    write_cr0(cr0 | 4);  // EM
    expect("x87 with EM", x87, 7);
    expect("SSE with EM", sse, 6);
    write_cr0(cr0);
    write_cr4(cr4 & ~0x200ull);
    expect("SSE without OSFXSR", sse, 6);
    write_cr4(cr4);
    expect("x87 division by zero at fwait", x87_divide_by_zero, 16);
    __asm__ volatile("fnclex; fninit");
    expect("x87 division by zero without a waiting instruction", x87_divide_then_nothing, -1);
    __asm__ volatile("fninit");
    mxcsr = 0x1f80;
    expect("SSE division by zero, masked", sse_divide_by_zero, -1);
    if (strict) {
        expect("reserved bit of MXCSR", bad_mxcsr, 13);
        mxcsr = 0x1f80 & ~0x200u;
        expect("SSE division by zero", sse_divide_by_zero, 19);
        write_cr4(cr4 & ~0x400ull);
        expect("SSE division by zero without OSXMMEXCPT", sse_divide_by_zero, 6);
        write_cr4(cr4);
    }
    ports_with_open_exceptions();
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
}
