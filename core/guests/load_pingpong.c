// SPDX-License-Identifier: GPL-2.0-or-later
// One byte, one word or a semaphore between the first and the last CPU.
#include "load.h"

static int there[2], back[2];
static struct { u32 value; } __attribute__((aligned(PAGE))) ball;
static long semaphores;

// At the end the first one closes the game by a byte 0, so that neither waits for ever.
static void play_pipe(struct worker* self) {
    char byte = 1;
    int in = self->index ? there[0] : back[0], out = self->index ? back[1] : there[1];
    while (byte) {
        if (self->index == 0) {
            if (stop_asked()) byte = 0;
            call(SYS_WRITE, out, (long)&byte, 1, 0, 0, 0);
            if (!byte) return;
        }
        if (call(SYS_READ, in, (long)&byte, 1, 0, 0, 0) != 1) return;
        if (self->index && byte) call(SYS_WRITE, out, (long)&byte, 1, 0, 0, 0);
        if (self->index == 0) self->operations++;
    }
}

static void play_futex(struct worker* self) {
    u32 mine = (u32)self->index;
    for (;;) {
        u32 seen;
        while ((seen = __atomic_load_n(&ball.value, __ATOMIC_ACQUIRE)) == (mine ^ 1))
            call(SYS_FUTEX, (long)&ball.value, FUTEX_WAIT_PRIVATE, (long)seen, 0, 0, 0);
        if (seen == 2) return;
        u32 next = mine == 0 && stop_asked() ? 2 : mine ^ 1;
        __atomic_store_n(&ball.value, next, __ATOMIC_RELEASE);
        call(SYS_FUTEX, (long)&ball.value, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        if (next == 2) return;
        if (mine == 0) self->operations++;
    }
}

// Two semaphores (semop(2)), one a player. The first player ends the game, and wakes the second to see it.
static void play_semaphore(struct worker* self) {
    u32 mine = (u32)self->index;
    struct {
        unsigned short which;
        short change, flags;
    } take = {(unsigned short)mine, -1, 0}, give = {(unsigned short)(mine ^ 1), 1, 0};
    for (;;) {
        if (mine == 0 && stop_asked()) ball.value = 2;
        if (mine == 0) call(SYS_SEMOP, semaphores, (long)&give, 1, 0, 0, 0);
        if (mine == 0 && ball.value == 2) return;
        if (call(SYS_SEMOP, semaphores, (long)&take, 1, 0, 0, 0) < 0 || ball.value == 2) return;
        if (mine == 1) call(SYS_SEMOP, semaphores, (long)&give, 1, 0, 0, 0);
        if (mine == 0) self->operations++;
    }
}

// The second player's CPU is the last one: on several hosts, another host's.
static void play(struct worker* self) {
    if (self->index) pin(cpus() - 1);
    if (same(option("via", "pipe"), "futex"))
        play_futex(self);
    else if (same(option("via", "pipe"), "semaphore"))
        play_semaphore(self);
    else
        play_pipe(self);
}

void load_pingpong(void) {
    const char* via = option("via", "pipe");
    if (!same(via, "pipe") && !same(via, "futex") && !same(via, "semaphore"))
        fail("via is pipe, futex or semaphore");
    semaphores = call(SYS_SEMGET, 0, 2, 0600, 0, 0, 0);
    if (semaphores < 0) fail("no semaphores");
    if (call(SYS_PIPE, (long)there, 0, 0, 0, 0, 0) < 0 || call(SYS_PIPE, (long)back, 0, 0, 0, 0, 0) < 0)
        fail("no pipe");
    run(2, play, "round_trips_per_second");
    call(SYS_SEMCTL, semaphores, 0, 0, 0, 0, 0);  // IPC_RMID
}
