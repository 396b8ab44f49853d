// SPDX-License-Identifier: GPL-2.0-or-later
// The order of memory accesses that other cores may see (SDM 3A, 9.2): litmus tests with two and four cores.
//
// Options: cpus=N; rounds=N (default 20000 of each test).
#include "guest.h"

struct cell {
    volatile uint64_t value;
} __attribute__((aligned(128)));

static struct cell x, y, seen[8], go[4], ready[4];
static volatile uint64_t rounds;
static uint64_t forbidden, relaxed, end;
static uint32_t players;

// PAUSE gives the host's processor away: first wait without, so that both leave at the same moment.
static void wait_for(struct cell* cells, uint64_t round) {
    for (uint32_t other = 0; other < players; other++)
        for (uint32_t spins = 0; cells[other].value < round; spins++)
            if (spins > 2000) pause();
}

// All players leave at the same round; the first looks at the results of the one before, and clears the
// cells.
static void round_begin(uint32_t core, uint64_t round) {
    ready[core].value = round;
    wait_for(ready, round);
}

static void settle(uint32_t core, uint64_t round) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    go[core].value = round;
    wait_for(go, round);
}

enum {
    STORE_BUFFER,
    STORE_BUFFER_FENCE,
    STORE_BUFFER_LOCK,
    STORE_BUFFER_XCHG,
    MESSAGE,
    LOAD_BUFFER,
    INDEPENDENT,
    TESTS
};
static const char* const names[] = {"sb", "sb+mfence", "sb+lock", "sb+xchg", "mp", "lb", "iriw"};
static unsigned test;

static void play(uint32_t core) {
    uint64_t a, b;
    switch (test) {
        case STORE_BUFFER:
        case STORE_BUFFER_FENCE:
        case STORE_BUFFER_LOCK:
        case STORE_BUFFER_XCHG: {
            volatile uint64_t *mine = core ? &y.value : &x.value, *theirs = core ? &x.value : &y.value;
            static uint64_t spare[4][16];
            if (test == STORE_BUFFER_XCHG) {
                uint64_t one = 1;
                __asm__ volatile("xchgq %0, %1" : "+r"(one), "+m"(*mine)::"memory");
            } else {
                *mine = 1;
            }
            if (test == STORE_BUFFER_FENCE) __asm__ volatile("mfence" ::: "memory");
            if (test == STORE_BUFFER_LOCK)
                __asm__ volatile("lock incq %0" : "+m"(spare[core][0])::"memory", "cc");
            seen[core].value = *theirs;
            break;
        }
        case MESSAGE:
            if (core == 0) {
                x.value = 1;
                y.value = 1;
            } else {
                a = y.value;
                b = x.value;
                seen[0].value = a, seen[1].value = b;
            }
            break;
        case LOAD_BUFFER:
            a = core ? y.value : x.value;
            *(core ? &x.value : &y.value) = 1;
            seen[core].value = a;
            break;
        case INDEPENDENT:
            if (core == 0) x.value = 1;
            if (core == 1) y.value = 1;
            if (core >= 2) {
                a = core == 2 ? x.value : y.value;
                b = core == 2 ? y.value : x.value;
                seen[2 * core - 4].value = a, seen[2 * core - 3].value = b;
            }
            break;
    }
}

static void judge(void) {
    uint64_t s0 = seen[0].value, s1 = seen[1].value, s2 = seen[2].value, s3 = seen[3].value;
    switch (test) {
        case STORE_BUFFER:
            relaxed += !s0 && !s1;
            break;
        case STORE_BUFFER_FENCE:
        case STORE_BUFFER_LOCK:
        case STORE_BUFFER_XCHG:
            forbidden += !s0 && !s1;
            break;
        case MESSAGE:
            forbidden += s0 && !s1;
            break;
        case LOAD_BUFFER:
            forbidden += s0 && s1;
            break;
        case INDEPENDENT:
            forbidden += s0 && !s1 && s2 && !s3;
            break;
    }
}

static void litmus(uint32_t core) {
    for (uint64_t round = 1; round <= rounds; round++) {
        if (core == 0) {
            x.value = y.value = 0;
            // Long enough on a busy host: all read the new end before they can pass this round.
            if (round > 100 && read_tsc() > end) rounds = round;
        }
        round_begin(core, round);
        play(core);
        settle(core, round);
        if (core == 0) judge();
    }
}

void guest_main(void) {
    cores_start();
    uint64_t wanted = option_number("rounds", 20000);
    for (test = 0; test < TESTS; test++) {
        players = test == INDEPENDENT ? 4 : 2;
        if (cores_running < players) continue;
        rounds = players > 2 ? wanted / 20 : wanted;
        forbidden = relaxed = 0;
        for (unsigned i = 0; i < 4; i++) go[i].value = ready[i].value = 0;
        end = read_tsc() + tsc_hz();
        cores_run(litmus, players);
        print("order %s rounds=%lu forbidden=%lu relaxed=%lu\n", names[test], rounds, forbidden, relaxed);
        check(!forbidden, "%s: an order that the manual forbids was seen %lu times", names[test], forbidden);
    }
    finish();
}
