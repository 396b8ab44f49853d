// SPDX-License-Identifier: GPL-2.0-or-later
// The built-in guest: starts every core of the machine, shows interrupts and atomics at work, powers off.
//
// Command line: exit=N ends through the debug-exit port with N instead of powering off; cpus=N goes round the
// MADT.
#include "guest.h"

#define TICK_VECTOR 0x40
#define RING_VECTOR 0x41
#define TICKS 5u
#define ADDS 20000u
#define PM1A_CONTROL 0x604
// SLP_EN with the sleep type of S5: 5 is this machine's (its DSDT says so), 0 is that of QEMU's PIIX4.
#define SLEEP_S5 0x3400
#define SLEEP_S5_PIIX4 0x2000

static struct {
    volatile uint32_t ticks, rings;
    uint64_t up, work;
} seen[MAX_CORES];
static uint64_t started, exact, adds_done;
static volatile uint64_t careless;
static uint32_t timer_count;

static void tick(struct trap_frame* frame) {
    (void)frame;
    seen[this_core()->index].ticks++;
    lapic_eoi();
}

static void ring(struct trap_frame* frame) {
    (void)frame;
    seen[this_core()->index].rings++;
    lapic_eoi();
}

static void greet(uint32_t core) {
    seen[core].up = read_tsc();
    print("core %u: APIC id %u, CR0 %lx, EFER %lx\n", core, this_core()->apic_id, read_cr0(),
          read_msr(0xc0000080));
}

// Each core rings its neighbour, then sleeps until its own timer has ticked and the ring has gone round.
static void interrupt(uint32_t core) {
    lapic_write(APIC_TIMER_DIVIDE, 3);
    lapic_write(APIC_LVT_TIMER, 0x20000 | TICK_VECTOR);
    lapic_write(APIC_TIMER_INITIAL, timer_count);
    lapic_send(core_apic_ids[(core + 1) % cores_running], ICR_ASSERT | RING_VECTOR);
    interrupts_off();
    while (seen[core].ticks < TICKS || !seen[core].rings) {
        wait_for_interrupt();
        interrupts_off();
    }
    lapic_write(APIC_LVT_TIMER, 0x10000);
    lapic_write(APIC_TIMER_INITIAL, 0);
}

static void add(uint32_t core) {
    uint64_t from = read_tsc();
    for (unsigned i = 0; i < ADDS; i++) {
        __atomic_add_fetch(&exact, 1, __ATOMIC_SEQ_CST);
        careless = careless + 1;
    }
    seen[core].work = read_tsc() - from;
    __atomic_add_fetch(&adds_done, ADDS, __ATOMIC_SEQ_CST);
}

static uint32_t timer_ticks_of_10_ms(void) {
    lapic_write(APIC_TIMER_DIVIDE, 3);  // by 16
    lapic_write(APIC_TIMER_INITIAL, 0xffffffff);
    delay_us(10000);
    uint32_t ticks = 0xffffffff - lapic_read(APIC_TIMER_CURRENT);
    lapic_write(APIC_TIMER_INITIAL, 0);
    return ticks;
}

void guest_main(void) {
    print("Coremesh built-in SMP guest: %u cores found, TSC %lu MHz\n", cores_found, tsc_hz() / 1000000);
    trap_handlers[TICK_VECTOR] = tick;
    trap_handlers[RING_VECTOR] = ring;
    started = read_tsc();
    cores_start();
    uint64_t up = read_tsc();
    cores_run(greet, cores_running);
    print("all %u cores up in %lu us\n", cores_running, (up - started) / (tsc_hz() / 1000000));

    timer_count = timer_ticks_of_10_ms();
    cores_run(interrupt, cores_running);
    uint64_t ticks = 0, rings = 0, longest = 0;
    for (uint32_t core = 0; core < cores_running; core++)
        ticks += seen[core].ticks, rings += seen[core].rings;
    print("interrupts: %lu of %lu IPIs taken, %lu timer ticks on %u cores\n", rings, (uint64_t)cores_running,
          ticks, cores_running);
    check(rings == cores_running, "an IPI was lost or doubled");

    cores_run(add, cores_running);
    for (uint32_t core = 0; core < cores_running; core++)
        if (seen[core].work > longest) longest = seen[core].work;
    print("atomics: %lu locked additions give %lu, the same without LOCK %lu; %lu cycles each\n", adds_done,
          exact, careless, longest / ADDS);
    check(exact == adds_done, "locked additions were lost");
    print("SMP guest done: cores=%u failures=%u\n", cores_running, failures);

    if (option("exit")) debug_exit((uint32_t)option_number("exit", 0));
    out16(PM1A_CONTROL, SLEEP_S5);
    out16(PM1A_CONTROL, SLEEP_S5_PIIX4);
    for (;;) __asm__ volatile("cli; hlt");
}
