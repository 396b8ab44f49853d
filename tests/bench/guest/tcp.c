// SPDX-License-Identifier: GPL-2.0-or-later
// TCP with a server, as a guest's programs have it, and what a MiB and a round trip cost.
//
//     tcp ADDRESS PORT MIB    asks the server there, once it listens
//     tcp serve PORT          is that server until all has been asked
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

enum { kPiece = 64 << 10, kRoundTrips = 1000, kRounds = 3, kKinds = 3, kTries = 600 };

static char buffer[kPiece];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/// A connection on which the server does what `command` says with `count` bytes or messages.
static int ask(const struct sockaddr_in* server, char command, uint64_t count) {
    int link = socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    for (int tries = 0; connect(link, (const struct sockaddr*)server, sizeof *server) != 0; ++tries) {
        if (tries == kTries) exit(1);
        close(link);
        usleep(100000);
        link = socket(AF_INET, SOCK_STREAM, 0);
    }
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

static void send_pieces(int link, uint64_t bytes) {
    while (bytes > 0) {
        const ssize_t done = write(link, buffer, bytes < sizeof buffer ? bytes : sizeof buffer);
        if (done <= 0) exit(1);
        bytes -= done;
    }
}

static void send_all(int link, uint64_t bytes) {
    send_pieces(link, bytes);
    receive(link, 1);  // the server has all of it
}

static void turn(int link, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        if (write(link, buffer, 1) != 1) exit(1);
        receive(link, 1);
    }
}

/// The best of three rounds, in microseconds a unit.
static void measure(const struct sockaddr_in* server, const char* name, char command, uint64_t count,
                    void (*work)(int, uint64_t), double units) {
    double best = 1e9;
    for (int round = 0; round < kRounds; ++round) {
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

static int serve(int port) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    const int door = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(door, (struct sockaddr*)&any, sizeof any) != 0 || listen(door, 1) != 0) return 1;
    for (int asked = 0; asked < kRounds * kKinds; ++asked) {
        const int link = accept(door, NULL, NULL);
        setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        unsigned char request[9];
        for (size_t got = 0; got < sizeof request;) {
            const ssize_t done = read(link, request + got, sizeof request - got);
            if (done <= 0) return 1;
            got += done;
        }
        uint64_t count;
        memcpy(&count, request + 1, sizeof count);
        if (request[0] == 'r') {
            send_pieces(link, count);
        } else if (request[0] == 's') {
            receive(link, count);
            send_pieces(link, 1);
        } else {
            for (; count > 0; --count) {
                receive(link, 1);
                send_pieces(link, 1);
            }
        }
        while (read(link, buffer, 1) > 0) continue;  // the other end closes first
        close(link);
    }
    return 0;
}

int main(int argc, char** argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0) return serve(atoi(argv[2]));
    if (argc != 4) return 2;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    const uint64_t mib = strtoull(argv[3], NULL, 10);
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1 || mib == 0) return 2;
    measure(&server, "receive_mib", 'r', mib << 20, receive, mib);
    measure(&server, "send_mib", 's', mib << 20, send_all, mib);
    measure(&server, "round_trip", 'p', kRoundTrips, turn, kRoundTrips);
    return 0;
}
