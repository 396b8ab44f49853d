// SPDX-License-Identifier: GPL-2.0-or-later
// Memory that no other process has. On several hosts it is what a guest's kernel shares that is measured:
// start one process for each CPU, since threads of one process share its page tables.
#include "load.h"

enum { BUFFER = 256 << 10, ROUND = 64 };

// As memcpy(3) does it on this processor.
static void copy(struct worker* self) {
    char *from = memory(BUFFER), *to = memory(BUFFER);
    while (!stop_asked()) {
        void *source = from, *target = to;
        u64 left = BUFFER;
        __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(left) : : "memory");
        self->operations++;
    }
}

// As malloc(3) does it for what is large: pages come at the first touch and go.
static void allocate(struct worker* self) {
    while (!stop_asked()) {
        char* block = memory(ROUND * PAGE);
        for (u64 page = 0; page < ROUND; page++) *(volatile char*)(block + page * PAGE) = 1;
        call(SYS_MUNMAP, (long)block, ROUND * PAGE, 0, 0, 0, 0);
        self->operations++;
    }
}

void load_memory(void) {
    const char* kind = option("kind", "copy");
    u64 count = number("threads", cpus());
    if (same(kind, "copy"))
        run(count, copy, "copies_per_second");
    else if (same(kind, "allocate"))
        run(count, allocate, "allocations_per_second");
    else
        fail("kind is copy or allocate");
}
