// SPDX-License-Identifier: GPL-2.0-or-later
// TCP with a server of the host, as a guest's programs have it, and what a MiB and a round trip cost.
//
//     tcp ADDRESS PORT MIB
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kPiece = 64 << 10, kRoundTrips = 1000 };

static char buffer[kPiece];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/// A connection on which the server does what `command` says with `count` bytes or messages.
static int ask(const struct sockaddr_in *server, char command, uint64_t count) {
    const int link = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (link < 0 || connect(link, (const struct sockaddr *)server, sizeof *server) != 0) exit(1);
    setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    char request[9] = {command};
    memcpy(request + 1, &count, sizeof count);
    if (write(link, request, sizeof request) != sizeof request) exit(1);
    return link;
}

static void receive(int link, uint64_t bytes) {
    while (bytes > 0) {
        const ssize_t done = read(link, buffer, sizeof buffer);
        if (done <= 0) exit(1);
        bytes -= done;
    }
}

static void send_all(int link, uint64_t bytes) {
    while (bytes > 0) {
        const ssize_t done = write(link, buffer, bytes < sizeof buffer ? bytes : sizeof buffer);
        if (done <= 0) exit(1);
        bytes -= done;
    }
    receive(link, 1);  // the server has all of it
}

static void turn(int link, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        if (write(link, buffer, 1) != 1) exit(1);
        receive(link, 1);
    }
}

/// The best of three rounds, in microseconds a unit.
static void measure(const struct sockaddr_in *server, const char *name, char command, uint64_t count,
                    void (*work)(int, uint64_t), double units) {
    double best = 1e9;
    for (int round = 0; round < 3; ++round) {
        const int link = ask(server, command, count);
        const double begin = now();
        work(link, count);
        const double each = (now() - begin) / units;
        if (each < best) best = each;
        close(link);
    }
    printf("%s_us=%.2f\n", name, best * 1e6);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    const uint64_t mib = strtoull(argv[3], NULL, 10);
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 || mib == 0) return 2;
    measure(&server, "receive_mib", 'r', mib << 20, receive, mib);
    measure(&server, "send_mib", 's', mib << 20, send_all, mib);
    measure(&server, "round_trip", 'p', kRoundTrips, turn, kRoundTrips);
    return 0;
}
