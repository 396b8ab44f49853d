// SPDX-License-Identifier: GPL-2.0-or-later
// Shadow RAM: the host bridge steers reads and writes of C0000 to FFFFF, and every core goes by it at once.
//
// A page of each segment has a function and words, in ROM (tests/guest/shadow_image.py) and, written by this
// guest, in RAM. From C0000 to DFFFF there is no ROM: nothing is read there, all ones.
#include "guest.h"

#define SEGMENTS 13
#define PAGE 0x2000     // within a segment
#define FUNCTION 0x800  // within the page
#define WORDS 0x400
enum { READ = 1, WRITE = 2 };

static uint32_t rounds;
static uint64_t at[SEGMENTS];  // of the pages
static volatile uint32_t state[SEGMENTS];
static volatile uint32_t begun, done, over;
static volatile uint32_t target;             // the segment that changes while others run in it
static volatile uint32_t looked[MAX_CORES];  // the change that a core has last seen the effect of

static bool has_rom(unsigned segment) { return segment >= 8; }
static uint32_t rom_value(unsigned segment) { return has_rom(segment) ? 0x0500 + segment : ~0u; }
static uint32_t ram_value(unsigned segment) { return 0x5a000000 + segment; }
static uint32_t value(unsigned segment, uint32_t as) {
    return as & READ ? ram_value(segment) : rom_value(segment);
}

static void steer(unsigned segment, uint32_t as) {
    const unsigned reg = segment == 12 ? 0x59 : 0x5a + segment / 2;
    const unsigned shift = segment == 12 || segment & 1 ? 4 : 0;
    out32(0xcf8, 0x80000000u | (reg & ~3u));
    const uint8_t old = in8((uint16_t)(0xcfc + (reg & 3)));
    out32(0xcf8, 0x80000000u | (reg & ~3u));
    out8((uint16_t)(0xcfc + (reg & 3)), (uint8_t)((old & ~(3u << shift)) | as << shift));
    state[segment] = as;
}

static uint32_t read(unsigned segment) { return *(volatile uint32_t*)(at[segment] + WORDS); }
static volatile uint32_t* slot(unsigned segment, uint32_t core) {
    return (volatile uint32_t*)(at[segment] + WORDS + 4 + 4 * core);
}
static uint32_t call(unsigned segment) { return ((uint32_t(*)(void))(at[segment] + FUNCTION))(); }

static void lay(unsigned segment) {
    steer(segment, READ | WRITE);
    volatile uint8_t* code = (volatile uint8_t*)(at[segment] + FUNCTION);
    code[0] = 0xb8;  // mov eax, value; ret
    for (unsigned i = 0; i < 4; i++) code[1 + i] = (uint8_t)(ram_value(segment) >> 8 * i);
    code[5] = 0xc3;
    *(volatile uint32_t*)(at[segment] + WORDS) = ram_value(segment);
}

static void look(uint32_t core) {
    for (unsigned segment = 0; segment < SEGMENTS; segment++) {
        const uint32_t as = state[segment], expected = value(segment, as);
        check(read(segment) == expected, "segment %u as %u reads %x", segment, as, read(segment));
        if (as & READ || has_rom(segment))
            check(call(segment) == expected, "segment %u as %u runs %x", segment, as, call(segment));
        *slot(segment, core) = 0x77000000 + as * 0x10000 + core;
        *(volatile uint8_t*)(at[segment] + WORDS + 0x300 + core) = (uint8_t)(0x40 + as);
        const uint32_t back = *slot(segment, core);
        if (as == (READ | WRITE)) check(back == 0x77030000 + core, "segment %u lost a store", segment);
        if (!(as & READ)) check(back == ~0u, "segment %u as %u shows a store in ROM", segment, as);
    }
}

// After look() under `as`, with all of RAM shown: which stores have arrived.
static void arrived(unsigned segment, uint32_t as, uint32_t cores) {
    for (uint32_t core = 0; core < cores; core++) {
        const uint32_t expected = as & WRITE ? 0x77000000 + as * 0x10000 + core : 0;
        check(*slot(segment, core) == expected, "segment %u as %u left %x", segment, as,
              *slot(segment, core));
        const uint8_t byte = *(volatile uint8_t*)(at[segment] + WORDS + 0x300 + core);
        check(byte == (as & WRITE ? 0x40 + as : 0), "segment %u as %u left the byte %x", segment, as, byte);
        *slot(segment, core) = 0;
        *(volatile uint8_t*)(at[segment] + WORDS + 0x300 + core) = 0;
    }
    check(read(segment) == ram_value(segment), "segment %u as %u changed RAM", segment, as);
}

// All but the first core run in a segment while the first one changes it.
static void run_in_it(uint32_t core) {
    if (core == 0) {
        for (uint32_t round = 0; round < rounds; round++) {
            begun = begun + 1;
            const unsigned segment = 8 + round % 5;
            target = segment;
            steer(segment, state[segment] ^ READ);
            done = begun;
            for (uint32_t other = 1; other < cores_running; other++) {
                while (looked[other] != done) __asm__ volatile("pause");
            }
        }
        over = 1;
        return;
    }
    while (!over) {
        const uint32_t before = done;
        const unsigned segment = target;
        const uint32_t as = state[segment];
        const uint32_t got = call(segment), data = read(segment);
        if (begun != before) continue;  // a change was under way: either is right
        check(got == value(segment, as) && data == got, "after change %u segment %u runs %x and reads %x",
              before, segment, got, data);
        looked[core] = before;
    }
}

void guest_main(void) {
    rounds = (uint32_t)option_number("rounds", 200);
    for (unsigned i = 0; i < SEGMENTS; i++) at[i] = (i == 12 ? 0xf0000 : 0xc0000 + 0x4000 * i) + PAGE;
    cores_start();
    for (unsigned i = 0; i < SEGMENTS; i++) check(read(i) == rom_value(i), "segment %u begins as RAM", i);
    for (unsigned i = 0; i < SEGMENTS; i++) lay(i);
    for (uint32_t round = 0; round < 8; round++) {
        uint32_t as[SEGMENTS];
        for (unsigned i = 0; i < SEGMENTS; i++) steer(i, as[i] = (round + i * (1 + round / 4)) & 3);
        cores_run(look, cores_running);
        for (unsigned i = 0; i < SEGMENTS; i++) {
            steer(i, READ | WRITE);
            arrived(i, as[i], cores_running);
        }
    }
    target = 8;
    cores_run(run_in_it, cores_running);
    print("cores=%u\n", cores_running);
    finish();
}
