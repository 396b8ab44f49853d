// SPDX-License-Identifier: GPL-2.0-or-later
// The floor under a question between two hosts: a blocking TCP round trip of the same size.
//
//     tcp_floor serve PORT REQUEST REPLY            answers one connection; says "ready" first
//     tcp_floor ask ADDRESS PORT REQUEST REPLY COUNT     prints median_ns, min_ns, mean_ns, p90_ns
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[65536];

static int pass(int peer, size_t bytes, int sending) {
    for (size_t done = 0; done < bytes;) {
        ssize_t now =
            sending ? write(peer, buffer + done, bytes - done) : read(peer, buffer + done, bytes - done);
        if (now <= 0) return 0;
        done += (size_t)now;
    }
    return 1;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int by_size(const void* left, const void* right) {
    uint64_t a = *(const uint64_t*)left, b = *(const uint64_t*)right;
    return (a > b) - (a < b);
}

int main(int count, char** words) {
    int one = 1;
    if (count == 5 && !strcmp(words[1], "serve")) {
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[2]))};
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listener, (struct sockaddr*)&here, sizeof here) || listen(listener, 1))
            err(1, "port %s", words[2]);
        puts("ready");
        fflush(stdout);
        int peer = accept(listener, NULL, NULL);
        setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (pass(peer, (size_t)atoi(words[3]), 0) && pass(peer, (size_t)atoi(words[4]), 1)) continue;
        return 0;
    }
    if (count != 7 || strcmp(words[1], "ask")) errx(2, "usage: see the source");
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[3]))};
    inet_pton(AF_INET, words[2], &there.sin_addr);
    int peer = socket(AF_INET, SOCK_STREAM, 0), rounds = atoi(words[6]);
    if (connect(peer, (struct sockaddr*)&there, sizeof there)) err(1, "%s", words[2]);
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint64_t* took = calloc((size_t)rounds, sizeof *took);
    uint64_t sum = 0;
    for (int i = -20; i < rounds; i++) {
        uint64_t from = now_ns();
        if (!pass(peer, (size_t)atoi(words[4]), 1) || !pass(peer, (size_t)atoi(words[5]), 0))
            errx(1, "cut off");
        if (i >= 0) sum += took[i] = now_ns() - from;
    }
    qsort(took, (size_t)rounds, sizeof *took, by_size);
    printf("median_ns=%lu\nmin_ns=%lu\nmean_ns=%lu\np90_ns=%lu\n", took[rounds / 2], took[0],
           sum / (unsigned)rounds, took[rounds * 9 / 10]);
    return 0;
}
