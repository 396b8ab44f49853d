// SPDX-License-Identifier: GPL-2.0-or-later
// Interrupts from each host to each: every form of IPI (SDM 3A, 11.6), NMI, and INIT with SIPI across hosts.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); settle=N microseconds until a stray interrupt would have come
// (default 2000).
#include "mesh.h"

#define BROADCAST_X1 0xffu
#define BROADCAST_X2 0xffffffffu
#define WAKE_VECTOR 0xf0u

struct taken {
    volatile uint32_t count[256];
};
static struct taken* taken_by(uint32_t core) { return (struct taken*)mesh_own(core); }

static struct barrier gate;
static uint32_t sender, settle_us, most;
static volatile uint32_t over;

static void take(struct trap_frame* frame) {
    taken_by(this_core()->index)->count[frame->vector]++;
    if (frame->vector != 2) lapic_eoi();
}

static bool eventually(uint32_t core, uint8_t vector, uint32_t wanted) {
    for (uint64_t end = read_tsc() + 10 * tsc_hz(); read_tsc() < end; pause())
        if (taken_by(core)->count[vector] >= wanted) return true;
    return false;
}

// Sends, then expects the vector once at each core of the list and nowhere else.
static void expect(const char* what, uint8_t vector, uint32_t destination, uint32_t command,
                   bool (*wanted)(uint32_t core)) {
    for (uint32_t core = 0; core < cores_running; core++) taken_by(core)->count[vector] = 0;
    lapic_send(destination, command | ICR_ASSERT | vector);
    for (uint32_t core = 0; core < cores_running; core++)
        if (wanted(core)) eventually(core, vector, 1);
    delay_us(settle_us);
    for (uint32_t core = 0; core < cores_running; core++) {
        uint32_t got = taken_by(core)->count[vector];
        check(got == wanted(core), "%s from core %u: vector %x came to core %u %u times", what, sender,
              vector, core, got);
    }
}

static uint32_t target;
static bool is_target(uint32_t core) { return core == target; }
static bool is_sender(uint32_t core) { return core == sender; }
static bool is_other(uint32_t core) { return core != sender; }
static bool is_any(uint32_t core) { return core < cores_running; }
static bool is_none(uint32_t core) { return core >= cores_running; }
static bool is_odd(uint32_t core) { return core_apic_ids[core] % 2 && core_apic_ids[core] < 8; }
static bool in_cluster(uint32_t core) { return core_apic_ids[core] >> 4 == core_apic_ids[target] >> 4; }
static bool is_flat(uint32_t core) { return core_apic_ids[core] < 8; }

static void logical(void) {
    if (lapic_is_x2()) {
        for (target = 0; target < most; target++) {
            uint32_t id = core_apic_ids[target];
            expect("x2APIC logical", 0x41, id >> 4 << 16 | 1u << (id & 15), ICR_LOGICAL, is_target);
            if (id % 16 == 0) expect("x2APIC cluster", 0x42, id >> 4 << 16 | 0xffff, ICR_LOGICAL, in_cluster);
        }
        expect("x2APIC logical broadcast", 0x44, BROADCAST_X2, ICR_LOGICAL, is_any);
        return;
    }
    for (target = 0; target < most; target++)
        if (is_flat(target))
            expect("logical flat", 0x41, 1u << core_apic_ids[target], ICR_LOGICAL, is_target);
    expect("logical flat, all", 0x42, 0xff, ICR_LOGICAL, is_flat);
    expect("logical flat, odd", 0x43, 0xaa, ICR_LOGICAL, is_odd);
}

static void lowest_priority(void) {
    for (unsigned round = 0; round < 8; round++) {
        uint32_t sum = 0;
        for (uint32_t core = 0; core < cores_running; core++) taken_by(core)->count[0x48] = 0;
        lapic_send(lapic_is_x2() ? 0xffff : 0xff, ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | 0x48);
        for (uint64_t end = read_tsc() + 10 * tsc_hz(); !sum && read_tsc() < end; pause())
            for (uint32_t core = 0; core < cores_running; core++) sum += taken_by(core)->count[0x48];
        delay_us(settle_us);
        sum = 0;
        for (uint32_t core = 0; core < cores_running; core++) sum += taken_by(core)->count[0x48];
        check(sum == 1, "a lowest-priority interrupt from core %u was taken %u times", sender, sum);
    }
}

static void send_all(void) {
    for (target = 0; target < most; target++) expect("physical", 0x31, core_apic_ids[target], 0, is_target);
    target = cores_running - 1;
    expect("physical, to the last", 0xef, core_apic_ids[target], 0, is_target);
    expect("self", 0x32, 0, ICR_SELF, is_sender);
    expect("all excluding self", 0x33, 0, ICR_OTHERS, is_other);
    expect("all including self", 0x34, 0, ICR_ALL, is_any);
    expect("physical broadcast", 0x35, lapic_is_x2() ? BROADCAST_X2 : BROADCAST_X1, 0, is_any);
    expect("no such core", 0x36, lapic_is_x2() ? 0x12345 : 0xfd, 0, is_none);
    logical();
    if (cores_running <= 8) lowest_priority();
    for (target = 0; target < most; target++)
        if (target != sender) expect("NMI", 2, core_apic_ids[target], ICR_NMI, is_target);
    expect("NMI to the others", 2, 0, ICR_OTHERS | ICR_NMI, is_other);
}

static void all_kinds(uint32_t core) {
    if (!lapic_is_x2()) {
        lapic_write(APIC_DFR, 0xffffffff);
        lapic_write(APIC_LDR, core_apic_ids[core] < 8 ? 1u << core_apic_ids[core] << 24 : 0);
    }
    memset(taken_by(core), 0, sizeof(struct taken));
    interrupts_on();
    barrier_wait(&gate, cores_running);
    if (core == sender) {
        send_all();
        over = 1;
        lapic_send(0, ICR_OTHERS | ICR_ASSERT | WAKE_VECTOR);
    } else if (core % 2) {
        while (!over) pause();
    } else {
        interrupts_off();
        while (!over) {
            wait_for_interrupt();
            interrupts_off();
        }
    }
    interrupts_off();
    barrier_wait(&gate, cores_running);
}

static void to_x2(uint32_t core) {
    (void)core;
    lapic_enable(true);
}

// Each core rings the next one, which is on another host, and is answered.
static uint32_t ring_list[MAX_CORES], ring_rounds;

static void storm(uint32_t core) {
    uint32_t place = 0, answered = 0;
    memset(taken_by(core), 0, sizeof(struct taken));
    while (ring_list[place] != core) place++;
    interrupts_on();
    barrier_wait(&gate, cores_running);
    uint64_t end = read_tsc() + tsc_hz() / 2;
    for (uint32_t i = 0; i < ring_rounds && (i < 5 || read_tsc() < end); i++) {
        uint32_t to = ring_list[(place + 1 + i % (cores_running - 1)) % cores_running];
        uint8_t vector = (uint8_t)(0x60 + core % 64);
        uint32_t before = taken_by(to)->count[vector];
        lapic_send(core_apic_ids[to], ICR_ASSERT | vector);
        if (!check(eventually(to, vector, before + 1), "IPI %u from core %u to core %u was lost", i, core,
                   to))
            break;
        answered++;
    }
    barrier_wait(&gate, cores_running);
    interrupts_off();
    taken_by(core)->count[0] = answered;
    barrier_wait(&gate, cores_running);
}

// A core of another host is reset and started anew, and works again.
static volatile uint32_t visited;
static void visit(uint32_t core) { __atomic_or_fetch(&visited, 1u << core % 32, __ATOMIC_SEQ_CST); }
static uint32_t restarted;
static volatile bool started;

static void restart(uint32_t core) {
    if (core == sender) started = core_start(restarted, TRAMPOLINE);
}

static void restarts(void) {
    for (uint32_t host = 0; host < mesh_hosts; host++) {
        sender = mesh_core_of(host, 0);
        // The last core of the next host; never the first core of all, which runs this.
        restarted = mesh_core_of((host + 1) % mesh_hosts, 0);
        for (uint32_t n = 1; mesh_core_of((host + 1) % mesh_hosts, n) < MAX_CORES; n++)
            restarted = mesh_core_of((host + 1) % mesh_hosts, n);
        if (restarted == 0 || restarted == sender) continue;
        started = false;
        // The core to be reset does not come back from a job: the others alone are given this one.
        cores_post(restart, sender + 1);
        restart(0);
        if (sender)
            for (uint64_t end = read_tsc() + 30 * tsc_hz(); !started && read_tsc() < end;) pause();
        if (!check(started, "core %u did not start again by INIT and SIPI of core %u", restarted, sender))
            return;
        delay_us(settle_us);
        visited = 0;
        cores_run(visit, cores_running);
        uint32_t all = cores_running >= 32 ? ~0u : (1u << cores_running) - 1;
        check(visited == all, "after core %u was started anew, cores %x of %x work", restarted, visited, all);
    }
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    check(cores_running == cores_found, "%u of %u cores run", cores_running, cores_found);
    print("started=%u\n", cores_running);
    settle_us = (uint32_t)option_number("settle", 2000);
    most = cores_running < 8 ? cores_running : 8;
    for (unsigned vector = 0x31; vector < 0xf0; vector++) trap_handlers[vector] = take;
    trap_handlers[2] = take;
    if (cores_running > 1) {
        for (unsigned mode = 0; mode < 2; mode++) {
            if (mode && !lapic_has_x2()) break;
            if (mode) cores_run(to_x2, cores_running);
            for (uint32_t host = 0; host < mesh_hosts; host++) {
                sender = mesh_core_of(host, 0);
                over = 0;
                uint64_t from = read_tsc();
                cores_run(all_kinds, cores_running);
                print("ipi %s sender=%u us=%lu failures=%u\n", mode ? "x2apic" : "xapic", sender,
                      (read_tsc() - from) / (tsc_hz() / 1000000), failures);
            }
        }
        mesh_spread(ring_list);
        ring_rounds = 200;
        cores_run(storm, cores_running);
        uint64_t rings = 0;
        for (uint32_t core = 0; core < cores_running; core++) rings += taken_by(core)->count[0];
        print("storm rings=%lu\n", rings);
        restarts();
        print("restarts done failures=%u\n", failures);
    }
    finish();
}
