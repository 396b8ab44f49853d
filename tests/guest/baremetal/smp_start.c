// SPDX-License-Identifier: GPL-2.0-or-later
// INIT and start-up IPIs (SDM 3A, 9.4.4 and 11.4): state of the core, what is ignored, starting anew.
#include "smp.h"

#define PROBE_PAGE 0x9000u
#define WRONG_PAGE 0xa000u

extern char probe_begin[], probe_end[], wrong_begin[], wrong_end[];

struct __attribute__((packed)) seen {
    uint16_t cs, ds, es, ss, fs, gs, ip, sp;
    uint32_t edx, cr0, flags, cr4;
    uint16_t idt_limit;
    uint32_t idt_base;
    uint16_t pad0, gdt_limit;
    uint32_t gdt_base;
    uint16_t pad1;
    uint32_t ebx;
};

static volatile uint32_t* wrong_count(void) { return (volatile uint32_t*)(uint64_t)(WRONG_PAGE + 0xf00); }

static void check_state(uint32_t core) {
    const struct seen* seen = (const struct seen*)(uint64_t)(PROBE_PAGE + 0xf00);
    uint32_t id[4];
    cpuid(1, 0, id);
    check(seen->cs == PROBE_PAGE >> 4 && seen->ip == 3, "core %u started at %x:%x, expected %x:0", core,
          seen->cs, seen->ip - 3, PROBE_PAGE >> 4);
    check(!seen->ds && !seen->es && !seen->ss && !seen->fs && !seen->gs,
          "core %u: segments %x %x %x %x %x after SIPI", core, seen->ds, seen->es, seen->ss, seen->fs,
          seen->gs);
    // CD and NW keep their values at INIT; all else of CR0 but ET is clear (SDM 3A, table 10-1).
    check((seen->cr0 & ~0x60000000u) == 0x10, "core %u: CR0 %x after SIPI", core, seen->cr0);
    check(seen->flags == 2 && !seen->cr4 && !seen->sp, "core %u: EFLAGS %x CR4 %x SP %x after SIPI", core,
          seen->flags, seen->cr4, seen->sp);
    check(seen->edx == id[0], "core %u: EDX %x after SIPI, expected the signature %x", core, seen->edx,
          id[0]);
    check(seen->idt_limit == 0xffff && !seen->idt_base, "core %u: IDTR %x:%x after SIPI", core,
          seen->idt_base, seen->idt_limit);
    check(seen->gdt_limit == 0xffff && !seen->gdt_base, "core %u: GDTR %x:%x after SIPI", core,
          seen->gdt_base, seen->gdt_limit);
}

static uint32_t first_reads[CORES][6];

static void look_at_lapic(uint32_t core) {
    if (core >= CORES) return;
    first_reads[core][0] = lapic_id();
    first_reads[core][1] = lapic_read(APIC_VERSION);
    first_reads[core][2] = (uint32_t)read_msr(MSR_APIC_BASE);
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    first_reads[core][3] = leaf[1] >> 24;
    cpuid(0, 0, leaf);
    bool topology = leaf[0] >= 0xb;
    cpuid(0xb, 0, leaf);
    first_reads[core][4] = topology && leaf[1] ? leaf[3] : core_apic_ids[core];
}

// What belongs to a core must not be seen by another: each sets its own, all meet, each looks again.
static void own_state(uint32_t core) {
    static const uint32_t msrs[] = {0x174,      0x175,      0x176,      0xc0000081, 0xc0000082,
                                    0xc0000084, 0xc0000100, 0xc0000102, 0x277};
    static struct barrier gate;
    uint32_t all = cores_running < CORES ? cores_running : CORES;
    uint32_t mxcsr = 0x1f80 | (core & 3) << 13, mxcsr_seen;
    uint16_t control = (uint16_t)(0x37f | (core & 3) << 10), control_seen;
    uint64_t value = 0x100 * (core + 1), xmm, dr;
    for (unsigned i = 0; i < sizeof msrs / 4; i++)
        write_msr(msrs[i], msrs[i] == 0x277 ? 0x0007040600070406ull | core % 2 : value + i);
    write_cr2(value);
    __asm__ volatile("mov %0, %%db0; movq %0, %%xmm5; ldmxcsr %1; fninit; fldcw %2" ::"r"(value), "m"(mxcsr),
                     "m"(control));
    barrier_wait(&gate, all);
    bool good = true;
    for (unsigned i = 0; i < sizeof msrs / 4; i++)
        good &= read_msr(msrs[i]) == (msrs[i] == 0x277 ? 0x0007040600070406ull | core % 2 : value + i);
    __asm__ volatile("mov %%db0, %0; movq %%xmm5, %1; stmxcsr %2; fnstcw %3"
                     : "=r"(dr), "=r"(xmm), "=m"(mxcsr_seen), "=m"(control_seen));
    check(good, "core %u: an MSR has another core's value", core);
    check(read_cr2() == value && dr == value && xmm == value, "core %u: CR2 %lx DR0 %lx XMM5 %lx", core,
          read_cr2(), dr, xmm);
    check(mxcsr_seen == mxcsr && control_seen == control, "core %u: MXCSR %x FCW %x", core, mxcsr_seen,
          control_seen);
    mxcsr = 0x1f80;
    write_msr(0x277, 0x0007040600070406);
    write_msr(0xc0000100, 0);
    __asm__ volatile("mov %0, %%db0; ldmxcsr %1; fninit" ::"r"(0ull), "m"(mxcsr));
    barrier_wait(&gate, all);
}

static void running(uint32_t core) {
    (void)core;
    for (;;) {
        counts[0][1]++;
        pause();
    }
}

void test_start_up(void) {
    memcpy((void*)(uint64_t)PROBE_PAGE, probe_begin, (size_t)(probe_end - probe_begin));
    memcpy((void*)(uint64_t)WRONG_PAGE, wrong_begin, (size_t)(wrong_end - wrong_begin));
    *wrong_count() = 0;
    trampoline_copy();
    uint64_t from = read_tsc();
    for (uint32_t core = 1; core < cores_found; core++) {
        bool came = core_start(core, core < CORES ? PROBE_PAGE : TRAMPOLINE);
        if (!check(came, "core %u (APIC id %u) did not start", core, core_apic_ids[core])) debug_exit(1);
        cores_running++;
        if (core < CORES) check_state(core);
        // A second start-up IPI, as the MP specification's algorithm sends it, changes nothing.
        lapic_send(core_apic_ids[core], ICR_STARTUP | ICR_ASSERT | WRONG_PAGE >> 12);
    }
    print("start us=%lu\n", (read_tsc() - from) / (tsc_hz() / 1000000));
    cores_run(look_at_lapic, cores_running);
    for (uint32_t core = 0; core < cores_running && core < CORES; core++) {
        check(first_reads[core][0] == core_apic_ids[core], "core %u reads APIC id %x", core,
              first_reads[core][0]);
        check((first_reads[core][1] & 0xff) >= 0x10 && (first_reads[core][1] >> 16 & 0xff) >= 4,
              "core %u: APIC version %x", core, first_reads[core][1]);
        check(first_reads[core][3] == core_apic_ids[core] && first_reads[core][4] == core_apic_ids[core],
              "core %u: CPUID says APIC id %x and %x", core, first_reads[core][3], first_reads[core][4]);
        check((first_reads[core][2] & 0xfffff900) == (core ? 0xfee00800 : 0xfee00900),
              "core %u: APIC base %x", core, first_reads[core][2]);
    }
    cores_run(own_state, cores_running < CORES ? cores_running : CORES);
    delay_us(1000);
    check(!*wrong_count(), "%u start-up IPIs without INIT were obeyed", *wrong_count());
}

static uint32_t after_init[6];

static void look_after_init(uint32_t core) {
    if (core == 1) after_init[0] = lapic_id();
}

void test_init_again(void) {
    if (cores < 2) return;
    bool x2 = lapic_is_x2();
    for (unsigned round = 0; round < 5; round++) {
        clear_counts();
        cores_post(running, 2);
        for (uint64_t end = read_tsc() + 20 * tsc_hz(); !counts[0][1] && read_tsc() < end;) pause();
        check(counts[0][1], "core 1 does not run before INIT");
        lapic_send(core_apic_ids[1], ICR_INIT | ICR_ASSERT);
        delay_us(3000);
        uint32_t then = counts[0][1];
        // In wait-for-SIPI neither an NMI nor a fixed interrupt does anything.
        lapic_send(core_apic_ids[1], ICR_NMI | ICR_ASSERT);
        lapic_send(core_apic_ids[1], ICR_ASSERT | 0x55);
        delay_us(3000);
        // A host that had taken the processor from the core may let it reach the end of its step only now.
        check(counts[0][1] - then <= 2, "core 1 goes on after INIT: %u steps", counts[0][1] - then);
        bool came = core_start(1, PROBE_PAGE);
        check(came, "core 1 does not start anew (round %u)", round);
        if (!came) return;
        check_state(1);
        cores_run(look_after_init, 2);
        check(after_init[0] == core_apic_ids[1], "core 1 started anew has APIC id %x", after_init[0]);
        check(!counts[0x55][1], "an IPI sent to a core in wait-for-SIPI was taken after its start");
    }
    // INIT level de-assert (trigger level, level 0) is no INIT on any processor of this century.
    if (!x2) {
        lapic_send(0, ICR_ALL | ICR_INIT | 0x8000);
        cores_run(look_after_init, 2);
    }
}
