// SPDX-License-Identifier: GPL-2.0-or-later
// Ordinary work on memory that all hosts share: the same data everywhere, nothing lost on the way.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); pages=N of data (default 128, at most 1024); rounds=N (default
// 3).
#include "mesh.h"

static struct barrier gate;
static uint64_t pages, rounds, data_at, seed;

static uint64_t checksum(uint64_t at, uint64_t bytes) {
    uint64_t sum = 0xcbf29ce484222325ull;
    for (uint64_t i = 0; i < bytes; i += 8) sum = (sum ^ *(volatile uint64_t*)(at + i)) * 0x100000001b3ull;
    return sum;
}

// --- the same data, read by all cores at once

static void sum_data(uint32_t core) { *(uint64_t*)mesh_own(core) = checksum(data_at, pages * PAGE); }

static void same_data(void) {
    uint64_t first = 0;
    for (uint32_t home = 0; home < mesh_hosts; home++) {
        uint64_t random = seed + home;
        data_at = mesh_bulk(home);
        for (uint64_t i = 0; i < pages * PAGE; i += 8)
            *(volatile uint64_t*)(data_at + i) = i / PAGE % 4 ? mesh_random(&random) : 0;
        cores_run(sum_data, cores_running);
        first = *(uint64_t*)mesh_own(0);
        for (uint32_t core = 1; core < cores_running; core++)
            check(*(uint64_t*)mesh_own(core) == first,
                  "core %u sums the pages of host %u to %lx, core 0 to %lx", core, home,
                  *(uint64_t*)mesh_own(core), first);
    }
    print("checksum=%lx\n", first);
}

// --- memory that nobody has touched reads as zero everywhere

static void look_for_zero(uint32_t core) {
    uint64_t found = 0;
    for (uint32_t home = 0; home < mesh_hosts; home++)
        for (uint64_t i = 0; i < 64 * PAGE; i += 64)
            found |= *(volatile uint64_t*)(mesh_bulk(home) + BULK_BYTES - 64 * PAGE + i);
    check(!found, "core %u reads %lx where nobody has written", core, found);
}

// --- every page goes round all cores; each adds to every word of it, without LOCK

static void go_round(uint32_t core) {
    static volatile uint32_t turns[256];
    volatile uint32_t* turn = turns;
    uint64_t count = pages < 64 ? pages : 64, wrong = 0;
    barrier_wait(&gate, cores_running);
    for (uint64_t round = 0; round < rounds; round++)
        for (uint64_t page = 0; page < count; page++) {
            uint64_t step = round * cores_running + core;
            while (__atomic_load_n(&turn[page], __ATOMIC_ACQUIRE) != step) pause();
            volatile uint64_t* word = (volatile uint64_t*)(data_at + page * PAGE);
            for (unsigned i = 0; i < 512; i += 7) {
                wrong += word[i] != step * (i + 1);
                word[i] = word[i] + i + 1;
            }
            __atomic_store_n(&turn[page], (uint32_t)step + 1, __ATOMIC_RELEASE);
        }
    check(!wrong, "core %u found %lu words that another left otherwise", core, wrong);
    barrier_wait(&gate, cores_running);
    if (core == 0) memset((void*)turns, 0, sizeof turns);
}

// --- messages through a ring of pages: one writes, the next reads, checks and hands on

#define SLOTS 8u
static uint32_t chain[MAX_CORES];

static void pass_on(uint32_t core) {
    uint32_t place = 0;
    while (chain[place] != core) place++;
    uint64_t ring = mesh_bulk(mesh_host_of[core]) + 0x100000u + core * 0x10000u;
    uint32_t before = chain[(place + cores_running - 1) % cores_running];
    uint64_t from = mesh_bulk(mesh_host_of[before]) + 0x100000u + before * 0x10000u;
    uint64_t wrong = 0, messages = rounds * SLOTS * 2;
    for (unsigned i = 0; i < SLOTS; i++) *(volatile uint64_t*)(ring + i * PAGE) = 0;
    barrier_wait(&gate, cores_running);
    for (uint64_t i = 1; i <= messages; i++) {
        volatile uint64_t* out = (volatile uint64_t*)(ring + i % SLOTS * PAGE);
        if (place) {
            volatile uint64_t* in = (volatile uint64_t*)(from + i % SLOTS * PAGE);
            while (in[0] != i) pause();
            for (unsigned word = 1; word < 512; word += 3) wrong += in[word] != i * word;
            in[0] = 0;  // taken
        }
        if (place == cores_running - 1) continue;
        while (out[0]) pause();
        for (unsigned word = 1; word < 512; word += 3) out[word] = i * word;
        out[0] = i;
    }
    check(!wrong, "core %u: %lu wrong words in messages of core %u", core, wrong, before);
    barrier_wait(&gate, cores_running);
}

// --- instructions that reach into two pages of two homes

#define WINDOW 0x8000000000ull

static void straddle(uint32_t core) {
    uint64_t at = WINDOW + core % 16 * 2 * PAGE, wrong = 0;
    barrier_wait(&gate, cores_running);
    for (uint64_t i = 1; i <= rounds * 20 && core < 16; i++) {
        // Other cores write elsewhere in the same pages: these move all the time.
        volatile uint8_t* noise = (volatile uint8_t*)(WINDOW + (core + 1) % 16 * 2 * PAGE + 64 + core);
        *noise = (uint8_t)i;
        *(volatile uint64_t*)(at + PAGE - 3) = i * 0x0101010101010101ull;
        wrong += *(volatile uint64_t*)(at + PAGE - 3) != i * 0x0101010101010101ull;
        memset((void*)(at + PAGE - 24), (int)i, 48);
        memcpy((void*)(at + PAGE - 128), (void*)(at + PAGE - 24), 48);
        for (unsigned byte = 0; byte < 48; byte++)
            wrong += *(volatile uint8_t*)(at + PAGE - 128 + byte) != (uint8_t)i;
        uint64_t pushed;
        __asm__ volatile(
            "mov %%rsp, %%r8\n mov %1, %%rsp\n push %2\n pop %0\n push %2\n mov (%%rsp), %0\n mov %%r8, %%rsp"
            : "=&r"(pushed)
            : "r"(at + PAGE + 4), "r"(i)
            : "r8", "memory");
        wrong += pushed != i;
        wrong += *noise != (uint8_t)i;
    }
    check(!wrong, "core %u: %lu wrong results of accesses to two pages", core, wrong);
    barrier_wait(&gate, cores_running);
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    pages = option_number("pages", 128);
    if (pages > 1024) pages = 1024;
    rounds = option_number("rounds", 3);
    seed = option_number("seed", 88172645463325252ull);
    cores_run(look_for_zero, cores_running);
    same_data();
    print("same data done failures=%u\n", failures);
    for (uint32_t home = 0; home < mesh_hosts; home++) {
        data_at = mesh_bulk(home);
        memset((void*)data_at, 0, 64 * PAGE);
        cores_run(go_round, cores_running);
    }
    print("round done failures=%u\n", failures);
    mesh_spread(chain);
    if (cores_running > 1 && cores_running <= 48) cores_run(pass_on, cores_running);
    print("messages done failures=%u\n", failures);
    for (unsigned pair = 0; pair < 16; pair++) {
        page_map(WINDOW + pair * 2 * PAGE, mesh_shared(0, 100 + pair), PAGE_PRESENT | PAGE_WRITE);
        page_map(WINDOW + (pair * 2 + 1) * PAGE, mesh_shared(mesh_hosts - 1, 120 + pair),
                 PAGE_PRESENT | PAGE_WRITE);
    }
    cores_run(straddle, cores_running);
    finish();
}
