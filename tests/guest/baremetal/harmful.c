// SPDX-License-Identifier: GPL-2.0-or-later
// What a guest once ended its host's process with. It must live, and so must the process.
#include "guest.h"

// --- more instructions in one block than the translator has temporaries for

#define REPEATED(name, instruction)                                                 \
    static void name(void* unused) {                                                \
        (void)unused;                                                               \
        __asm__ volatile(".rept 1000\n" instruction "\n.endr" ::: "rax", "memory"); \
    }
REPEATED(compare_and_pop, "fcomp %%st(0)")
REPEATED(add_memory, "fadds (%%rsp)")
REPEATED(read_control, "mov %%cr0, %%rax")
REPEATED(load_segment, "mov %%ds, %%eax; mov %%eax, %%es")
REPEATED(pack, "pshufw $1, %%mm0, %%mm0")

static void many_temporaries(void) {
    static void (*const bodies[])(void*) = {compare_and_pop, add_memory, read_control, load_segment, pack};
    for (unsigned i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        check(trap_catch(bodies[i], NULL) < 0, "body %u of a thousand instructions trapped", i);
        __asm__ volatile("fninit");
    }
}

// --- MMX registers beyond the eighth

// REX.R and REX.B before an MMX instruction change nothing (SDM vol. 2A, 2.2.1.2). Taken as the fourth bit of
// a number they lead behind the registers, into the translator's own state.
static void extended_mmx(void) {
    uint32_t mxcsr = 0x1f80, now;
    uint64_t got = 0;
    __asm__ volatile(
        "ldmxcsr %[mxcsr]; fninit; pcmpeqb %%mm7, %%mm7; pxor %%mm6, %%mm6\n"
        ".set opcode, 0\n"
        ".rept 12\n"  // PSHUFB to PMULHRSW with mm0..mm7, REX.R and REX.B
        ".set regs, 0xc0\n"
        ".rept 8\n.byte 0x45, 0x0f, 0x38, opcode, regs\n.set regs, regs + 9\n.endr\n"
        ".set opcode, opcode + 1\n"
        ".endr\n"
        "pcmpeqb %%mm7, %%mm7\n"
        ".byte 0x45, 0x0f, 0x38, 0x1c, 0xf7\n"  // PABSB mm6, mm7
        "movq %%mm6, %[got]; emms; stmxcsr %[now]"
        : [got] "=m"(got), [now] "=m"(now)
        : [mxcsr] "m"(mxcsr));
    check(got == 0x0101010101010101ull, "PABSB mm6, mm7 with REX gives %lx", got);
    check(now == 0x1f80, "MXCSR is %x after MMX instructions with REX", now);
}

// --- MXCSR in memory that another core changes while it is loaded

static uint8_t area[512] __attribute__((aligned(64)));
static volatile bool finished;
static volatile uint32_t refused;

static void restore(void* unused) {
    (void)unused;
    uint32_t trapping = 0x1780;  // a tiny result traps: arithmetic goes by the guest's own controls
    __asm__ volatile("ldmxcsr %0" ::"m"(trapping));
    __asm__ volatile("fxrstor (%0); divps %%xmm0, %%xmm1; mulpd %%xmm1, %%xmm2" ::"r"(area) : "memory");
}

static void changing_mxcsr(uint32_t core) {
    volatile uint32_t* mxcsr = (volatile uint32_t*)(area + 24);
    if (core == 0) {
        for (uint32_t i = 0; i < 30000; i++) refused += trap_catch(restore, NULL) == 13;
        finished = true;
    } else {
        while (!finished) {
            *mxcsr = 0x1780;
            *mxcsr = 0xffff1780;
        }
    }
}

void guest_main(void) {
    uint64_t cr0 = read_cr0();
    write_cr0((cr0 & ~4ull) | 2);
    many_temporaries();
    extended_mmx();
    cores_start();
    cores_run(changing_mxcsr, cores_running);
    print("harmful cores=%u refused=%u failures=%u\n", cores_running, refused, failures);
    check(cores_running < 2 || refused, "MXCSR was never refused: the other core changed nothing");
    finish();
}
