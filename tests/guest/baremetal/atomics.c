// SPDX-License-Identifier: GPL-2.0-or-later
// Locked instructions: results and flags on one core, then exact totals with all cores at the same operand.
//
// Options: cpus=N; rounds=N of each contended case (default 400).
#include "atomics.h"

// Two neighbouring frames, and a window whose second page lies in a frame far from the first one's.
#define FRAMES 0x600000u
#define WINDOW 0x8000000000ull
#define FAR_FRAME (FRAMES + 0x7000u)

static const struct {
    const char* name;
    uint64_t address;  // of the operand's middle, or of its start for those that do not cross
    bool crosses, slow;
} places[] = {
    {"aligned", FRAMES + 0x240, false, false},     {"misaligned", FRAMES + 0x283, false, true},
    {"line-crossing", FRAMES + 0x340, true, true}, {"page-crossing", FRAMES + 0x1000, true, true},
    {"split-frames", WINDOW + 0x1000, true, true},
};
#define PLACES (sizeof places / sizeof places[0])

static uint64_t place(unsigned index, unsigned size) {
    return places[index].address - (places[index].crosses ? size / 2 : 0);
}

static uint32_t cores;
static uint64_t rounds;
static struct barrier gate;

// --- one core: the locked form does what the plain form does

static const uint64_t samples[] = {0,
                                   1,
                                   0x7f,
                                   0x80,
                                   0xff,
                                   0x7fff,
                                   0x8000,
                                   0x7fffffff,
                                   0x80000000,
                                   0x7fffffffffffffff,
                                   0x8000000000000000,
                                   0xffffffffffffffff,
                                   0x0123456789abcdef};
#define SAMPLES (sizeof samples / sizeof samples[0])

static void compare(const struct instruction* it, unsigned where, uint64_t value, uint64_t operand,
                    bool carry) {
    static uint8_t expected[48] __attribute__((aligned(64)));
    uint8_t* actual = (uint8_t*)place(where, it->size) - 16;
    bool indexed = it->name[0] == 'b' && it->name[1] == 't';
    if (indexed) operand &= 8 * it->size - 1;  // the bit string beyond the operand has its own check
    for (unsigned i = 0; i < 48; i++) expected[i] = actual[i] = (uint8_t)(0xa0 + i);
    memcpy(expected + 16, &value, 8);
    memcpy(actual + 16, &value, 8);
    struct operands first = {.rcx = operand, .rax = value, .rdx = ~value, .rbx = 0x5555, .flags = 2u | carry};
    if (operand & 2) memcpy(&first.rdx, expected + 24, 8);  // cmpxchg16b: match on these, not on the others
    struct operands second = first;
    if (it->size < 16) {
        it->plain(expected + 16, &first);
    } else {
        uint64_t* pair = (uint64_t*)(expected + 16);
        bool equal = pair[0] == first.rax && pair[1] == first.rdx;
        if (equal)
            pair[0] = first.rbx, pair[1] = first.rcx;
        else
            first.rax = pair[0], first.rdx = pair[1];
        first.flags = equal ? first.flags | FLAG_ZF : first.flags & ~(uint64_t)FLAG_ZF;
    }
    it->locked(actual + 16, &second);
    bool exchange = it->name[0] == 'x' && it->name[1] == 'c';
    check(!memcmp(expected, actual, 48), "%s %s value=%lx operand=%lx: memory %lx, expected %lx", it->name,
          places[where].name, value, operand, *(uint64_t*)(actual + 16), *(uint64_t*)(expected + 16));
    check(first.rax == second.rax && first.rcx == second.rcx && first.rdx == second.rdx &&
              (exchange || first.rbx == second.rbx),
          "%s %s value=%lx operand=%lx: rax=%lx rcx=%lx rdx=%lx, expected %lx %lx %lx", it->name,
          places[where].name, value, operand, second.rax, second.rcx, second.rdx, first.rax, first.rcx,
          first.rdx);
    check(!((first.flags ^ second.flags) & it->flags), "%s %s value=%lx operand=%lx: flags %lx, expected %lx",
          it->name, places[where].name, value, operand, second.flags & it->flags, first.flags & it->flags);
}

static void results(void) {
    for (unsigned i = 0; i < INSTRUCTIONS; i++) {
        for (unsigned where = 0; where < PLACES; where++) {
            if (instructions[i].size == 16 && where) continue;
            if (instructions[i].size == 1 && places[where].crosses) continue;
            unsigned step = places[where].slow ? 5 : 1;
            for (unsigned v = 0; v < SAMPLES; v++)
                for (unsigned o = v % step; o < SAMPLES; o += step)
                    compare(&instructions[i], where, samples[v], samples[o], (v + o) & 1);
        }
    }
}

static void bit_strings(void) {
    // A register bit offset reaches beyond the operand, both ways (SDM 2A, BTS).
    static uint8_t area[512] __attribute__((aligned(64)));
    for (int64_t bit = -1600; bit < 1600; bit += 97) {
        memset(area, 0, sizeof area);
        struct operands operands = {.rcx = (uint64_t)bit, .flags = 2};
        locked_bts8(area + 256, &operands);
        int64_t byte = 256 + (bit >> 3);
        check(area[byte] == 1u << (bit & 7) && !(operands.flags & FLAG_CF), "lock bts at bit %ld of a string",
              bit);
        operands.rcx = (uint64_t)bit;
        locked_btr4(area + 256, &operands);
        check(!area[byte] && operands.flags & FLAG_CF, "lock btr at bit %ld of a string", bit);
    }
}

static void misaligned_16(void* address) {
    struct operands operands = {.flags = 2};
    locked_cmpxchg16b(address, &operands);
}

static void lock_on_register(void* unused) {
    (void)unused;
    __asm__ volatile(".byte 0xf0; addl %%ecx, %%eax" ::: "eax", "cc");
}

// --- all cores

static struct {
    void (*op)(void*, struct operands*);
    uint64_t address, rcx, carry;
} work;

static void hammer(uint32_t core) {
    (void)core;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < rounds; i++) {
        struct operands operands = {.rcx = work.rcx, .flags = 2 | work.carry};
        work.op((void*)work.address, &operands);
    }
    barrier_wait(&gate, cores);
}

static uint64_t load(uint64_t address, unsigned size) {
    uint64_t value = 0;
    memcpy(&value, (void*)address, size);
    return value;
}

static void total(const struct instruction* it, unsigned where, int64_t delta, uint64_t rcx, uint64_t carry) {
    uint64_t address = place(where, it->size), start = 0x00ff00ff00ff00fd, saved = rounds;
    uint64_t mask = it->size == 8 ? ~0ull : (1ull << 8 * it->size) - 1;
    memcpy((void*)address, &start, it->size);
    if (places[where].slow) rounds = rounds / 8;
    rounds &= ~1ull;
    work.op = it->locked;
    work.address = address;
    work.rcx = rcx;
    work.carry = carry;
    cores_run(hammer, cores);
    uint64_t expected = (start + (uint64_t)delta * rounds * cores) & mask;
    check(load(address, it->size) == expected, "%s %s by %u cores: %lx, expected %lx", it->name,
          places[where].name, cores, load(address, it->size), expected);
    rounds = saved;
}

static bool is(const struct instruction* it, const char* op) {
    unsigned i = 0;
    while (op[i] && op[i] == it->name[i]) i++;
    return !op[i] && it->name[i] >= '1' && it->name[i] <= '9' && !it->name[i + 1];
}

static void totals(void) {
    for (unsigned i = 0; i < INSTRUCTIONS; i++) {
        const struct instruction* it = &instructions[i];
        for (unsigned where = 0; where < PLACES; where++) {
            if (it->size == 1 && places[where].crosses) continue;
            if (is(it, "add") || is(it, "xadd")) total(it, where, 3, 3, 0);
            if (is(it, "adc")) total(it, where, 1, 0, 1);
            if (is(it, "sub")) total(it, where, -3, 3, 0);
            if (is(it, "sbb")) total(it, where, -1, 0, 1);
            if (is(it, "inc")) total(it, where, 1, 0, 0);
            if (is(it, "dec")) total(it, where, -1, 0, 0);
            if (is(it, "not") || is(it, "neg")) total(it, where, 0, 0, 0);  // an even number of times
        }
    }
}

// Each core flips a bit of its own and looks that no other core's update took it back.
static const struct {
    const char* name;
    void (*set)(void*, struct operands*);
    void (*clear)(void*, struct operands*);
    unsigned size;
    bool masked;
} bits[] = {
    {"bts/btr", locked_bts2, locked_btr2, 2, false}, {"bts/btr", locked_bts4, locked_btr4, 4, false},
    {"bts/btr", locked_bts8, locked_btr8, 8, false}, {"btc", locked_btc4, locked_btc4, 4, false},
    {"btc", locked_btc8, locked_btc8, 8, false},     {"xor", locked_xor1, locked_xor1, 1, true},
    {"xor", locked_xor2, locked_xor2, 2, true},      {"xor", locked_xor4, locked_xor4, 4, true},
    {"xor", locked_xor8, locked_xor8, 8, true},      {"or/and", locked_or1, locked_and1, 1, true},
    {"or/and", locked_or2, locked_and2, 2, true},    {"or/and", locked_or4, locked_and4, 4, true},
    {"or/and", locked_or8, locked_and8, 8, true},
};
static unsigned bit_case, bit_place;

static void flip(uint32_t core) {
    unsigned size = bits[bit_case].size, bit = core * 5 % (8 * size);
    uint64_t address = place(bit_place, size), mask = 1ull << bit, wrong = 0;
    uint64_t count = places[bit_place].slow ? rounds / 8 : rounds;
    bool clears_by_and = bits[bit_case].masked && bits[bit_case].name[0] == 'o';
    volatile uint8_t* byte = (volatile uint8_t*)address + bit / 8;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < count; i++) {
        struct operands operands = {.rcx = bits[bit_case].masked ? mask : bit, .flags = 2};
        bits[bit_case].set((void*)address, &operands);
        wrong += !(*byte >> (bit & 7) & 1);
        operands.rcx = clears_by_and ? ~mask : bits[bit_case].masked ? mask : bit;
        bits[bit_case].clear((void*)address, &operands);
        wrong += *byte >> (bit & 7) & 1;
    }
    check(!wrong, "%s of %u bytes %s: core %u's own bit changed %lu times", bits[bit_case].name, size,
          places[bit_place].name, core, wrong);
    barrier_wait(&gate, cores);
}

// Tokens circulate through one cell by XCHG: none may be lost or doubled.
static uint64_t token_sum, token_squares, token_place;
static unsigned token_size;

static void circulate(uint32_t core) {
    static void (*const ops[])(void*, struct operands*) = {
        [1] = locked_xchg1, [2] = locked_xchg2, [4] = locked_xchg4, [8] = locked_xchg8};
    struct operands operands = {.rcx = core + 2, .flags = 2};
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < rounds; i++) ops[token_size]((void*)token_place, &operands);
    __atomic_add_fetch(&token_sum, operands.rcx, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&token_squares, operands.rcx * operands.rcx, __ATOMIC_SEQ_CST);
    barrier_wait(&gate, cores);
}

static void tokens(void) {
    uint64_t sum = 1, squares = 1;
    for (uint64_t core = 0; core < cores; core++) sum += core + 2, squares += (core + 2) * (core + 2);
    for (token_size = 1; token_size <= 8; token_size *= 2)
        for (unsigned where = 0; where < PLACES; where++) {
            if (token_size == 1 && places[where].crosses) continue;
            uint64_t one = 1, saved = rounds;
            if (places[where].slow) rounds /= 4;
            token_place = place(where, token_size);
            token_sum = token_squares = 0;
            memcpy((void*)token_place, &one, token_size);
            cores_run(circulate, cores);
            uint64_t last = load(token_place, token_size);
            check(token_sum + last == sum && token_squares + last * last == squares,
                  "xchg of %u bytes %s lost or doubled a token", token_size, places[where].name);
            rounds = saved;
        }
}

// CMPXCHG loops of 1..16 bytes; the wide ones keep both halves equal, so that a torn access shows.
static unsigned swap_size;
static uint64_t swap_place, torn;

static void swap(uint32_t core) {
    (void)core;
    static void (*const ops[])(void*, struct operands*) = {
        [1] = locked_cmpxchg1, [2] = locked_cmpxchg2, [4] = locked_cmpxchg4, [8] = locked_cmpxchg8};
    void* cell = (void*)swap_place;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < rounds; i++) {
        struct operands operands = {.flags = 2};
        do {
            if (swap_size == 16) {
                operands.rbx = operands.rcx = operands.rax + 1;
                locked_cmpxchg16b(cell, &operands);
                if (!(operands.flags & FLAG_ZF) && operands.rax != operands.rdx) torn++;
            } else if (swap_size == 7) {  // CMPXCHG8B: EDX:EAX, ECX:EBX
                operands.rbx = operands.rcx = (uint32_t)operands.rax + 1;
                locked_cmpxchg8b(cell, &operands);
                if (!(operands.flags & FLAG_ZF) && (uint32_t)operands.rax != (uint32_t)operands.rdx) torn++;
            } else {
                operands.rcx = operands.rax + 1;
                ops[swap_size](cell, &operands);
            }
        } while (!(operands.flags & FLAG_ZF));
    }
    barrier_wait(&gate, cores);
}

static void swaps(void) {
    static const unsigned sizes[] = {1, 2, 4, 8, 7, 16};
    for (unsigned s = 0; s < 6; s++)
        for (unsigned where = 0; where < PLACES; where++) {
            unsigned bytes = sizes[s] == 7 ? 8 : sizes[s];
            if ((bytes == 1 && places[where].crosses) || (bytes == 16 && where)) continue;
            uint64_t saved = rounds;
            if (places[where].slow) rounds /= 8;
            swap_size = sizes[s];
            swap_place = place(where, bytes);
            memset((void*)swap_place, 0, bytes);
            cores_run(swap, cores);
            uint64_t count = rounds * cores, got = load(swap_place, bytes > 8 ? 8 : bytes), high = 0;
            if (bytes == 16) high = load(swap_place + 8, 8);
            if (sizes[s] == 7) high = got >> 32, got &= 0xffffffff;
            uint64_t mask = bytes >= 4 ? ~0ull : (1ull << 8 * bytes) - 1;
            check(got == (count & mask), "cmpxchg of %u bytes %s: %lu, expected %lu", bytes,
                  places[where].name, got, count & mask);
            check(bytes < 8 || sizes[s] == 8 || high == got, "cmpxchg of %u bytes %s: halves %lu and %lu",
                  bytes, places[where].name, got, high);
            rounds = saved;
        }
    check(!torn, "%lu torn values seen by cmpxchg8b/16b", torn);
}

// Even cores add to all 8 bytes at once, odd ones to the lower or upper 4: the two kinds must exclude each
// other even where the wide one crosses a page and the narrow one does not.
static uint64_t overlap_place;

static void overlap(uint32_t core) {
    uint64_t at = overlap_place;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < rounds; i++) {
        if (core % 2 == 0)
            __asm__ volatile("lock addq %1, (%0)" ::"r"(at), "r"(0x100000001ull) : "memory", "cc");
        else
            __asm__ volatile("lock incl (%0)" ::"r"(at + (core & 2) * 2) : "memory", "cc");
    }
    barrier_wait(&gate, cores);
}

static void overlaps(void) {
    for (unsigned where = 0; where < PLACES; where++) {
        uint64_t saved = rounds, low = 0, high = 0;
        if (places[where].slow) rounds /= 4;
        overlap_place = place(where, 8);
        memset((void*)overlap_place, 0, 8);
        cores_run(overlap, cores);
        for (uint32_t core = 0; core < cores; core++) {
            if (core % 2 == 0 || !(core & 2)) low += rounds;
            if (core % 2 == 0 || core & 2) high += rounds;
        }
        check(load(overlap_place, 4) == low && load(overlap_place + 4, 4) == high,
              "overlapping 8- and 4-byte adds %s: %lu %lu, expected %lu %lu", places[where].name,
              load(overlap_place, 4), load(overlap_place + 4, 4), low, high);
        rounds = saved;
    }
}

// XCHG as a lock, BTS as a lock: a plain counter inside must be exact; outside it must lose updates.
static volatile uint64_t counter;
static volatile uint32_t lock_word;
static unsigned lock_kind;

static void locked_counter(uint32_t core) {
    (void)core;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < rounds; i++) {
        for (;;) {
            uint32_t one = 1;
            bool taken;
            if (lock_kind == 0) {
                __asm__ volatile("xchgl %0, %1" : "+r"(one), "+m"(lock_word)::"memory");
                taken = !one;
            } else {
                __asm__ volatile("lock btsl $7, %1" : "=@ccc"(taken), "+m"(lock_word)::"memory");
                taken = !taken;
            }
            if (taken) break;
            pause();
        }
        counter = counter + 1;
        lock_word = 0;
    }
    barrier_wait(&gate, cores);
}

static uint64_t steps;

static void unlocked_counter(uint32_t core) {
    (void)core;
    barrier_wait(&gate, cores);
    for (uint64_t i = 0; i < steps; i++) __asm__ volatile("incq %0" : "+m"(counter)::"cc");
    barrier_wait(&gate, cores);
}

// Without LOCK increments must be lost, or the exact totals above would say nothing. The runs get longer
// until the cores do meet: a busy host may run them one after the other.
static void control(void) {
    uint64_t lost = 0, all = 0;
    for (steps = 20000; steps < 40000000 && (!lost || all < 100000); steps += steps / 2) {
        counter = 0;
        cores_run(unlocked_counter, cores);
        lost += steps * cores - counter;
        all += steps * cores;
        if (cores == 1 && all > 1000000) break;
    }
    print("control lost=%lu of=%lu\n", lost, all);
    check(cores > 1 ? lost > 0 : lost == 0, "the unlocked control lost %lu of its increments", lost);
}

void guest_main(void) {
    cores_start();
    cores = cores_running;
    rounds = option_number("rounds", 400);
    for (unsigned page = 0; page < 2; page++)
        page_map(WINDOW + page * 0x1000, page ? FAR_FRAME : FRAMES + 0x4000, PAGE_PRESENT | PAGE_WRITE);
    print("atomics cores=%u rounds=%lu instructions=%lu\n", cores, rounds, (uint64_t)INSTRUCTIONS);
    results();
    bit_strings();
    int vector = trap_catch(misaligned_16, (void*)(FRAMES + 0x248));
    check(vector == 13 && this_core()->trap.error == 0, "misaligned cmpxchg16b: vector %d, expected 13",
          vector);
    vector = trap_catch(lock_on_register, NULL);
    check(vector == 6, "lock add with a register destination: vector %d, expected 6", vector);
    print("results done failures=%u\n", failures);
    totals();
    print("totals done failures=%u\n", failures);
    for (bit_case = 0; bit_case < sizeof bits / sizeof bits[0]; bit_case++)
        for (bit_place = 0; bit_place < PLACES; bit_place++)
            if (bits[bit_case].size > 1 || !places[bit_place].crosses) {
                memset((void*)place(bit_place, bits[bit_case].size), 0, bits[bit_case].size);
                cores_run(flip, cores);
            }
    print("bits done failures=%u\n", failures);
    tokens();
    swaps();
    overlaps();
    print("words done failures=%u\n", failures);
    rounds *= 10;
    for (lock_kind = 0; lock_kind < 2; lock_kind++) {
        counter = 0;
        cores_run(locked_counter, cores);
        check(counter == rounds * cores, "counter behind a %s lock: %lu, expected %lu",
              lock_kind ? "bts" : "xchg", counter, rounds * cores);
    }
    control();
    finish();
}
