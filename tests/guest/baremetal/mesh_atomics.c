// SPDX-License-Identifier: GPL-2.0-or-later
// Atomics on pages that all hosts share: every total exact, and plain increments beside them that are lost.
//
// Options: cpus=N, hosts=N, mib=N (mesh.h); ms=N for each case (default 15); rounds=N at most in a case
// (default 4000); only=N runs one operation.
#include "mesh.h"

#define WINDOW 0x8000000000ull

enum place { ALIGNED, MISALIGNED, LINE_CROSSING, PAGE_CROSSING, TWO_HOMES, PLACES };
static const char* const place_names[] = {"aligned", "misaligned", "line-crossing", "page-crossing",
                                          "two-homes"};

// Where the operand begins. The window's pages lie in frames of the first and of the last host.
static uint64_t address_of(enum place place, uint32_t home, unsigned size) {
    switch (place) {
        case ALIGNED:
            return mesh_shared(home, 0) + 0x240;
        case MISALIGNED:
            return mesh_shared(home, 0) + 0x283;
        case LINE_CROSSING:
            return mesh_shared(home, 0) + 0x340 - size / 2;
        case PAGE_CROSSING:
            return mesh_shared(home, 2) - size / 2;
        default:
            return WINDOW + PAGE - size / 2;
    }
}

struct work {
    uint64_t done, sum, wrong;
};

static uint64_t target, rounds, end;
static struct barrier gate;

// --- operations: each adds one to the operand, and may say what it saw

static uint64_t xadd(uint64_t at, unsigned size) {
    uint64_t one = 1;
    switch (size) {
        case 1:
            __asm__ volatile("lock xaddb %b0, (%1)" : "+q"(one) : "r"(at) : "memory", "cc");
            return one & 0xff;
        case 2:
            __asm__ volatile("lock xaddw %w0, (%1)" : "+r"(one) : "r"(at) : "memory", "cc");
            return one & 0xffff;
        case 4:
            __asm__ volatile("lock xaddl %k0, (%1)" : "+r"(one) : "r"(at) : "memory", "cc");
            return one & 0xffffffff;
        default:
            __asm__ volatile("lock xaddq %0, (%1)" : "+r"(one) : "r"(at) : "memory", "cc");
            return one;
    }
}

static uint64_t add(uint64_t at, unsigned size) {
    uint64_t one = 1;
    if (size == 1) __asm__ volatile("lock addb %b0, (%1)" ::"q"(one), "r"(at) : "memory", "cc");
    if (size == 2) __asm__ volatile("lock addw $1, (%0)" ::"r"(at) : "memory", "cc");
    if (size == 4) __asm__ volatile("lock incl (%0)" ::"r"(at) : "memory", "cc");
    if (size == 8) __asm__ volatile("lock subq $-1, (%0)" ::"r"(at) : "memory", "cc");
    return 0;
}

static uint64_t swap(uint64_t at, unsigned size) {
    uint64_t seen = 0, low, high, spare;
    bool taken;
    do {
        switch (size) {
            case 1:
                seen = *(volatile uint8_t*)at;
                __asm__ volatile("lock cmpxchgb %b3, (%2)"
                                 : "+a"(seen), "=@ccz"(taken)
                                 : "r"(at), "q"(seen + 1)
                                 : "memory");
                break;
            case 2:
                seen = *(volatile uint16_t*)at;
                __asm__ volatile("lock cmpxchgw %w3, (%2)"
                                 : "+a"(seen), "=@ccz"(taken)
                                 : "r"(at), "r"(seen + 1)
                                 : "memory");
                break;
            case 4:
                seen = *(volatile uint32_t*)at;
                __asm__ volatile("lock cmpxchgl %k3, (%2)"
                                 : "+a"(seen), "=@ccz"(taken)
                                 : "r"(at), "r"(seen + 1)
                                 : "memory");
                break;
            case 8:
                seen = *(volatile uint64_t*)at;
                __asm__ volatile("lock cmpxchgq %3, (%2)"
                                 : "+a"(seen), "=@ccz"(taken)
                                 : "r"(at), "r"(seen + 1)
                                 : "memory");
                break;
            default:
                // The upper half follows the lower: a torn pair shows.
                low = *(volatile uint64_t*)at;
                high = *(volatile uint64_t*)(at + 8);
                __asm__ volatile("lock cmpxchg16b (%3)"
                                 : "+a"(low), "+d"(high), "=@ccz"(taken), "+r"(at)
                                 : "b"(low + 1), "c"(~(low + 1))
                                 : "memory");
                spare = ~low;
                if (!taken && high != spare) return 1;
        }
        if (!taken) pause();
    } while (!taken);
    return 0;
}

// A lock taken by XCHG or by BTS in the operand; behind it a plain counter, in another page, counts.
static uint64_t counter_at;

static uint64_t by_exchange(uint64_t at, unsigned size) {
    uint64_t one;
    do {
        one = 1;
        if (size == 1) __asm__ volatile("xchgb %b0, (%1)" : "+q"(one) : "r"(at) : "memory");
        if (size == 2) __asm__ volatile("xchgw %w0, (%1)" : "+r"(one) : "r"(at) : "memory");
        if (size == 4) __asm__ volatile("xchgl %k0, (%1)" : "+r"(one) : "r"(at) : "memory");
        if (size == 8) __asm__ volatile("xchgq %0, (%1)" : "+r"(one) : "r"(at) : "memory");
        if (one) pause();
    } while (one);
    *(volatile uint64_t*)counter_at = *(volatile uint64_t*)counter_at + 1;
    __asm__ volatile("" ::: "memory");
    *(volatile uint8_t*)at = 0;  // the other bytes are zero
    return 0;
}

static uint64_t by_bit(uint64_t at, unsigned size) {
    bool was;
    do {
        if (size == 2) __asm__ volatile("lock btsw $3, (%1)" : "=@ccc"(was) : "r"(at) : "memory");
        if (size == 4) __asm__ volatile("lock btsl $3, (%1)" : "=@ccc"(was) : "r"(at) : "memory");
        if (size == 8) __asm__ volatile("lock btsq $3, (%1)" : "=@ccc"(was) : "r"(at) : "memory");
        if (was) pause();
    } while (was);
    *(volatile uint64_t*)counter_at = *(volatile uint64_t*)counter_at + 1;
    if (size == 2) __asm__ volatile("lock btrw $3, (%0)" ::"r"(at) : "memory", "cc");
    if (size == 4) __asm__ volatile("lock andl $~8, (%0)" ::"r"(at) : "memory", "cc");
    if (size == 8) __asm__ volatile("lock xorq $8, (%0)" ::"r"(at) : "memory", "cc");
    return 0;
}

static uint64_t plain(uint64_t at, unsigned size) {
    (void)size;
    __asm__ volatile("incq (%0)" ::"r"(at) : "memory", "cc");
    return 0;
}

static const struct operation {
    const char* name;
    uint64_t (*apply)(uint64_t at, unsigned size);
    unsigned sizes;  // a bit for each size
    bool counts_behind, exact;
} operations[] = {
    {"xadd", xadd, 1 | 2 | 4 | 8, false, true},         {"add", add, 1 | 2 | 4 | 8, false, true},
    {"cmpxchg", swap, 1 | 2 | 4 | 8 | 16, false, true}, {"xchg-lock", by_exchange, 1 | 2 | 4 | 8, true, true},
    {"bit-lock", by_bit, 2 | 4 | 8, true, true},        {"plain", plain, 8, false, false},
};
#define OPERATIONS (sizeof operations / sizeof operations[0])
static const struct operation* operation;
static unsigned operand_size;

static void hammer(uint32_t core) {
    struct work mine = {0, 0, 0};
    uint64_t at = target, stop, most = rounds;
    unsigned size = operand_size;
    const struct operation* it = operation;
    barrier_wait(&gate, cores_running);
    stop = end;
    do {
        uint64_t seen = it->apply(at, size);
        mine.done++;
        mine.sum += seen;
    } while (mine.done < most && read_tsc() < stop);
    *(struct work*)mesh_own(core) = mine;
    barrier_wait(&gate, cores_running);
}

static uint64_t load(uint64_t at, unsigned size) {
    uint64_t value = 0;
    memcpy(&value, (void*)at, size > 8 ? 8 : size);
    return value;
}

static uint64_t done_by_host[MAX_HOSTS], lost, plain_done;

static void one_case(const struct operation* it, unsigned size, enum place place, uint32_t home) {
    operation = it;
    operand_size = size;
    target = address_of(place, home, size);
    counter_at = mesh_shared(home + 1, 4) + 0x100;
    memset((void*)target, 0, size);
    if (size == 16) memset((void*)(target + 8), 0xff, 8);
    memset((void*)counter_at, 0, 8);
    // A plain increment needs time until it meets another: that of the window, not so many rounds.
    rounds = option_number("rounds", 4000) * (it->exact ? 1 : 1000);
    end = read_tsc() + tsc_hz() / 1000 * option_number("ms", 15) * (it->exact ? 1 : 10);
    cores_run(hammer, cores_running);
    uint64_t all = 0, sum = 0;
    for (uint32_t core = 0; core < cores_running; core++) {
        const struct work* work = (const struct work*)mesh_own(core);
        all += work->done;
        sum += work->sum;
        done_by_host[mesh_host_of[core]] += work->done;
    }
    uint64_t mask = size >= 8 ? ~0ull : (1ull << 8 * size) - 1;
    uint64_t got = load(it->counts_behind ? counter_at : target, it->counts_behind ? 8 : size);
    uint64_t wanted = it->counts_behind ? all : all & mask;
    if (!it->exact) {
        plain_done += all;
        lost += all - got;
        return;
    }
    check(got == wanted, "%s of %u bytes %s, home %u: %lu of %lu", it->name, size, place_names[place], home,
          got, wanted);
    // An exchange-and-add gives each number out once.
    if (it->apply == xadd && size == 8)
        check(sum == all * (all - 1) / 2, "xadd of 8 bytes %s, home %u: tickets sum to %lu, expected %lu",
              place_names[place], home, sum, all * (all - 1) / 2);
    if (it->apply == swap && size == 16)
        check(!sum && load(target + 8, 8) == ~got, "cmpxchg16b: %lu torn pairs, halves %lx %lx", sum, got,
              load(target + 8, 8));
}

// Every core counts in a word of its own, without LOCK, all words in one page: none may be lost.
static void false_sharing(uint32_t core) {
    volatile uint64_t* mine = (volatile uint64_t*)(target + core * 8);
    uint64_t done = 0, stop;
    barrier_wait(&gate, cores_running);
    stop = end;
    do {
        *mine = *mine + 1;
        done++;
    } while (done < rounds && read_tsc() < stop);
    check(*mine == done, "core %u counted to %lu in a page it shares, and finds %lu", core, done, *mine);
    barrier_wait(&gate, cores_running);
}

void guest_main(void) {
    cores_start();
    mesh_begin();
    page_map(WINDOW, mesh_shared(0, 7), PAGE_PRESENT | PAGE_WRITE);
    page_map(WINDOW + PAGE, mesh_shared(mesh_hosts - 1, 11), PAGE_PRESENT | PAGE_WRITE);
    uint32_t home = 0;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        if (option_number("only", i) != i) continue;
        uint64_t from = read_tsc();
        for (unsigned size = 1; size <= 16; size *= 2)
            for (enum place place = ALIGNED; place < PLACES; place++) {
                if (!(operations[i].sizes & size) || (size == 1 && place > MISALIGNED)) continue;
                if ((size == 16 || !operations[i].exact) && place != ALIGNED) continue;
                // A lock's release is a plain store of its first byte: it crosses nothing.
                one_case(&operations[i], size, place, home++ % mesh_hosts);
                // On a crowded computer a core may not run at all within one window.
                for (unsigned more = 0; !operations[i].exact && !lost && more < 30; more++)
                    one_case(&operations[i], size, place, home++ % mesh_hosts);
            }
        print("operation %s us=%lu failures=%u\n", operations[i].name,
              (read_tsc() - from) / (tsc_hz() / 1000000), failures);
    }
    for (uint32_t turn = 0; turn < mesh_hosts; turn++) {
        target = mesh_shared(turn, 5);
        memset((void*)target, 0, PAGE);
        rounds = ~0ull;
        end = read_tsc() + tsc_hz() / 1000 * option_number("ms", 15) * 2;
        cores_run(false_sharing, cores_running);
    }
    for (uint32_t host = 0; host < mesh_hosts; host++)
        print("host_%u_operations=%lu\n", host, done_by_host[host]);
    print("control lost=%lu of=%lu\n", lost, plain_done);
    finish();
}
