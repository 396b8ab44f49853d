// SPDX-License-Identifier: GPL-2.0-or-later
// One clock: the TSC never runs backwards between cores that synchronise, through memory or by interrupts.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); ms=N of each part (default 200).
#include "mesh.h"

#define RING_VECTOR 0x51

struct watch {
    volatile uint64_t seen, warps, largest, rung;
    volatile uint64_t rings;
};

static struct barrier gate;
static uint64_t end, last_at;

static struct watch* watch_of(uint32_t core) { return (struct watch*)mesh_own(core); }

static void judge(uint32_t core, uint64_t before, uint64_t now) {
    struct watch* mine = watch_of(core);
    mine->seen++;
    if (now >= before) return;
    mine->warps++;
    if (before - now > mine->largest) mine->largest = before - now;
}

// A value that one core publishes must not lie before one that another has read from it.
static void through_memory(uint32_t core) {
    volatile uint64_t* last = (volatile uint64_t*)last_at;
    memset((void*)watch_of(core), 0, sizeof(struct watch));
    barrier_wait(&gate, cores_running);
    uint64_t stop = end, now;
    do {
        uint64_t before = *last;
        now = read_tsc();
        judge(core, before, now);
        __atomic_compare_exchange_n(last, &before, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    } while (now < stop);
    barrier_wait(&gate, cores_running);
}

// The handler reads the clock before it looks into memory: only the interrupt says that the other is ahead.
static void rung(struct trap_frame* frame) {
    (void)frame;
    uint64_t now = read_tsc();
    uint32_t core = this_core()->index;
    lapic_eoi();
    uint64_t stamp = *(volatile uint64_t*)(last_at + 8 * core);
    judge(core, stamp, now);
    watch_of(core)->rings++;
}

static uint32_t ringers[MAX_CORES];

static void by_interrupts(uint32_t core) {
    memset((void*)watch_of(core), 0, sizeof(struct watch));
    interrupts_on();
    barrier_wait(&gate, cores_running);
    uint64_t stop = end, sent = 0;
    uint32_t place = 0;
    while (ringers[place] != core) place++;
    uint32_t to = ringers[(place + 1) % cores_running];
    const volatile uint64_t* rings = &watch_of(to)->rings;
    uint64_t now = read_tsc();
    while (now < stop) {
        now = read_tsc();
        *(volatile uint64_t*)(last_at + 8 * to) = now;
        lapic_send(core_apic_ids[to], ICR_ASSERT | RING_VECTOR);
        sent++;
        for (uint64_t give_up = now + 5 * tsc_hz(); *rings < sent && read_tsc() < give_up;) pause();
        if (!check(*rings == sent, "core %u rang core %u %lu times, and was heard %lu times", core, to, sent,
                   *rings))
            break;
    }
    barrier_wait(&gate, cores_running);
    interrupts_off();
}

static void verdict(const char* how) {
    uint64_t seen = 0, warps = 0, largest = 0;
    for (uint32_t core = 0; core < cores_running; core++) {
        const struct watch* one = watch_of(core);
        seen += one->seen;
        warps += one->warps;
        if (one->largest > largest) largest = one->largest;
    }
    print("time %s_seen=%lu %s_warps=%lu largest=%lu cycles\n", how, seen, how, warps, largest);
    check(!warps, "the TSC ran backwards %lu of %lu times by %s, by %lu cycles at most", warps, seen, how,
          largest);
}

// How far the clocks of two hosts are apart, from the fastest way there and the fastest way back.
static uint32_t far_core;
static int64_t fastest_there, fastest_back;

static void ping(uint32_t core) {
    volatile uint64_t* there = (volatile uint64_t*)mesh_shared(0, 20);
    volatile uint64_t* back = (volatile uint64_t*)mesh_shared(mesh_hosts - 1, 21);
    if (core == far_core) {
        for (uint64_t seen = 0, now; seen != ~0ull;) {
            while (*there == seen) pause();
            now = read_tsc();
            seen = *there;
            if (seen != ~0ull && (int64_t)(now - seen) < fastest_there) fastest_there = (int64_t)(now - seen);
            *back = read_tsc();
        }
    } else if (core == 0) {
        uint64_t stop = end;
        for (uint64_t answer = 0, now = 0; now < stop;) {
            *there = read_tsc();
            while (*back == answer) pause();
            now = read_tsc();
            answer = *back;
            if ((int64_t)(now - answer) < fastest_back) fastest_back = (int64_t)(now - answer);
        }
        *there = ~0ull;
    }
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    uint64_t span = tsc_hz() / 1000 * option_number("ms", 200);
    for (uint32_t host = 0; host < mesh_hosts; host++) {
        last_at = mesh_shared(host, 0);
        *(volatile uint64_t*)last_at = 0;
        end = read_tsc() + span / mesh_hosts;
        cores_run(through_memory, cores_running);
        verdict("memory");
    }
    if (cores_running > 1) {
        trap_handlers[RING_VECTOR] = rung;
        mesh_spread(ringers);
        last_at = mesh_shared(0, 1);
        end = read_tsc() + span;
        cores_run(by_interrupts, cores_running);
        verdict("interrupts");
        far_core = mesh_core_of(mesh_hosts - 1, mesh_hosts == 1);
        fastest_there = fastest_back = INT64_MAX;
        *(volatile uint64_t*)mesh_shared(0, 20) = *(volatile uint64_t*)mesh_shared(mesh_hosts - 1, 21) = 0;
        end = read_tsc() + span;
        cores_run(ping, cores_running);
        int64_t apart = (fastest_there - fastest_back) / 2, mhz = (int64_t)(tsc_hz() / 1000000);
        print("skew_ns=%ld there_ns=%ld back_ns=%ld\n", apart * 1000 / mhz, fastest_there * 1000 / mhz,
              fastest_back * 1000 / mhz);
    }
    finish();
}
