// SPDX-License-Identifier: GPL-2.0-or-later
// A wire with a delay between network namespaces, where the kernel has no netem: every namespace gets a TUN
// device "eth0", and a packet of one comes out at the other so many microseconds later.
//
//     relay DELAY_US FIRST_ADDRESS NAMESPACE...
//
// Host n has the address FIRST_ADDRESS + n. Says "ready" when the devices are there; ends when its standard
// input does. "cut N" and "mend N" on it take host N off the wire and put it back.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define HOSTS 16
#define PACKETS 4096  // a power of two
#define PACKET_BYTES 9216

static struct packet {
    int64_t due;
    int to;
    ssize_t length;
    uint8_t bytes[PACKET_BYTES];
} queue[PACKETS];
static unsigned head, tail;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int open_tun(const char* name) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET)) err(1, "%s", path);
    close(space);
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "eth0");
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request)) err(1, "/dev/net/tun");
    return tun;
}

int main(int count, char** words) {
    if (count < 4 || count - 3 > HOSTS) errx(2, "usage: relay DELAY_US FIRST_ADDRESS NAMESPACE...");
    int64_t delay = atoll(words[1]) * 1000;
    uint32_t first = ntohl(inet_addr(words[2]));
    int hosts = count - 3;
    bool cut[HOSTS] = {false};
    struct pollfd ends[HOSTS + 1];
    for (int host = 0; host < hosts; host++)
        ends[host] = (struct pollfd){.fd = open_tun(words[3 + host]), .events = POLLIN};
    ends[hosts] = (struct pollfd){.fd = 0, .events = POLLIN};
    prctl(PR_SET_TIMERSLACK, 1);
    // The wire should be there before those who wait for it; without the right to say so it is still a wire.
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 10});
    puts("ready");
    fflush(stdout);
    for (;;) {
        int64_t left = head == tail ? -1 : queue[tail % PACKETS].due - now_ns();
        struct timespec wait = {left < 0 ? 0 : left / 1000000000, left < 0 ? 0 : left % 1000000000};
        if (ppoll(ends, (nfds_t)hosts + 1, head == tail ? NULL : &wait, NULL) < 0) err(1, "ppoll");
        for (; head != tail && queue[tail % PACKETS].due <= now_ns(); tail++) {
            struct packet* packet = &queue[tail % PACKETS];
            // A full device drops it, as a wire may.
            if (!cut[packet->to] && write(ends[packet->to].fd, packet->bytes, (size_t)packet->length) < 0)
                continue;
        }
        for (int host = 0; host < hosts; host++) {
            if (!(ends[host].revents & POLLIN)) continue;
            for (int burst = 0; burst < 64 && head - tail < PACKETS; burst++) {
                struct packet* packet = &queue[head % PACKETS];
                packet->length = read(ends[host].fd, packet->bytes, PACKET_BYTES);
                if (packet->length < 20) break;
                uint32_t address;
                memcpy(&address, packet->bytes + 16, 4);  // IPv4's destination (RFC 791, 3.1)
                packet->to = (int)(ntohl(address) - first);
                if (packet->bytes[0] >> 4 != 4 || packet->to < 0 || packet->to >= hosts || cut[host])
                    continue;
                packet->due = now_ns() + delay;
                head++;
            }
        }
        if (ends[hosts].revents & (POLLIN | POLLHUP)) {
            char line[64] = "";
            int host;
            ssize_t length = read(0, line, sizeof line - 1);
            if (length <= 0) return 0;
            if (sscanf(line, "cut %d", &host) == 1 && host >= 0 && host < hosts) cut[host] = true;
            if (sscanf(line, "mend %d", &host) == 1 && host >= 0 && host < hosts) cut[host] = false;
        }
    }
}
