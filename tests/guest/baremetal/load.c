// SPDX-License-Identifier: GPL-2.0-or-later
// What things cost: key=value lines in nanoseconds, the same on every emulator.
//
// Options: cpus=N (contention is measured with two); ms=N for the length of each measure (default 100).
#include "guest.h"

static uint64_t word __attribute__((aligned(64)));
static uint64_t area[4096] __attribute__((aligned(4096)));
static volatile uint32_t stop;
static uint64_t span;  // cycles that one measure lasts
static struct barrier gate;
static uint32_t cores;
static volatile uint64_t done[2];

#define BATCH 1000u

static uint64_t tenths_of_ns(uint64_t cycles, uint64_t count) {
    return cycles * 10000 / (tsc_hz() / 1000000) / (count ? count : 1);
}

static void report(const char* name, uint64_t cycles, uint64_t count) {
    uint64_t tenths = tenths_of_ns(cycles, count);
    print("%s_ns=%lu.%lu\n", name, tenths / 10, tenths % 10);
}

static void alu(void) {
    uint64_t a = 1;
    __asm__ volatile("mov %1, %%ecx\n 1: add $7, %0\n xor %%rcx, %0\n rol $3, %0\n sub $1, %%ecx\n jnz 1b"
                     : "+r"(a)
                     : "i"(BATCH)
                     : "rcx", "cc");
}
static void load_store(void) {
    __asm__ volatile(
        "mov %1, %%ecx\n mov %0, %%rsi\n 1: mov (%%rsi), %%rax\n add $1, %%rax\n mov %%rax, 8(%%rsi)\n"
        "add $8, %%rsi\n and $~0x4000, %%rsi\n or %0, %%rsi\n sub $1, %%ecx\n jnz 1b" ::"r"(area),
        "i"(BATCH)
        : "rax", "rcx", "rsi", "cc", "memory");
}
static void calls(void) {
    __asm__ volatile("mov %0, %%ecx\n 1: call 2f\n sub $1, %%ecx\n jnz 1b\n jmp 3f\n 2: ret\n 3:" ::"i"(BATCH)
                     : "rcx", "cc", "memory");
}
static void jumps(void) {
    __asm__ volatile(
        "mov %0, %%ecx\n 1: lea 2f(%%rip), %%rax\n jmp *%%rax\n 2: sub $1, %%ecx\n jnz 1b" ::"i"(BATCH)
        : "rax", "rcx", "cc");
}
static void plain_add(void) {
    __asm__ volatile("mov %1, %%ecx\n 1: addq $1, %0\n sub $1, %%ecx\n jnz 1b"
                     : "+m"(word)
                     : "i"(BATCH)
                     : "rcx", "cc");
}
static void xadd(void) {
    __asm__ volatile("mov %1, %%ecx\n 1: mov $1, %%eax\n lock xaddq %%rax, %0\n sub $1, %%ecx\n jnz 1b"
                     : "+m"(word)
                     : "i"(BATCH)
                     : "rax", "rcx", "cc");
}
static void cmpxchg(void) {
    __asm__ volatile(
        "mov %1, %%ecx\n mov %0, %%rax\n 1: lea 1(%%rax), %%rdx\n lock cmpxchgq %%rdx, %0\n sub $1, %%ecx\n "
        "jnz 1b"
        : "+m"(word)
        : "i"(BATCH)
        : "rax", "rcx", "rdx", "cc");
}
static void misaligned_xadd(void) {
    __asm__ volatile("mov %1, %%ecx\n 1: mov $1, %%eax\n lock xaddl %%eax, 1+%0\n sub $1, %%ecx\n jnz 1b"
                     : "+m"(word)
                     : "i"(BATCH)
                     : "rax", "rcx", "cc");
}
static void page_crossing_xadd(void) {
    for (unsigned i = 0; i < 100; i++) __asm__ volatile("lock incl 4094(%0)" ::"r"(area) : "memory", "cc");
}
static void unclaimed_port(void) {
    for (unsigned i = 0; i < BATCH; i++) in8(0x2e0);
}
static void device_port(void) {
    for (unsigned i = 0; i < BATCH; i++) out8(0x80, (uint8_t)i);
}
static void lapic_access(void) {
    for (unsigned i = 0; i < BATCH; i++) lapic_write(APIC_TPR, 0);
}
static void timestamps(void) {
    for (unsigned i = 0; i < BATCH; i++) __asm__ volatile("rdtsc" ::: "eax", "edx");
}
static void software_interrupt(void) {
    for (unsigned i = 0; i < BATCH; i++) __asm__ volatile("int $0x40" ::: "memory");
}
static void self_ipi(void) {
    for (unsigned i = 0; i < BATCH; i++) lapic_send(0, ICR_SELF | ICR_ASSERT | 0x41);
}
static void table_switch(void) {
    for (unsigned i = 0; i < BATCH; i++) {
        write_cr3(read_cr3());
        (void)*(volatile uint64_t*)area;
    }
}

static void nothing(struct trap_frame* frame) {
    if (frame->vector == 0x41) lapic_eoi();
}

static void measure(const char* name, void (*batch)(void), uint32_t size) {
    batch();
    uint64_t from = read_tsc(), now, count = 0;
    do {
        batch();
        count += size;
        now = read_tsc();
    } while (now - from < span);
    report(name, now - from, count);
}

static void (*contended_batch)(void);

static void contend(uint32_t core) {
    uint64_t count = 0;
    barrier_wait(&gate, 2);
    uint64_t from = read_tsc();
    do {
        contended_batch();
        count += BATCH;
    } while (read_tsc() - from < span);
    done[core] = count;
    barrier_wait(&gate, 2);
}

static void contention(const char* name, void (*batch)(void)) {
    contended_batch = batch;
    cores_run(contend, 2);
    // Time for one operation of one core, both at it.
    report(name, span * 2, done[0] + done[1]);
}

void guest_main(void) {
    cores_start();
    cores = cores_running;
    span = tsc_hz() / 1000 * option_number("ms", 100);
    trap_handlers[0x40] = trap_handlers[0x41] = nothing;
    measure("alu_loop", alu, BATCH);
    measure("load_store_loop", load_store, BATCH);
    measure("call_return", calls, BATCH);
    measure("indirect_jump", jumps, BATCH);
    measure("add_memory", plain_add, BATCH);
    measure("lock_xadd", xadd, BATCH);
    measure("lock_cmpxchg", cmpxchg, BATCH);
    measure("lock_xadd_misaligned", misaligned_xadd, BATCH);
    measure("lock_page_crossing", page_crossing_xadd, 100);
    measure("port_unclaimed", unclaimed_port, BATCH);
    measure("port_device", device_port, BATCH);
    measure("lapic_tpr_write", lapic_access, BATCH);
    measure("rdtsc", timestamps, BATCH);
    measure("int_iret", software_interrupt, BATCH);
    interrupts_on();
    measure("self_ipi", self_ipi, BATCH);
    interrupts_off();
    measure("mov_cr3_and_load", table_switch, BATCH);
    if (cores > 1) {
        contention("lock_xadd_contended", xadd);
        contention("lock_cmpxchg_contended", cmpxchg);
        contention("alu_loop_two_cores", alu);
        contention("load_store_loop_two_cores", load_store);
    }
    finish();
}
