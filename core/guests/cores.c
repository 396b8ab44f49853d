// SPDX-License-Identifier: GPL-2.0-or-later
// The machine's cores: found in the MADT (or counted by cpus=N), started by INIT and SIPI, given jobs.
#include "guest.h"

#define PM_TIMER 0x608
#define PM_HZ 3579545u
#define IDLE_SPINS 300u
#define WAKE_VECTOR 0xf0

uint32_t cores_found, core_apic_ids[MAX_CORES], cores_running = 1;
uint64_t acpi_rsdp;
extern char trampoline_begin[], trampoline_end[];
extern volatile uint32_t next_core;

static void (*volatile job)(uint32_t core);
static volatile uint32_t job_number, job_cores, job_done;
static uint64_t measured_hz;

static uint64_t find_rsdp(uint64_t from, uint64_t to) {
    for (; from < to; from += 16) {
        if (memcmp((void*)from, "RSD PTR ", 8)) continue;
        uint8_t sum = 0;
        for (unsigned i = 0; i < 20; i++) sum = (uint8_t)(sum + ((uint8_t*)from)[i]);
        if (!sum) return from;
    }
    return 0;
}

static uint32_t read32(uint64_t at) {
    uint32_t value;
    memcpy(&value, (void*)at, 4);
    return value;
}

static uint64_t find_table(const char* signature) {
    if (!acpi_rsdp) return 0;
    // Revision 2 has the XSDT with 64-bit entries, and may leave the RSDT out (ACPI 6.4, 5.2.5.3).
    bool wide = ((uint8_t*)acpi_rsdp)[15] >= 2 && read32(acpi_rsdp + 24);
    uint64_t root = read32(acpi_rsdp + (wide ? 24 : 16));
    uint64_t step = wide ? 8 : 4, end = root + read32(root + 4);
    for (uint64_t at = root + 36; at + step <= end; at += step) {
        uint64_t table = read32(at);
        if (!memcmp((void*)table, signature, 4)) return table;
    }
    return 0;
}

static void find_cores(void) {
    uint32_t wanted = (uint32_t)option_number("cpus", 0), own = lapic_id();
    // The BIOS data area's word 0x40e is the segment of the EBDA. (The empty asm hides from the compiler that
    // the address is a constant in what it takes for the null page.)
    uint16_t* segment = (uint16_t*)0x40e;
    __asm__("" : "+r"(segment));
    uint64_t ebda = (uint64_t)*segment << 4;
    if (ebda >= 0x80000 && ebda < 0xa0000) acpi_rsdp = find_rsdp(ebda, ebda + 1024);
    if (!acpi_rsdp) acpi_rsdp = find_rsdp(0xe0000, 0x100000);
    core_apic_ids[cores_found++] = own;
    uint64_t madt = find_table("APIC");
    if (wanted || !madt) {
        for (uint32_t id = 0; cores_found < wanted; id++)
            if (id != own) core_apic_ids[cores_found++] = id;
        return;
    }
    for (uint64_t at = madt + 44, end = madt + read32(madt + 4); at < end; at += ((uint8_t*)at)[1]) {
        const uint8_t* entry = (uint8_t*)at;
        uint32_t id;
        if (entry[0] == 0 && entry[4] & 1)  // local APIC, enabled
            id = entry[3];
        else if (entry[0] == 9 && entry[8] & 1)  // local x2APIC, enabled
            id = read32(at + 4);
        else
            continue;
        if (id != own && cores_found < MAX_CORES) core_apic_ids[cores_found++] = id;
    }
}

// The PM timer and the TSC at the same moment: the closest pair of several, as a host may take the processor
// away from an emulator between two reads.
static uint32_t pm_and_tsc(uint64_t* tsc) {
    uint64_t closest = ~0ull;
    uint32_t ticks = 0;
    for (unsigned attempt = 0; attempt < 5; attempt++) {
        uint64_t before = read_tsc();
        uint32_t now = in32(PM_TIMER);
        uint64_t apart = read_tsc() - before;
        if (apart >= closest) continue;
        closest = apart;
        ticks = now;
        *tsc = before + apart / 2;
    }
    return ticks;
}

uint64_t tsc_hz(void) {
    if (measured_hz) return measured_hz;
    uint64_t from, until;
    uint32_t first = pm_and_tsc(&from), ticks = 0;
    // 20 ms, or about ten seconds where there is no PM timer. It counts 24 bits: 4.7 s.
    do ticks = (pm_and_tsc(&until) - first) & 0xffffff;
    while (ticks < PM_HZ / 50 && until - from < 30000000000ull);
    return measured_hz = (until - from) * PM_HZ / (ticks ? ticks : 1);
}

void delay_us(uint64_t microseconds) {
    uint64_t end = read_tsc() + tsc_hz() / 1000000 * microseconds;
    while (read_tsc() < end) pause();
}

void trampoline_copy(void) {
    memcpy((void*)(uint64_t)TRAMPOLINE, trampoline_begin, (size_t)(trampoline_end - trampoline_begin));
}

static volatile uint32_t core_ready[MAX_CORES];

bool core_start(uint32_t index, uint32_t page) {
    next_core = index;
    core_ready[index] = 0;
    lapic_send(core_apic_ids[index], ICR_INIT | ICR_ASSERT);
    delay_us(200);
    lapic_send(core_apic_ids[index], ICR_STARTUP | ICR_ASSERT | page >> 12);
    for (uint64_t end = read_tsc() + 20 * tsc_hz(); !core_ready[index] && read_tsc() < end;) pause();
    return core_ready[index];
}

void cores_start(void) {
    trampoline_copy();
    for (uint32_t index = 1; index < cores_found; index++) {
        if (!check(core_start(index, TRAMPOLINE), "core %u (APIC id %u) did not start", index,
                   core_apic_ids[index]))
            break;
        cores_running++;
    }
}

static void woken(struct trap_frame* frame) {
    (void)frame;
    lapic_eoi();
}

// Where a core comes from start.S.
void core_main(uint32_t index) {
    struct core* core = this_core();
    memset(core, 0, sizeof *core);
    core->index = index;
    traps_start(core);
    lapic_enable(false);
    core->apic_id = lapic_id();
    if (index == 0) {
        trap_handlers[WAKE_VECTOR] = woken;
        out8(0x21, 0xff);  // both 8259As masked: until a guest asks, no line may interrupt it
        out8(0xa1, 0xff);
        find_cores();
        guest_main();
        finish();
    }
    core_wait();
}

// A core without work spins for a moment, then sleeps: 255 cores that spin on two host cores would starve the
// one that works. The number is looked at with interrupts off, and STI lets no interrupt in before HLT.
void core_wait(void) {
    uint32_t index = this_core()->index, seen = job_number;
    core_ready[index] = 1;
    for (;;) {
        for (unsigned spins = 0; job_number == seen && spins < IDLE_SPINS; spins++) pause();
        interrupts_off();
        while (job_number == seen) {
            wait_for_interrupt();
            interrupts_off();
        }
        seen = job_number;
        if (index >= job_cores) continue;
        job(index);
        __atomic_add_fetch(&job_done, 1, __ATOMIC_SEQ_CST);
    }
}

void cores_post(void (*what)(uint32_t core), uint32_t count) {
    job = what;
    job_cores = count;
    job_done = 0;
    __atomic_add_fetch(&job_number, 1, __ATOMIC_SEQ_CST);
    if (cores_running > 1) lapic_send(0, ICR_OTHERS | ICR_ASSERT | WAKE_VECTOR);
}

void cores_join(void) {
    while (job_done < job_cores - 1) pause();
}

void cores_run(void (*what)(uint32_t core), uint32_t count) {
    cores_post(what, count);
    what(0);
    cores_join();
}

void barrier_wait(struct barrier* barrier, uint32_t count) {
    uint32_t generation = barrier->generation;
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_SEQ_CST) == count) {
        barrier->arrived = 0;
        __atomic_add_fetch(&barrier->generation, 1, __ATOMIC_SEQ_CST);
        return;
    }
    while (barrier->generation == generation) pause();
}
