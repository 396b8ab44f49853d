// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "float_host.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

FLOAT_BLOCKS(DECLARE_BLOCK)
const Block float_blocks[] = {FLOAT_BLOCKS(BLOCK_ENTRY)};
const size_t float_block_count = sizeof(float_blocks) / sizeof(float_blocks[0]);

static const uint32_t singles[] = {
    0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000,
    0x7fc12345, 0x7f800001, 0xffa00000, 0x00000001, 0x80000001, 0x007fffff, 0x00400000, 0x00800000,
    0x80800000, 0x00ffffff, 0x7f7fffff, 0xff7fffff, 0x7f000000, 0x3f000000, 0xbf000000, 0x3fc00000,
    0x40200000, 0x3effffff, 0x4effffff, 0x4f000000, 0xcf000000, 0xcf000001, 0x5effffff, 0x5f000000,
    0xdf000000, 0xdf000001, 0x4b7fffff, 0x4b800001, 0x1f800000, 0x20000000, 0x5f800000, 0x2d800000,
    0x33800000, 0x34000000, 0x4b000001, 0x3f800001, 0x3f7fffff,
};

static const uint64_t doubles[] = {
    0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
    0xfff0000000000000, 0x7ff8000000000000, 0xfff8000000000000, 0x7ff8000000012345, 0x7ff0000000000001,
    0xfff4000000000000, 0x0000000000000001, 0x8000000000000001, 0x000fffffffffffff, 0x0008000000000000,
    0x0010000000000000, 0x8010000000000000, 0x001fffffffffffff, 0x7fefffffffffffff, 0xffefffffffffffff,
    0x7fe0000000000000, 0x3fe0000000000000, 0xbfe0000000000000, 0x3ff8000000000000, 0x4004000000000000,
    0x3fdfffffffffffff, 0x41dfffffffc00000, 0x41dfffffffe00000, 0x41e0000000000000, 0xc1e0000000000000,
    0xc1e0000000100000, 0xc1e0000000200000, 0x43dfffffffffffff, 0x43e0000000000000, 0xc3e0000000000000,
    0xc3e0000000000001, 0x1ff0000000000000, 0x2000000000000000, 0x5ff0000000000000, 0x3ca0000000000000,
    0x47efffffe0000000, 0x47efffffefffffff, 0x47effffff0000000, 0x47f0000000000000, 0x3810000000000000,
    0x380fffffffffffff, 0x380fffffe0000000, 0x36a0000000000000, 0x3690000000000000, 0x3690000000000001,
    0x37f0000000000000, 0x3ff0000000000001, 0x3fefffffffffffff, 0x4340000000000001, 0x3ff0000010000000,
};

static const uint64_t integers[] = {0,
                                    1,
                                    0xffffffffffffffff,
                                    0x7fffffff,
                                    0x80000000,
                                    0x7fffffffffffffff,
                                    0x8000000000000000,
                                    0x01000001,
                                    0x01000003,
                                    0xfeffffff,
                                    0x0020000000000001,
                                    0x0020000000000003,
                                    0x7ffffffffffffc00,
                                    0x7ffffffffffffdff,
                                    0x7fffff4000000001,
                                    0xffffffff80000000};

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random64(void) {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1d;
}

#define PICK(table) (table)[random64() % (sizeof(table) / sizeof((table)[0]))]

// Half of the values are named cases; of the others, half are any bits and half lie near 1: sums cancel.
static void fill_lanes(uint8_t* to, Elements elements) {
    for (int i = 0; i < 16; i += elements == DOUBLES ? 8 : 4) {
        uint64_t choice = random64() % 4, value = random64();
        if (elements == SINGLES) {
            uint32_t bits = choice < 2    ? PICK(singles)
                            : choice == 2 ? (uint32_t)value
                                          : 0x3f800000 + (uint32_t)(int32_t)(value % 65536) - 32768;
            memcpy(to + i, &bits, 4);
        } else if (elements == DOUBLES) {
            uint64_t bits = choice < 2    ? PICK(doubles)
                            : choice == 2 ? value
                                          : 0x3ff0000000000000 + value % 65536 - 32768;
            memcpy(to + i, &bits, 8);
        } else {
            uint32_t bits = (uint32_t)(choice < 2 ? PICK(integers) : value);
            memcpy(to + i, &bits, 4);
        }
    }
}

// A third of the rows under the default controls, a third under other rounding, FZ and DAZ, a third with
// exceptions unmasked as well. The sticky flags before the instruction are any.
static uint32_t any_mxcsr(void) {
    uint64_t value = random64();
    uint32_t flags = value >> 32 & 0x3f & (uint32_t)(value >> 40);
    switch (value % 3) {
        case 0:
            return 0x1f80 | flags;
        case 1:
            return 0x1f80 | (value >> 16 & 0xe040) | flags;
        default: {
            uint32_t masks = random64() & 0x1f80;
            return masks | (value & 64 ? value >> 16 & 0xe040 : 0) | flags;
        }
    }
}

static const Block* running;

static void on_sigfpe(int signal_number, siginfo_t* info, void* context) {
    (void)signal_number, (void)info;
    greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    if (registers[REG_RIP] != (greg_t)running->instruction) abort();
    ((Row*)registers[REG_RDI])->vector = XM;
    registers[REG_RIP] = (greg_t)running->next;
}

void float_seed(uint64_t seed) {
    random_state += seed << 1;  // odd, so never zero
}

void float_fill_rows(const Block* block, Row* rows, long count) {
    memset(rows, 0, (size_t)count * sizeof(Row));
    for (long i = 0; i < count; i++) {
        rows[i].mxcsr_in = any_mxcsr();
        rows[i].gpr_in = random64() & 1 ? PICK(integers) : random64() >> (random64() & 63);
        fill_lanes(rows[i].d_in, block->elements);
        fill_lanes(rows[i].s_in, block->elements);
    }
}

void float_run_on_host(const Block* block, Row* rows, long count) {
    struct sigaction action = {.sa_sigaction = on_sigfpe, .sa_flags = SA_SIGINFO}, before;
    sigaction(SIGFPE, &action, &before);
    running = block;
    // The compiler may keep values below the stack pointer, where the call writes: step over them.
    __asm__ volatile("sub $128, %%rsp\n\tcall *%2\n\tadd $128, %%rsp\n\temms\n\tldmxcsr %3"
                     : "+D"(rows), "+S"(count)
                     : "r"(block->begin), "m"((uint32_t){0x1f80})
                     : "rax", "xmm0", "xmm1", "mm0", "mm1", "cc", "memory");
    sigaction(SIGFPE, &before, NULL);
}
