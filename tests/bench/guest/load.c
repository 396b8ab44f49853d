// SPDX-License-Identifier: GPL-2.0-or-later
// The loads that the benchmarks time inside a Linux guest. One line a load: name=nanoseconds of one
// operation, the least of many rounds. A round takes a few milliseconds at most, less than a time slice of
// the host, so that even on a busy host some rounds run undisturbed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 100
#define PROGRAM_ROUNDS 5

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static const char* wanted;  // the one load that is run; NULL: all

#define TIME(name, rounds, operations, body)                       \
    do {                                                           \
        if (wanted != NULL && strcmp(wanted, name) != 0) break;    \
        double least = 1e300;                                      \
        for (int round = 0; round < (rounds); round++) {           \
            double start = now();                                  \
            body;                                                  \
            double spent = (now() - start) / (double)(operations); \
            if (spent < least) least = spent;                      \
        }                                                          \
        printf("%s=%.3f\n", name, least);                          \
        fflush(stdout);                                            \
    } while (0)

static void alu(long n) {
    uint64_t a = 1, b = 2;
    __asm__ volatile("1: add %1, %0\n rol $7, %0\n xor %0, %1\n lea 3(%1,%0,2), %1\n dec %2\n jnz 1b"
                     : "+r"(a), "+r"(b), "+r"(n)
                     :
                     : "cc");
}

static void load_store(long n) {
    static uint64_t words[4096];
    for (long i = 0; i < n; i++) {
        volatile uint64_t* w = &words[(i * 67) & 4095];
        *w = *w + (uint64_t)i;
    }
}

static void syscalls(long n) {
    for (long i = 0; i < n; i++) syscall(SYS_getppid);
}

static void run(char** command, int quiet) {
    pid_t child = vfork();
    if (child == 0) {
        if (quiet) {
            int null = open("/dev/null", O_RDWR);
            dup2(null, STDIN_FILENO);
            dup2(null, STDOUT_FILENO);
        }
        execv(command[0], command);
        _exit(127);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) {
        printf("%s failed: %x\n", command[0], status);
        exit(1);
    }
}

static void forks(long n) {
    char* command[] = {"/proc/self/exe", "exit", NULL};
    for (long i = 0; i < n; i++) run(command, 0);
}

#define SSE_LOOP(function, code)                                                            \
    static void function(long n) {                                                          \
        static const double start[2] __attribute__((aligned(16))) = {1.0000001, 0.9999999}; \
        __asm__ volatile(                                                                   \
            "movapd %1, %%xmm0\n movapd %1, %%xmm1\n movapd %1, %%xmm2\n"                   \
            "1: " code "\n dec %0\n jnz 1b"                                                 \
            : "+r"(n)                                                                       \
            : "m"(start)                                                                    \
            : "cc", "xmm0", "xmm1", "xmm2", "rax");                                         \
    }

SSE_LOOP(mul_add_sd, "mulsd %%xmm1, %%xmm0\n addsd %%xmm2, %%xmm0")
SSE_LOOP(div_sd, "divsd %%xmm1, %%xmm0")
SSE_LOOP(sqrt_sd, "sqrtsd %%xmm1, %%xmm0")
SSE_LOOP(mul_add_pd, "mulpd %%xmm1, %%xmm0\n addpd %%xmm2, %%xmm0")
SSE_LOOP(mul_add_ps, "mulps %%xmm1, %%xmm0\n addps %%xmm2, %%xmm0")
SSE_LOOP(convert, "cvttsd2si %%xmm1, %%eax\n cvtsi2sd %%eax, %%xmm0")
SSE_LOOP(compare, "ucomisd %%xmm1, %%xmm0")

static int everything(void) {
    TIME("alu_ns", ROUNDS, 500000, alu(500000));
    TIME("load_store_ns", ROUNDS, 200000, load_store(200000));
    TIME("getppid_ns", ROUNDS, 2000, syscalls(2000));
    TIME("fork_exec_us", ROUNDS, 2000, forks(2));
    TIME("sse_mul_add_sd_ns", ROUNDS, 100000, mul_add_sd(100000));
    TIME("sse_div_sd_ns", ROUNDS, 100000, div_sd(100000));
    TIME("sse_sqrt_sd_ns", ROUNDS, 100000, sqrt_sd(100000));
    TIME("sse_mul_add_pd_ns", ROUNDS, 100000, mul_add_pd(100000));
    TIME("sse_mul_add_ps_ns", ROUNDS, 50000, mul_add_ps(50000));
    TIME("sse_convert_ns", ROUNDS, 100000, convert(100000));
    TIME("sse_compare_ns", ROUNDS, 100000, compare(100000));
    return 0;
}

// Scaling: how much both vCPUs get done in one span of time, beside what one gets done alone. The worker on
// vCPU 0 looks at the clock and at both counts; the best of many windows is undisturbed by the host's others.
#define WINDOW 1e6  // ns
#define WINDOWS 2000
#define GLANCE 3e3  // ns: a window whose end took longer to read was interrupted there, and does not count

struct count {
    volatile uint64_t done;
    char padding[120];
};

static void bind(int vcpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(vcpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        printf("no vCPU %d\n", vcpu);
        exit(1);
    }
}

static double best_rate(struct count* counts, void (*batch)(long), long size) {
    double best = 0, from = now();
    uint64_t base = counts[0].done + counts[1].done;
    for (int window = 0; window < WINDOWS;) {
        batch(size);
        counts[0].done += (uint64_t)size;
        double at = now();
        if (at - from < WINDOW) continue;
        uint64_t sum = counts[0].done + counts[1].done;
        double rate = (double)(sum - base) / (at - from);
        if (now() - at < GLANCE && rate > best) best = rate;
        from = at;
        base = sum;
        window++;
    }
    return best;
}

static void scale(const char* name, void (*batch)(long), long size) {
    struct count* counts =
        mmap(NULL, 2 * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bind(0);
    double alone = best_rate(counts, batch, size);
    pid_t other = fork();
    if (other == 0) {
        bind(1);
        for (;;) {
            batch(size);
            counts[1].done += (uint64_t)size;
        }
    }
    while (counts[1].done == 0) usleep(1000);
    double together = best_rate(counts, batch, size);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    // Nanoseconds for one operation of the machine: less is better, and half with two is ideal.
    printf("alone_%s_ns=%.4f\ntogether_%s_ns=%.4f\n", name, 1 / alone, name, 1 / together);
    fflush(stdout);
}

// load                            every load above
// load one NAME                   one of them
// load time NAME COMMAND [ARG]... NAME_ms of a program with its full path, its output thrown away
// load scale                      independent work on vCPU 0, then on vCPUs 0 and 1
// load alu | load_store | syscalls | forks  without end: for a profiler on the host
// load exit                       what fork_exec starts
int main(int argc, char** argv) {
    const char* what = argc > 1 ? argv[1] : "";
    if (argc == 1) return everything();
    if (strcmp(what, "exit") == 0) return 0;
    if (strcmp(what, "one") == 0 && argc > 2) {
        wanted = argv[2];
        return everything();
    }
    if (strcmp(what, "time") == 0 && argc > 3) {
        char name[64];
        snprintf(name, sizeof name, "%s_ms", argv[2]);
        TIME(name, PROGRAM_ROUNDS, 1000000, run(argv + 3, 1));
        return 0;
    }
    if (strcmp(what, "scale") == 0) {
        scale("alu", alu, 1000);
        scale("load_store", load_store, 500);
        scale("getppid", syscalls, 4);
        return 0;
    }
    while (strcmp(what, "alu") == 0) alu(1000000);
    while (strcmp(what, "load_store") == 0) load_store(1000000);
    while (strcmp(what, "syscalls") == 0) syscalls(1000000);
    while (strcmp(what, "forks") == 0) forks(1000);
    fprintf(stderr, "load: what is '%s'?\n", what);
    return 2;
}
