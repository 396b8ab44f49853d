// SPDX-License-Identifier: GPL-2.0-or-later
// The loads that the benchmarks time inside a Linux guest. One line a load: name=nanoseconds of one
// operation, the least of several rounds, so that a moment's noise on the host does not count.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 5

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define TIME(name, operations, body)                               \
    do {                                                           \
        double least = 1e300;                                      \
        for (int round = 0; round < ROUNDS; round++) {             \
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
    TIME("alu_ns", 20000000, alu(20000000));
    TIME("load_store_ns", 10000000, load_store(10000000));
    TIME("getppid_ns", 200000, syscalls(200000));
    TIME("fork_exec_us", 200000, forks(200));
    TIME("sse_mul_add_sd_ns", 5000000, mul_add_sd(5000000));
    TIME("sse_div_sd_ns", 5000000, div_sd(5000000));
    TIME("sse_sqrt_sd_ns", 5000000, sqrt_sd(5000000));
    TIME("sse_mul_add_pd_ns", 5000000, mul_add_pd(5000000));
    TIME("sse_mul_add_ps_ns", 5000000, mul_add_ps(5000000));
    TIME("sse_convert_ns", 5000000, convert(5000000));
    TIME("sse_compare_ns", 5000000, compare(5000000));
    return 0;
}

// load                            every load above
// load time NAME COMMAND [ARG]... NAME_ms of a program with its full path, its output thrown away
// load alu N                      work of a fixed size: N million rounds of the ALU loop
// load syscalls | load forks      without end: for a profiler on the host
// load exit                       what fork_exec starts
int main(int argc, char** argv) {
    const char* what = argc > 1 ? argv[1] : "";
    if (argc == 1) return everything();
    if (strcmp(what, "exit") == 0) return 0;
    if (strcmp(what, "time") == 0 && argc > 3) {
        char name[64];
        snprintf(name, sizeof name, "%s_ms", argv[2]);
        TIME(name, 1000000, run(argv + 3, 1));
        return 0;
    }
    if (strcmp(what, "alu") == 0 && argc > 2) {
        for (long i = atol(argv[2]); i > 0; i--) alu(1000000);
        return 0;
    }
    while (strcmp(what, "syscalls") == 0) syscalls(1000000);
    while (strcmp(what, "forks") == 0) forks(1000);
    fprintf(stderr, "load: what is '%s'?\n", what);
    return 2;
}
