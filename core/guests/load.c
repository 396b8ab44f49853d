// SPDX-License-Identifier: GPL-2.0-or-later
// Loads for a Linux guest: what cores do to each other through locks, pages, pipes and processes.
//
//     load lock kind=ticket threads=4 seconds=1
//
// prints name=number lines, of the guest's own clock. A static program of x86-64 system calls alone (Linux,
// arch/x86/entry/syscalls/syscall_64.tbl), so that it runs in any Linux guest, without a C library.

#include "load.h"

long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

// --- text -----------------------------------------------------------------------------------------------

static u64 length(const char* text) {
    u64 count = 0;
    while (text[count]) count++;
    return count;
}

static void say(const char* text) { call(SYS_WRITE, 1, (long)text, (long)length(text), 0, 0, 0); }

static void say_number(const char* name, u64 value) {
    char digits[24];
    char* at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = (char)('0' + value % 10);
    while (value /= 10);
    say(name);
    say("=");
    say(at);
    say("\n");
}

__attribute__((noreturn)) static void leave(int status) {
    for (;;) call(SYS_EXIT_GROUP, status, 0, 0, 0, 0, 0);
}

void fail(const char* why) {
    say("load: ");
    say(why);
    say("\n");
    leave(1);
}

int same(const char* a, const char* b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static char** words;  // of the command line, after the load's name

const char* option(const char* name, const char* otherwise) {
    for (char** word = words; *word; word++) {
        const char *a = *word, *b = name;
        while (*b && *a == *b) a++, b++;
        if (!*b && *a == '=') return a + 1;
    }
    return otherwise;
}

u64 number(const char* name, u64 otherwise) {
    const char* text = option(name, 0);
    u64 value = 0;
    if (!text) return otherwise;
    if (!*text) fail("a number is missing");
    for (; *text; text++) {
        if (*text < '0' || *text > '9') fail("that is no number");
        value = value * 10 + (u64)(*text - '0');
    }
    return value;
}

// --- time, threads --------------------------------------------------------------------------------------

static u64 now_ns(void) {
    long time[2];
    call(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, (long)time, 0, 0, 0, 0);
    return (u64)time[0] * 1000000000u + (u64)time[1];
}

static void sleep_ms(u64 ms) {
    long time[2] = {(long)(ms / 1000), (long)(ms % 1000 * 1000000)};
    call(SYS_NANOSLEEP, (long)time, 0, 0, 0, 0, 0);
}

char* memory(u64 bytes) {
    long address = call(SYS_MMAP, 0, (long)bytes, 3, 0x22, -1, 0);  // read and write; private, anonymous
    if (address < 0 && address > -PAGE) fail("no memory");
    return (char*)address;
}

// Those of the process before a thread is pinned: a pinned thread has one.
static u64 allowed[16], process_cpus;

u64 cpus(void) { return process_cpus; }

static void count_cpus(void) {
    call(SYS_SCHED_GETAFFINITY, 0, sizeof allowed, (long)allowed, 0, 0, 0);
    for (int word = 0; word < 16; word++)
        for (u64 rest = allowed[word]; rest; rest &= rest - 1) process_cpus++;
}

void pin(u64 which) {
    u64 mask[16] = {0}, left = which % process_cpus;
    for (int word = 0; word < 16; word++) {
        for (u64 rest = allowed[word]; rest; rest &= rest - 1) {
            if (left-- != 0) continue;
            mask[word] = rest & -rest;
            if (call(SYS_SCHED_SETAFFINITY, 0, sizeof mask, (long)mask, 0, 0, 0) < 0) fail("no such CPU");
            return;
        }
    }
}

static struct worker workers[MAX_THREADS];
static struct { u32 value; } __attribute__((aligned(PAGE))) started, stopped, finished;
static void (*body)(struct worker*);

int stop_asked(void) { return (int)__atomic_load_n(&stopped.value, __ATOMIC_RELAXED); }

__attribute__((noreturn, used)) static void thread_main(struct worker* self) {
    pin(self->index);
    __atomic_add_fetch(&started.value, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&stopped.value, __ATOMIC_ACQUIRE) && started.value != ~0u)
        call(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0);
    body(self);
    __atomic_add_fetch(&finished.value, 1, __ATOMIC_SEQ_CST);
    for (;;) call(SYS_EXIT, 0, 0, 0, 0, 0, 0);
}

// clone(2) returns in the child on a new stack: from there on in thread_main, with its argument in the stack.
__asm__(
    "start_thread:\n"  // (flags, stack)
    "  mov $56, %eax\n"
    "  xor %edx, %edx\n  xor %r10d, %r10d\n  xor %r8d, %r8d\n"
    "  syscall\n"
    "  test %rax, %rax\n  jz 1f\n  ret\n"
    "1: pop %rdi\n  xor %ebp, %ebp\n  call thread_main\n");
long start_thread(long flags, u64* stack);

void run(u64 count, void (*what)(struct worker*), const char* rate) {
    u64 seconds_ms = number("milliseconds", number("seconds", 1) * 1000);
    if (count < 1 || count > MAX_THREADS) fail("threads is 1 to 255");
    body = what;
    for (u64 index = 0; index < count; index++) {
        u64* stack = (u64*)(memory(STACK) + STACK) - 2;
        workers[index].index = index;
        *stack = (u64)&workers[index];
        if (start_thread(THREAD_FLAGS, stack) < 0) fail("no thread");
    }
    while (__atomic_load_n(&started.value, __ATOMIC_ACQUIRE) < count) sleep_ms(1);
    u64 begin = now_ns();
    __atomic_store_n(&started.value, ~0u, __ATOMIC_SEQ_CST);
    sleep_ms(seconds_ms);
    __atomic_store_n(&stopped.value, 1, __ATOMIC_SEQ_CST);
    u64 elapsed = now_ns() - begin;
    while (__atomic_load_n(&finished.value, __ATOMIC_ACQUIRE) < count) sleep_ms(1);

    u64 all = 0, least = ~0ul, most = 0;
    for (u64 index = 0; index < count; index++) {
        u64 own = workers[index].operations;
        all += own;
        if (own < least) least = own;
        if (own > most) most = own;
    }
    say_number("threads", count);
    say_number("operations", all);
    say_number("nanoseconds", elapsed);
    say_number(rate, elapsed < 1000 ? 0 : all * 1000000u / (elapsed / 1000));
    say_number("fairness_percent", most ? least * 100 / most : 0);
}

static void relax(void) { __asm__ volatile("pause" ::: "memory"); }

// --- lock: one counter under one lock --------------------------------------------------------------------

struct mcs {
    struct mcs* next;
    u32 waits;
} __attribute__((aligned(64)));

static struct {
    u32 word, turn;
    struct mcs* tail;
} __attribute__((aligned(PAGE))) lock;
static struct { u64 counter; } __attribute__((aligned(PAGE))) guarded;
static struct mcs queue_nodes[MAX_THREADS] __attribute__((aligned(PAGE)));
static u64 hold;      // turns of a loop while the lock is held
static u64 patience;  // turns of waiting, after which the CPU is given away; 0: never

static void wait_turn(u64* waited) {
    relax();
    if (patience && ++*waited % patience == 0) call(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0);
}

static void hold_it(void) {
    guarded.counter++;
    for (u64 turn = 0; turn < hold; turn++) relax();
}

static void with_tas(struct worker* self) {
    while (!stop_asked()) {
        u64 waited = 0;
        while (__atomic_exchange_n(&lock.word, 1, __ATOMIC_ACQUIRE)) wait_turn(&waited);
        hold_it();
        __atomic_store_n(&lock.word, 0, __ATOMIC_RELEASE);
        self->operations++;
    }
}

static void with_ticket(struct worker* self) {
    while (!stop_asked()) {
        u64 waited = 0;
        u32 mine = __atomic_fetch_add(&lock.word, 1, __ATOMIC_RELAXED);
        while (__atomic_load_n(&lock.turn, __ATOMIC_ACQUIRE) != mine) wait_turn(&waited);
        hold_it();
        __atomic_store_n(&lock.turn, mine + 1, __ATOMIC_RELEASE);
        self->operations++;
    }
}

static void with_mcs(struct worker* self) {
    struct mcs* node = &queue_nodes[self->index];
    while (!stop_asked()) {
        u64 waited = 0;
        node->next = 0;
        node->waits = 1;
        struct mcs* before = __atomic_exchange_n(&lock.tail, node, __ATOMIC_ACQ_REL);
        if (before) {
            __atomic_store_n(&before->next, node, __ATOMIC_RELEASE);
            while (__atomic_load_n(&node->waits, __ATOMIC_ACQUIRE)) wait_turn(&waited);
        }
        hold_it();
        struct mcs* expected = node;
        if (__atomic_load_n(&node->next, __ATOMIC_ACQUIRE) ||
            !__atomic_compare_exchange_n(&lock.tail, &expected, 0, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
            struct mcs* next;
            while (!(next = __atomic_load_n(&node->next, __ATOMIC_ACQUIRE))) wait_turn(&waited);
            __atomic_store_n(&next->waits, 0, __ATOMIC_RELEASE);
        }
        self->operations++;
    }
}

// 0 free, 1 held, 2 held and waited for (futex(2)).
static void with_futex(struct worker* self) {
    while (!stop_asked()) {
        u32 seen = 0;
        if (!__atomic_compare_exchange_n(&lock.word, &seen, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            while (__atomic_exchange_n(&lock.word, 2, __ATOMIC_ACQUIRE))
                call(SYS_FUTEX, (long)&lock.word, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0);
        hold_it();
        if (__atomic_exchange_n(&lock.word, 0, __ATOMIC_RELEASE) == 2)
            call(SYS_FUTEX, (long)&lock.word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        self->operations++;
    }
}

static void load_lock(void) {
    const char* kind = option("kind", "ticket");
    u64 all = 0, count = number("threads", cpus());
    hold = number("hold", 20);
    patience = number("patience", 0);
    if (same(kind, "tas"))
        run(count, with_tas, "acquisitions_per_second");
    else if (same(kind, "ticket"))
        run(count, with_ticket, "acquisitions_per_second");
    else if (same(kind, "mcs"))
        run(count, with_mcs, "acquisitions_per_second");
    else if (same(kind, "futex"))
        run(count, with_futex, "acquisitions_per_second");
    else
        fail("kind is tas, ticket, mcs or futex");
    for (u64 index = 0; index < count; index++) all += workers[index].operations;
    if (all != guarded.counter) fail("an increment under the lock was lost");
}

// --- share: which core writes what of which page ----------------------------------------------------------

static u64 shared[MAX_THREADS][PAGE / sizeof(u64)] __attribute__((aligned(PAGE)));

static void share_private(struct worker* self) {
    volatile u64* own = shared[self->index];
    while (!stop_asked()) {
        for (int turn = 0; turn < 64; turn++) ++*own;
        self->operations += 64;
    }
}

// The words of one page, one a thread: no datum is shared, and the page is.
static void share_false(struct worker* self) {
    volatile u64* own = &shared[0][self->index];
    while (!stop_asked()) {
        for (int turn = 0; turn < 64; turn++) ++*own;
        self->operations += 64;
    }
}

static void share_true(struct worker* self) {
    while (!stop_asked()) {
        for (int turn = 0; turn < 64; turn++) __atomic_add_fetch(&shared[0][0], 1, __ATOMIC_SEQ_CST);
        self->operations += 64;
    }
}

static void share_read(struct worker* self) {
    volatile u64* all = shared[0];
    while (!stop_asked()) {
        for (int turn = 0; turn < 64; turn++) self->scratch += all[turn];
        self->operations += 64;
    }
}

// One thread writes a page, all others read it.
static void share_produce(struct worker* self) {
    if (self->index == 0)
        share_private(self);
    else
        share_read(self);
}

static void load_share(void) {
    const char* pattern = option("pattern", "false");
    u64 count = number("threads", cpus());
    if (same(pattern, "private"))
        run(count, share_private, "operations_per_second");
    else if (same(pattern, "false"))
        run(count, share_false, "operations_per_second");
    else if (same(pattern, "true"))
        run(count, share_true, "operations_per_second");
    else if (same(pattern, "read"))
        run(count, share_read, "operations_per_second");
    else if (same(pattern, "produce"))
        run(count, share_produce, "operations_per_second");
    else
        fail("pattern is private, false, true, read or produce");
}

// --- fork: processes made and ended on each CPU ------------------------------------------------------------

static void fork_and_wait(struct worker* self) {
    while (!stop_asked()) {
        long child = call(SYS_CLONE, SIGCHLD, 0, 0, 0, 0, 0);
        if (child == 0)
            for (;;) call(SYS_EXIT, 0, 0, 0, 0, 0, 0);
        if (child < 0) fail("no process");
        call(SYS_WAIT4, child, 0, 0, 0, 0, 0);
        self->operations++;
    }
}

static void load_fork(void) { run(number("threads", cpus()), fork_and_wait, "forks_per_second"); }

// --- loop: arithmetic alone -------------------------------------------------------------------------------

static void count_loop(struct worker* self) {
    u64 value = self->index + 1;
    while (!stop_asked()) {
        for (int turn = 0; turn < 1000; turn++) value = value * 6364136223846793005u + 1442695040888963407u;
        self->operations += 1000;
    }
    self->scratch = value;
}

static void load_loop(void) { run(number("threads", cpus()), count_loop, "operations_per_second"); }

__attribute__((noreturn, used)) static void load_main(u64* stack) {
    u64 count = stack[0];
    char** arguments = (char**)(stack + 1);
    if (count < 2) fail("load lock|share|memory|pingpong|fork|loop [threads=N] [seconds=N] [NAME=VALUE]");
    words = arguments + 2;
    count_cpus();
    const char* name = arguments[1];
    if (same(name, "lock"))
        load_lock();
    else if (same(name, "share"))
        load_share();
    else if (same(name, "memory"))
        load_memory();
    else if (same(name, "pingpong"))
        load_pingpong();
    else if (same(name, "fork"))
        load_fork();
    else if (same(name, "loop"))
        load_loop();
    else
        fail("no such load");
    leave(0);
}

__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call load_main\n");
