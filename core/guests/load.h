// SPDX-License-Identifier: GPL-2.0-or-later
// What the loads have in common: system calls, the words of the command line, threads. load.c has them.
#pragma once

typedef unsigned long u64;
typedef unsigned int u32;

enum {
    SYS_WRITE = 1,
    SYS_MMAP = 9,
    SYS_MUNMAP = 11,
    SYS_PIPE = 22,
    SYS_READ = 0,
    SYS_SCHED_YIELD = 24,
    SYS_NANOSLEEP = 35,
    SYS_CLONE = 56,
    SYS_EXIT = 60,
    SYS_WAIT4 = 61,
    SYS_SEMGET = 64,
    SYS_SEMOP = 65,
    SYS_SEMCTL = 66,
    SYS_FUTEX = 202,
    SYS_SCHED_SETAFFINITY = 203,
    SYS_SCHED_GETAFFINITY = 204,
    SYS_CLOCK_GETTIME = 228,
    SYS_EXIT_GROUP = 231,
    FUTEX_WAIT_PRIVATE = 128,
    FUTEX_WAKE_PRIVATE = 129,
    CLOCK_MONOTONIC = 1,
    // CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM (clone(2))
    THREAD_FLAGS = 0x50f00,
    SIGCHLD = 17,
    MAX_THREADS = 255,
    PAGE = 4096,
    STACK = 64 << 10,
};

long call(long number, long a, long b, long c, long d, long e, long f);
__attribute__((noreturn)) void fail(const char* why);
int same(const char* a, const char* b);
// The value of NAME=VALUE among the words, or a default one.
const char* option(const char* name, const char* otherwise);
u64 number(const char* name, u64 otherwise);
// Anonymous, all zeros.
char* memory(u64 bytes);
// To the CPU of this number among those that the process may use, in turn.
void pin(u64 which);
u64 cpus(void);

// Each on a page of its own, so that a load measures its own sharing and no other.
struct worker {
    u64 index;
    u64 operations;
    u64 scratch;
} __attribute__((aligned(PAGE)));

int stop_asked(void);
// Runs `what` in threads, one on each CPU in turn, for the time asked for; prints the rate of operations.
void run(u64 count, void (*what)(struct worker*), const char* rate);

void load_memory(void);
void load_pingpong(void);
