// SPDX-License-Identifier: GPL-2.0-or-later
// A processor with all of its state in use: each register is unlike what reset leaves, a loop computes with
// x87, SSE and integers in registers alone, a local APIC timer ticks, a data breakpoint is hit. At the end
// everything is printed. A machine that was saved in the midst and went on elsewhere prints the same.
#include "guest.h"

#define TIMER_VECTOR 0x51
#define PERIODIC 0x20000u
#define DR6_CLEAR 0xffff0ff0ull
#define DR7_WRITES_OF_8_AT_DR0 (0x400ull | 2 | 1 << 16 | 2 << 18)

static const struct {
    uint32_t index;
    uint64_t value;
} msrs[] = {
    {0x3b, 0x123456789a},  // IA32_TSC_ADJUST
    {0x174, 0x1234},       // IA32_SYSENTER_CS, _ESP, _EIP
    {0x175, 0xffff888812345678},
    {0x176, 0xffff999912345678},
    {0x200, 0x80000006},  // IA32_MTRR_PHYSBASE0, _PHYSMASK0
    {0x201, 0xff80000800},
    {0x250, 0x0606050504040000},       // IA32_MTRR_FIX64K_00000
    {0x277, 0x0001050600070406},       // IA32_PAT
    {0x2ff, 0xc06},                    // IA32_MTRR_DEF_TYPE
    {0xc0000081, 0x0023001000000000},  // IA32_STAR, _LSTAR, _CSTAR, _FMASK
    {0xc0000082, 0xffffffff81234560},
    {0xc0000083, 0xffffffff81234570},
    {0xc0000084, 0x47700},
    {0xc0000100, 0x00007f1234567000},  // IA32_FS_BASE, _GS_BASE, _KERNEL_GS_BASE
    {0xc0000101, 0xffff888087654000},
    {0xc0000102, 0x00007f7654321000},
    {0xc0000103, 0x77},  // IA32_TSC_AUX
};

static volatile uint64_t watched;
static volatile uint64_t ticks, hits, hit_dr6;
static uint8_t image[512] __attribute__((aligned(16)));
static uint64_t constants[32] __attribute__((aligned(16)));
static uint64_t general[16];

static void on_timer(struct trap_frame* frame) {
    (void)frame;
    ticks++;
    lapic_eoi();
}

static void on_debug(struct trap_frame* frame) {
    (void)frame;
    uint64_t dr6;
    __asm__ volatile("mov %%db6, %0" : "=r"(dr6));
    hits++;
    hit_dr6 |= dr6 & 0xf;
    __asm__ volatile("mov %0, %%db6" ::"r"(DR6_CLEAR));
}

static uint64_t hash(const void* from, size_t length) {
    const uint8_t* byte = from;
    uint64_t sum = 0xcbf29ce484222325;
    while (length--) sum = (sum ^ *byte++) * 0x100000001b3;
    return sum;
}

static void fill_registers(void) {
    const uint16_t control = 0x0b7f;  // x87: round up
    const uint32_t mxcsr = 0x7fc0;    // SSE: round to zero, denormals are zeros
    for (unsigned i = 0; i < 32; i++) constants[i] = 0x3ff0000000000000 + i * 0x0001234567890123;
    __asm__ volatile("fninit; fldcw %0; fldpi; fldl2e; fldlg2; fld1; fldz; fdivrp; fld1" ::"m"(control));
    // A sticky flag, of a division by zero, that nothing sets again.
    __asm__ volatile("ldmxcsr %0; xorpd %%xmm1, %%xmm1; movsd %1, %%xmm0; divsd %%xmm1, %%xmm0" ::"m"(mxcsr),
                     "m"(constants[0]));
    __asm__ volatile(
        "movdqa 0(%0), %%xmm0; movdqa 16(%0), %%xmm1; movdqa 32(%0), %%xmm2; movdqa 48(%0), %%xmm3\n"
        "movdqa 64(%0), %%xmm4; movdqa 80(%0), %%xmm5; movdqa 96(%0), %%xmm6; movdqa 112(%0), %%xmm7\n"
        "movdqa 128(%0), %%xmm8; movdqa 144(%0), %%xmm9; movdqa 160(%0), %%xmm10; movdqa 176(%0), %%xmm11\n"
        "movdqa 192(%0), %%xmm12; movdqa 208(%0), %%xmm13; movdqa 224(%0), %%xmm14; movdqa 240(%0), "
        "%%xmm15\n" ::"r"(constants));
}

static void compute(uint64_t rounds) {
    __asm__ volatile(
        "movq %[rounds], %%rcx\n"
        "movabsq $0x123456789abcdef1, %%rax\n movabsq $0xfedcba9876543211, %%rdx\n"
        "movl $11, %%ebx\n movl $22, %%esi\n movl $33, %%edi\n movl $55, %%r8d\n movl $66, %%r9d\n"
        "movl $77, %%r10d\n movl $88, %%r11d\n movl $99, %%r12d\n movl $111, %%r13d\n movl $122, %%r14d\n"
        "std\n stc\n"
        "1:\n"
        // Integers, with the carry of one round in the next; the loop's own instructions leave it alone.
        "adcq %%rdx, %%rax\n rclq $7, %%rdx\n adcq %%rax, %%rbx\n rcrq $1, %%rsi\n sbbq %%rbx, %%rdi\n"
        "adcq %%rdi, %%r8\n rclq $3, %%r9\n adcq %%r8, %%r10\n sbbq %%r9, %%r11\n adcq %%r10, %%r12\n"
        "adcq %%r11, %%r13\n adcq %%r12, %%r14\n"
        // SSE: each register takes part.
        "addsd %%xmm1, %%xmm0\n mulsd %%xmm2, %%xmm0\n sqrtsd %%xmm0, %%xmm0\n paddq %%xmm4, %%xmm3\n"
        "pxor %%xmm3, %%xmm5\n addpd %%xmm7, %%xmm6\n paddd %%xmm5, %%xmm8\n psubq %%xmm8, %%xmm9\n"
        "pxor %%xmm9, %%xmm10\n paddw %%xmm10, %%xmm11\n pavgb %%xmm11, %%xmm12\n paddb %%xmm12, %%xmm13\n"
        "pxor %%xmm13, %%xmm14\n paddq %%xmm14, %%xmm15\n"
        // x87: five live registers under the control word from before.
        "fadd %%st(4)\n fmul %%st(3)\n fsqrt\n fxch %%st(2)\n fadd %%st(1)\n fmul %%st(3)\n fxch %%st(2)\n"
        "leaq -1(%%rcx), %%rcx\n"
        "movq %%rcx, %%r15\n bswap %%r15\n"
        "pushfq\n testl $0xffff, %%ecx\n jnz 2f\n movq %%rcx, %[watched]\n 2: popfq\n"
        "jrcxz 3f\n jmp 1b\n 3:\n"
        "cld\n"
        "movq %%rax, %[general]\n movq %%rdx, 8+%[general]\n movq %%rbx, 16+%[general]\n"
        "movq %%rsi, 24+%[general]\n movq %%rdi, 32+%[general]\n movq %%r8, 40+%[general]\n"
        "movq %%r9, 48+%[general]\n movq %%r10, 56+%[general]\n movq %%r11, 64+%[general]\n"
        "movq %%r12, 72+%[general]\n movq %%r13, 80+%[general]\n movq %%r14, 88+%[general]\n"
        "movq %%r15, 96+%[general]\n"
        "fxsave64 %[image]\n"
        : [watched] "=m"(watched), [general] "=m"(general), [image] "=m"(image)
        : [rounds] "m"(rounds)
        : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
          "memory", "cc");
}

void guest_main(void) {
    const uint64_t rounds = option_number("rounds", 4) << 16;
    write_cr0((read_cr0() & ~4ull) | 0x22);  // MP and NE, not EM
    write_cr4(read_cr4() | 0x608);           // OSFXSR, OSXMMEXCPT, DE
    for (unsigned i = 0; i < sizeof msrs / sizeof *msrs; i++) write_msr(msrs[i].index, msrs[i].value);
    trap_handlers[1] = on_debug;
    trap_handlers[TIMER_VECTOR] = on_timer;
    __asm__ volatile("mov %0, %%db0; mov %1, %%db7" ::"r"(&watched), "r"(DR7_WRITES_OF_8_AT_DR0));
    __asm__ volatile("mov %0, %%db3" ::"r"(0x123456789abcull));
    lapic_enable(lapic_has_x2());
    lapic_write(APIC_TPR, 0x23);
    lapic_write(APIC_TIMER_DIVIDE, 0xb);
    lapic_write(APIC_LVT_TIMER, TIMER_VECTOR | PERIODIC);
    lapic_write(APIC_TIMER_INITIAL, 3000000);
    print("computing\n");
    interrupts_on();
    fill_registers();
    compute(rounds);
    interrupts_off();

    print("registers=%lx floating=%lx\n", hash(general, sizeof general), hash(image, sizeof image));
    for (unsigned i = 0; i < sizeof msrs / sizeof *msrs; i++) {
        const uint64_t value = read_msr(msrs[i].index);
        check(value == msrs[i].value, "MSR %x is %lx, not %lx", msrs[i].index, value, msrs[i].value);
    }
    uint64_t dr3;
    __asm__ volatile("mov %%db3, %0" : "=r"(dr3));
    check(dr3 == 0x123456789abc, "DR3 is %lx", dr3);
    check(hits == rounds >> 16 && hit_dr6 == 1, "%lu breakpoints of %lu, DR6 %lx", hits, rounds >> 16,
          hit_dr6);
    check(ticks > 2, "%lu ticks", ticks);
    check(lapic_read(APIC_TPR) == 0x23, "TPR is %x", lapic_read(APIC_TPR));
    check(watched == 0, "the last write is %lx", watched);
    finish();
}
