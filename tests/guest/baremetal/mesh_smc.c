// SPDX-License-Identifier: GPL-2.0-or-later
// Code that one host changes while all hosts run it: who sees generation g runs code of generation >= g.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); generations=N of each case (default 60); strict: no old code.
#include "mesh.h"
#include "written_code.h"

#define ALIAS 0x8000000000ull
#define SPLIT 0x8000010000ull  // two pages, at home on the first and the last host

static struct barrier gate;
static uint64_t write_at, run_at, generations, generation_at;
static uint32_t writer, round_number;

struct result {
    volatile uint32_t acknowledged;
    volatile uint64_t calls, stale;
};
static struct result* result_of(uint32_t core) { return (struct result*)mesh_own(core); }

static void cross_modify(uint32_t core) {
    volatile uint32_t* generation = (volatile uint32_t*)generation_at;
    struct result* mine = result_of(core);
    uint32_t last = (uint32_t)generations, base = round_number << 16;
    mine->acknowledged = base;
    mine->calls = mine->stale = 0;
    barrier_wait(&gate, cores_running);
    if (core == writer) {
        for (uint32_t g = 1; g <= last; g++) {
            *(volatile uint32_t*)(write_at + 1) = base + g;
            *generation = base + g;
            // One in four at full speed, three when all have seen the one before.
            if (g % 4 == 0) continue;
            for (uint32_t other = 0; other < cores_running; other++)
                while (other != core && result_of(other)->acknowledged < base + g) pause();
        }
    } else {
        uint64_t calls = 0, stale = 0;
        uint32_t seen;
        do {
            seen = *generation;
            __asm__ volatile("" ::: "memory");
            uint32_t got = run(run_at);
            calls++;
            stale += got < seen;
            if (mine->acknowledged != seen) mine->acknowledged = seen;
            if (calls % 16 == 0) pause();
        } while (seen < base + last);
        mine->calls = calls;
        mine->stale = stale;
    }
    barrier_wait(&gate, cores_running);
}

static void cross_modifying(const char* name, uint64_t to, uint64_t from) {
    uint64_t calls = 0, stale = 0, started = read_tsc();
    for (uint32_t host = 0; host < mesh_hosts; host++) {
        writer = mesh_core_of(host, 0);
        round_number++;
        generation_at = mesh_shared(host + 1, 40);
        *(volatile uint32_t*)generation_at = round_number << 16;
        write_function(to, round_number << 16);
        write_at = to;
        run_at = from;
        cores_run(cross_modify, cores_running);
        for (uint32_t core = 0; core < cores_running; core++) {
            calls += result_of(core)->calls;
            stale += result_of(core)->stale;
        }
    }
    print("cross %s generations=%lu calls=%lu stale=%lu us=%lu\n", name, generations * mesh_hosts, calls,
          stale, (read_tsc() - started) / (tsc_hz() / 1000000));
    // QEMU 7.2 may translate again between its invalidation and the store.
    if (option("strict")) check(!stale, "%s: %lu of %lu calls ran old code", name, stale, calls);
}

// Every core has a function in one page, rewrites it, runs its own and its neighbour's.
static uint64_t slots_at;

static void shared_page(uint32_t core) {
    uint64_t own = slots_at + core % 64 * 64;
    uint32_t wrong = 0, cores = cores_running < 64 ? cores_running : 64;
    barrier_wait(&gate, cores_running);
    for (uint32_t i = 1; i <= generations && core < 64; i++) {
        write_function(own, core << 24 | i);
        wrong += run(own) != (core << 24 | i);
        wrong += run(slots_at + (core + i) % cores * 64) >> 24 != (core + i) % cores;
    }
    check(!wrong, "core %u: %u wrong results of functions in a page of all cores", core, wrong);
    barrier_wait(&gate, cores_running);
}

// A page of code that moves: its own host writes it, the next runs it and writes it, and so on.
static void handed_round(uint32_t core) {
    uint64_t at = mesh_shared(0, 46);
    volatile uint32_t* turn = (volatile uint32_t*)mesh_shared(mesh_hosts - 1, 47);
    uint32_t wrong = 0;
    barrier_wait(&gate, cores_running);
    for (uint32_t step = core; step < generations; step += cores_running) {
        while (*turn != step) pause();
        wrong += run(at) != step;
        write_function(at, step + 1);
        wrong += run(at) != step + 1;
        *turn = step + 1;
    }
    check(!wrong, "core %u: %u wrong results of a function handed round", core, wrong);
    barrier_wait(&gate, cores_running);
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    generations = option_number("generations", 60);
    for (uint32_t host = 0; host < mesh_hosts; host++)
        page_map(ALIAS + host * PAGE, mesh_shared(host, 41), PAGE_PRESENT | PAGE_WRITE);
    page_map(SPLIT, mesh_shared(0, 42), PAGE_PRESENT | PAGE_WRITE);
    page_map(SPLIT + PAGE, mesh_shared(mesh_hosts - 1, 44), PAGE_PRESENT | PAGE_WRITE);
    if (cores_running > 1) {
        for (uint32_t host = 0; host < mesh_hosts; host++)
            cross_modifying("same-address", mesh_shared(host, 41) + 0x80, mesh_shared(host, 41) + 0x80);
        cross_modifying("other-mapping", ALIAS + 0x80, mesh_shared(0, 41) + 0x80);
        cross_modifying("crossing-homes", SPLIT + PAGE - 2, SPLIT + PAGE - 2);
    }
    slots_at = mesh_shared(mesh_hosts - 1, 45);
    for (uint32_t slot = 0; slot < 64; slot++) write_function(slots_at + slot * 64, slot << 24);
    cores_run(shared_page, cores_running);
    write_function(mesh_shared(0, 46), 0);
    *(volatile uint32_t*)mesh_shared(mesh_hosts - 1, 47) = 0;
    cores_run(handed_round, cores_running);
    print("shared done failures=%u\n", failures);
    finish();
}
