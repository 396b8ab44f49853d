// SPDX-License-Identifier: GPL-2.0-or-later
// The order of memory accesses that cores of different hosts may see: litmus tests of x86-TSO (SDM 3A, 9.2).
//
// Each test runs as a batch of instances: instance i is word i of the pages of x and of y, and all players
// start it at the same value of the clock, give or take a random part of the time that a page takes to move.
// No memory is shared to keep them together, so that nothing but the test orders anything.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); batches=N of each test (default 4); period=N microseconds between
// instances at first (default 150; more when that is too fast); only=N runs one test.
#include "mesh.h"

#define INSTANCES 256u
#define STRIDE 8u

enum test {
    SB,
    SB_MFENCE,
    SB_LOCK,
    SB_XCHG,
    SB_XADD,
    MP,
    MP_MFENCE,
    MP_LOCK,
    MP_XADD,
    LB,
    LB_MFENCE,
    IRIW,
    IRIW_MFENCE,
    S,
    R,
    R_MFENCE,
    TWO_TWO_W,
    WRC,
    CORR,
    MP_REVERSED,
    TESTS
};
static const struct {
    const char* name;
    uint32_t players;
    bool allowed;
} tests[TESTS] = {
    [SB] = {"sb", 2, true},
    [SB_MFENCE] = {"sb+mfence", 2, false},
    [SB_LOCK] = {"sb+lock", 2, false},
    [SB_XCHG] = {"sb+xchg", 2, false},
    [SB_XADD] = {"sb+xadd", 2, false},
    [MP] = {"mp", 2, false},
    [MP_MFENCE] = {"mp+mfence", 2, false},
    [MP_LOCK] = {"mp+lock", 2, false},
    [MP_XADD] = {"mp+xadd", 2, false},
    [LB] = {"lb", 2, false},
    [LB_MFENCE] = {"lb+mfence", 2, false},
    [IRIW] = {"iriw", 4, false},
    [IRIW_MFENCE] = {"iriw+mfence", 4, false},
    [S] = {"s", 2, false},
    [R] = {"r", 2, true},
    [R_MFENCE] = {"r+mfence", 2, false},
    [TWO_TWO_W] = {"2+2w", 2, false},
    [WRC] = {"wrc", 3, false},
    [CORR] = {"corr", 2, false},
    // The control: the writer does it in the wrong order, and not at once, so that the reader must see what
    // MP forbids.
    [MP_REVERSED] = {"control", 2, true},
};

static enum test test;
static uint64_t page_x, page_y, start, period;
static uint32_t players[4];  // the core of each role

struct seen {
    uint64_t first, second;
};
static struct seen* seen_by(unsigned role) {
    return (struct seen*)(mesh_bulk(mesh_host_of[players[role]]) + role * 0x10000u);
}

static inline uint64_t load(uint64_t at) { return *(volatile uint64_t*)at; }
static inline void store(uint64_t at, uint64_t value) { *(volatile uint64_t*)at = value; }
static inline void mfence(void) { __asm__ volatile("mfence" ::: "memory"); }
static inline uint64_t xadd(uint64_t at, uint64_t value) {
    __asm__ volatile("lock xaddq %0, (%1)" : "+r"(value) : "r"(at) : "memory", "cc");
    return value;
}

static void play(unsigned role, uint64_t x, uint64_t y, struct seen* out) {
    uint64_t mine = role ? y : x, theirs = role ? x : y, value = 1, spare = 0;
    switch (test) {
        case SB:
            store(mine, 1);
            out->first = load(theirs);
            break;
        case SB_MFENCE:
            store(mine, 1);
            mfence();
            out->first = load(theirs);
            break;
        case SB_LOCK:
            store(mine, 1);
            xadd((uint64_t)&spare, 1);
            out->first = load(theirs);
            break;
        case SB_XCHG:
            __asm__ volatile("xchgq %0, (%1)" : "+r"(value) : "r"(mine) : "memory");
            out->first = load(theirs);
            break;
        case SB_XADD:
            xadd(mine, 1);
            out->first = load(theirs);
            break;
        case MP:
        case MP_MFENCE:
        case MP_LOCK:
        case MP_XADD:
            if (role == 0) {
                if (test == MP_LOCK)
                    xadd(x, 1);
                else
                    store(x, 1);
                if (test == MP_MFENCE) mfence();
                if (test == MP_XADD)
                    xadd(y, 1);
                else
                    store(y, 1);
            } else {
                out->first = test == MP_XADD ? xadd(y, 0) : load(y);
                if (test == MP_MFENCE) mfence();
                out->second = load(x);
            }
            break;
        case LB:
        case LB_MFENCE:
            out->first = load(mine);
            if (test == LB_MFENCE) mfence();
            store(theirs, 1);
            break;
        case IRIW:
        case IRIW_MFENCE:
            if (role < 2) {
                store(mine, 1);
            } else {
                out->first = load(role == 2 ? x : y);
                if (test == IRIW_MFENCE) mfence();
                out->second = load(role == 2 ? y : x);
            }
            break;
        case S:
            if (role == 0) {
                store(x, 2);
                store(y, 1);
            } else {
                out->first = load(y);
                store(x, 1);
            }
            break;
        case R:
        case R_MFENCE:
            if (role == 0) {
                store(x, 1);
                store(y, 1);
            } else {
                store(y, 2);
                if (test == R_MFENCE) mfence();
                out->first = load(x);
            }
            break;
        case TWO_TWO_W:
            store(mine, 1);
            store(theirs, 2);
            break;
        case WRC:
            if (role == 0) store(x, 1);
            if (role == 1) {
                out->first = load(x);
                store(y, 1);
            }
            if (role == 2) {
                out->first = load(y);
                out->second = load(x);
            }
            break;
        case CORR:
            if (role == 0) {
                store(x, 1);
            } else {
                out->first = load(x);
                out->second = load(x);
            }
            break;
        case MP_REVERSED:
            if (role == 0) {
                store(y, 1);
                for (uint64_t end = read_tsc() + period / 4; read_tsc() < end;) pause();
                store(x, 1);
            } else {
                out->first = load(y);
                out->second = load(x);
            }
            break;
        default:
            break;
    }
}

// Whether instance i ended in the outcome that the test is about.
static bool outcome(uint32_t i) {
    uint64_t x = load(page_x + i * STRIDE), y = load(page_y + i * STRIDE);
    struct seen a = seen_by(0)[i], b = seen_by(1)[i], c = {0, 0}, d = {0, 0};
    if (tests[test].players > 2) c = seen_by(2)[i];
    if (tests[test].players > 3) d = seen_by(3)[i];
    switch (test) {
        case SB:
        case SB_MFENCE:
        case SB_LOCK:
        case SB_XCHG:
        case SB_XADD:
            return !a.first && !b.first;
        case LB:
        case LB_MFENCE:
            return a.first && b.first;
        case IRIW:
        case IRIW_MFENCE:
            return c.first && !c.second && d.first && !d.second;
        case S:
            return b.first && x == 2;
        case R:
        case R_MFENCE:
            return y == 2 && !b.first;
        case TWO_TWO_W:
            return x == 1 && y == 1;
        case WRC:
            return b.first && c.first && !c.second;
        default:
            return b.first && !b.second;
    }
}

static void batch(uint32_t core) {
    unsigned role = 0;
    while (role < tests[test].players && players[role] != core) role++;
    if (role == tests[test].players) return;
    struct seen* out = seen_by(role);
    uint64_t random = 0x9e3779b97f4a7c15ull * (core + 1) + start;
    for (uint32_t i = 0; i < INSTANCES; i++) out[i] = (struct seen){0, 0};
    for (uint32_t i = 0; i < INSTANCES; i++) {
        uint64_t at = start + (i + 1) * period + mesh_random(&random) % (period / 2);
        while (read_tsc() < at) pause();
        play(role, page_x + i * STRIDE, page_y + i * STRIDE, &out[i]);
    }
}

// Where x and y lie, and which host plays what, differ from batch to batch.
static void arrange(uint32_t turn) {
    static const uint8_t orders[3][4] = {{0, 1, 2, 3}, {0, 2, 1, 3}, {0, 1, 3, 2}};
    static uint32_t list[MAX_CORES];
    uint32_t count = mesh_spread(list);
    for (unsigned role = 0; role < 4; role++) {
        uint32_t place = tests[test].players > 2 ? orders[turn % 3][role] : role;
        players[role] = list[place % count];
    }
    page_x = mesh_shared(turn / 2, 50);
    page_y = turn % 4 == 3 ? page_x + INSTANCES * STRIDE : mesh_shared(turn / 2 + turn % 2, 51);
    memset((void*)page_x, 0, PAGE);
    memset((void*)page_y, 0, INSTANCES * STRIDE);
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    uint64_t batches = option_number("batches", 4), control = 0;
    period = tsc_hz() / 1000000 * option_number("period", 150);
    for (test = 0; test < TESTS; test++) {
        uint64_t found = 0, first = 0, after = 0;
        if (tests[test].players > cores_running || option_number("only", test) != test) continue;
        // The control goes on until it has been caught.
        uint64_t most = test == MP_REVERSED ? 8 * batches : batches, turn = 0;
        for (; turn < most && (turn < batches || !found); turn++) {
            arrange((uint32_t)turn);
            start = read_tsc() + tsc_hz() / 1000;
            cores_run(batch, cores_running);
            // Late: pages move more slowly than that. Players that run after each other do not meet.
            uint64_t late = start + (INSTANCES + 20) * period;
            if (read_tsc() > late && period < tsc_hz() / 3000) period += period / 2;
            for (uint32_t i = 0; i < INSTANCES; i++) {
                found += outcome(i);
                // How the players met: the reader came after the writer, or before.
                const struct seen* last = &seen_by(tests[test].players - 1)[i];
                first += !last->first;
                after += last->first != 0;
            }
        }
        print("order %s instances=%lu outcome=%lu before=%lu after=%lu period_us=%lu\n", tests[test].name,
              turn * INSTANCES, found, first, after, period / (tsc_hz() / 1000000));
        if (test == MP_REVERSED) control = found;
        if (!tests[test].allowed)
            check(!found, "%s: an order that the manual forbids was seen %lu times", tests[test].name, found);
    }
    print("control_seen=%lu\n", control);
    finish();
}
