// SPDX-License-Identifier: GPL-2.0-or-later
// A block of user code, what it starts from and what it leaves: the same for the program on the bare
// processor (native.c) and for the guest (guest.c). block_layout.py says the same in Python.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Addresses of the block's own world. Both programs map it so; below 4 GiB, so that it is reached with 32-bit
// addresses too. Of the code's pages each eighth is missing.
#define CODE_BASE 0x40000000ul
#define CODE_PAGES 256u
#define CODE_GAP 8u
#define DATA_BASE 0x50000000ul
#define DATA_PAGES 8u
// All of it lies here once more, this much higher: code further than 2 GiB from the numbers of 32 bits is
// translated once for all its addresses.
#define ALIAS 0x123400000000ul
// Bit n: page n can be read, can be written. Page 3 can be read only; 0, 5 and 7 are missing.
#define DATA_READABLE 0x5eu
#define DATA_WRITABLE 0x56u

#define MAX_BLOCKS 4096u
#define MAX_STEPS 4u
#define MAX_CHANGES 12u

#define SELECTOR_CODE32 0x23u  // as 64-bit Linux gives them to its programs
#define SELECTOR_DATA 0x2bu
#define SELECTOR_CODE64 0x33u

enum register_index { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };  // then R8 to R15

struct block {
    uint64_t gpr[16];  // numbered as ModRM numbers them
    uint64_t rip, rflags, cs, reserved;
    uint64_t fs_base, gs_base;
    uint8_t fxsave[416];  // the image of FXSAVE64, without what it keeps reserved
};

struct change {
    uint64_t address, value;
};

struct step {                         // under the trap flag, before each instruction but the first
    uint64_t rip, rflags, registers;  // the latter a sum of all
};

struct outcome {
    uint64_t gpr[16];
    uint64_t rip, rflags, cs, ss;
    uint64_t vector, error, cr2;
    uint64_t fs_base, gs_base;
    uint16_t ds, es, fs, gs;
    uint8_t fxsave[416];
    uint32_t steps, changes;  // how many there were; the first are below
    uint64_t changes_hash;    // of all
    struct step step[MAX_STEPS];
    struct change change[MAX_CHANGES];
};

struct batch {
    uint32_t count, go, done, served;
    uint8_t padding[4080];             // what follows is mapped
    uint8_t image[DATA_PAGES * 4096];  // what is in the data before each block
    uint8_t code[CODE_PAGES * 4096];
    struct block block[MAX_BLOCKS];
    struct outcome outcome[MAX_BLOCKS];
};

#define RFLAGS_TF 0x100u

static inline uint64_t mixed(uint64_t sum, uint64_t word) {
    sum = (sum ^ word) * 0x9e3779b97f4a7c15ul;
    return sum ^ sum >> 29;
}

// Notes what differs from the image, and puts it back. `data` is where the pages are seen from here.
static inline void note_changes(uint64_t* data, const uint64_t* image, struct outcome* out) {
    out->changes = 0;
    out->changes_hash = 0;
    for (unsigned page = 0; page < DATA_PAGES; page++) {
        if (!(DATA_READABLE >> page & 1)) continue;
        for (unsigned at = page * 512; at < (page + 1) * 512; at += 4) {
            if (!((data[at] ^ image[at]) | (data[at + 1] ^ image[at + 1]) | (data[at + 2] ^ image[at + 2]) |
                  (data[at + 3] ^ image[at + 3])))
                continue;
            for (unsigned word = at; word < at + 4; word++) {
                if (data[word] == image[word]) continue;
                struct change change = {DATA_BASE + word * 8, data[word]};
                if (out->changes < MAX_CHANGES) out->change[out->changes] = change;
                out->changes++;
                out->changes_hash = mixed(mixed(out->changes_hash, change.address), change.value);
                data[word] = image[word];
            }
        }
    }
}

// Under the trap flag: false when the block is over, or when steps are enough.
static inline int note_step(struct outcome* out, const uint64_t gpr[16], uint64_t rip, uint64_t rflags) {
    if (out->steps >= MAX_STEPS) return 0;
    struct step* step = &out->step[out->steps++];
    step->rip = rip;
    step->rflags = rflags;
    step->registers = 0;
    for (unsigned number = 0; number < 16; number++) step->registers = mixed(step->registers, gpr[number]);
    return 1;
}
