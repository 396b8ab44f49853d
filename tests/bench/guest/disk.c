// SPDX-License-Identifier: GPL-2.0-or-later
// Reads and writes a disk as a guest's programs do, past the page cache, and prints what one operation costs.
//
//     disk DEVICE OPERATIONS THREADS
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { kBlock = 4096, kPiece = 1 << 20, kSpan = 48 << 20, kMostThreads = 64 };

static const char* device;
static long operations;

struct work {
    pthread_t thread;
    int write, sequential;
    unsigned seed;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void* run(void* argument) {
    struct work* work = argument;
    const size_t size = work->sequential ? kPiece : kBlock;
    const int fd = open(device, O_RDWR | O_DIRECT);
    void* buffer;
    if (fd < 0 || posix_memalign(&buffer, 4096, size) != 0) exit(1);
    memset(buffer, work->seed, size);
    const long count = work->sequential ? kSpan / kPiece : operations;
    for (long i = 0; i < count; ++i) {
        const off_t at =
            work->sequential ? i * kPiece : (off_t)(rand_r(&work->seed) % (kSpan / kBlock)) * kBlock;
        const ssize_t done = work->write ? pwrite(fd, buffer, size, at) : pread(fd, buffer, size, at);
        if (done != (ssize_t)size) exit(1);
    }
    free(buffer);
    close(fd);
    return NULL;
}

/// The best round, in microseconds for each operation of all threads. A sequential round is some 30 ms, which
/// one time slice of another process on the host spoils, so there are more of those.
static void measure(const char* name, int write, int sequential, int threads) {
    double best = 1e9;
    const int rounds = sequential ? 12 : 3;
    for (int round = 0; round < rounds; ++round) {
        struct work works[kMostThreads];
        const double begin = now();
        for (int i = 0; i < threads; ++i) {
            works[i] = (struct work){.write = write, .sequential = sequential, .seed = 17 * round + i + 1};
            pthread_create(&works[i].thread, NULL, run, &works[i]);
        }
        for (int i = 0; i < threads; ++i) pthread_join(works[i].thread, NULL);
        const long count = (sequential ? kSpan / kPiece : operations) * threads;
        const double each = (now() - begin) / count;
        if (each < best) best = each;
    }
    printf("%s_us=%.2f\n", name, best * 1e6);
    fflush(stdout);
}

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    device = argv[1];
    operations = atol(argv[2]);
    const int threads = atoi(argv[3]);
    if (threads < 1 || threads > kMostThreads) return 2;
    measure("random_write_4k", 1, 0, 1);
    measure("random_read_4k", 0, 0, 1);
    measure("sequential_write_1m", 1, 1, 1);
    measure("sequential_read_1m", 0, 1, 1);
    if (threads > 1) {
        measure("parallel_write_4k", 1, 0, threads);
        measure("parallel_read_4k", 0, 0, threads);
    }
    return 0;
}
