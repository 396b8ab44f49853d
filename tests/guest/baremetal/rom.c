// SPDX-License-Identifier: GPL-2.0-or-later
// ROM: all cores execute it, read it, and write to it in every way there is; nothing of it changes.
//
// The image (tests/guest/rom_image.py) begins with code, ends with a page table; words between hold their own
// number. Where RAM begins behind ROM's end, an access over both changes its part in RAM.
#include "guest.h"

#define FUNCTION rom
#define SELF_WRITER (rom + 0x100)
#define NUMBERS (rom + 0x1000)
#define NUMBERS_END (rom + 0xf000)
#define TABLE (rom + 0xf000)
#define WINDOW 0x8000000000ull

static uint64_t rom, over;
static uint32_t rounds;

static uint64_t number_at(uint64_t at) { return at * 0x9e3779b97f4a7c15ull; }

// Repairs what was changed, so that each way is judged by itself where this is RAM.
static void untouched(uint64_t at, const char* by) {
    volatile uint64_t* word = (volatile uint64_t*)(at & ~7ull);
    unsigned wrong = 0;
    for (int i = -8; i < 72; i++) {
        const uint64_t expected = number_at((uint64_t)&word[i] - rom);
        if (word[i] == expected) continue;
        wrong++;
        word[i] = expected;
    }
    check(!wrong, "%s changed %u words of ROM about %lx", by, wrong, at);
}

static void store(uint64_t at) {
    *(volatile uint8_t*)at = 0x55;
    *(volatile uint16_t*)(at + 2) = 0x5555;
    *(volatile uint32_t*)(at + 4) = 0x55555555;
    *(volatile uint64_t*)(at + 8) = 0x5555555555555555;
    untouched(at, "MOV");
    __asm__ volatile("incb (%0); notw 2(%0); negl 4(%0); addq $1, 8(%0); shlq $3, 16(%0)" ::"r"(at)
                     : "memory");
    untouched(at, "a read-modify-write");
    uint64_t to = at, from = rom, count = 64;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    check(to == at + 64 && !count, "REP MOVSB into ROM stops at %lx", to);
    to = at, count = 8;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(7) : "memory");
    check(to == at + 64 && !count, "REP STOSQ into ROM stops at %lx", to);
    untouched(at, "a string instruction");
    __asm__ volatile("movups %%xmm0, (%0); movaps %%xmm1, (%1); fnstcw (%0); fld1; fstpt 3(%0)" ::"r"(at + 8),
                     "r"((at + 15) & ~15ull)
                     : "memory");
    untouched(at, "SSE or x87");
    __asm__ volatile("sgdt (%0); sidt 16(%0); setc (%0); fxsave (%1)" ::"r"(at), "r"(at & ~15ull) : "memory");
    untouched(at, "SGDT, SETcc or FXSAVE");
    __asm__ volatile(
        "mov %%rsp, %%rbx; lea 64(%0), %%rsp; push %%rax; push $1; pushw $1; mov %%rbx, %%rsp" ::"r"(at)
        : "rbx", "memory");
    untouched(at, "PUSH");
}

static void locked(uint64_t at) {
    uint64_t* word = (uint64_t*)at;
    uint64_t here;
    memcpy(&here, word, 8);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t old = 1;
        __asm__ volatile("lock xaddq %0, (%1)" : "+r"(old) : "r"(word) : "memory");
        check(old == here, "LOCK XADD in ROM gives %lx for %lx", old, here);
        old = 2;
        __asm__ volatile("xchgq %0, (%1)" : "+r"(old) : "r"(word) : "memory");
        check(old == here, "XCHG in ROM gives %lx for %lx", old, here);
        old = here;
        uint8_t equal;
        __asm__ volatile("lock cmpxchgq %3, (%2); setz %1"
                         : "+a"(old), "=q"(equal)
                         : "r"(word), "r"(~here)
                         : "memory", "cc");
        check(old == here && equal, "LOCK CMPXCHG in ROM found %lx for %lx", old, here);
    }
    __asm__ volatile("lock incb (%0); lock orw $3, (%0); lock btsl $5, (%0); lock notq (%0)" ::"r"(at)
                     : "memory");
    if (!(at & 15)) {
        uint64_t low = here, high = ((uint64_t*)at)[1];
        __asm__ volatile("lock cmpxchg16b (%2)"
                         : "+a"(low), "+d"(high)
                         : "r"(at), "b"(1ull), "c"(2ull)
                         : "memory", "cc");
        check(low == here, "CMPXCHG16B in ROM found %lx", low);
    }
    untouched(at & ~7ull, "a locked operation");
}

static uint32_t call(uint64_t at) { return ((uint32_t(*)(void))at)(); }

static void work(uint32_t core) {
    for (uint32_t round = 0; round < rounds; round++) {
        check(call(FUNCTION) == 0x12345678, "code in ROM does not run");
        // Within a page, over two pages of ROM, misaligned.
        store(NUMBERS + 0x400 + core * 0x40);
        store(NUMBERS + 0xff8 - core % 7 * 8);
        locked(NUMBERS + 0x500 + core * 0x40);
        locked(NUMBERS + 0x1803);
        locked(NUMBERS + 0x1ffd);
        check(call(SELF_WRITER) == 0x600dc0de, "a store into the code that runs changed it");
    }
}

// The table's entry maps a page of RAM. Accessed and dirty are not set in ROM, and the page can be used.
static void table_in_rom(void) {
    const uint64_t before = *(const uint64_t*)TABLE;
    page_map(WINDOW, 0, 0);  // makes the tables above
    uint64_t* directory =
        (uint64_t*)(((uint64_t*)(((uint64_t*)(read_cr3() & ~0xfffull))[WINDOW >> 39 & 511] & ~0xfffull))[0] &
                    ~0xfffull);
    directory[0] = TABLE | PAGE_PRESENT | PAGE_WRITE;
    write_cr3(read_cr3());
    *(volatile uint32_t*)WINDOW = 77;
    check(*(volatile uint32_t*)(before & ~0xfffull) == 77, "a page mapped by a table in ROM is not the page");
    check(*(const uint64_t*)TABLE == before, "the walk changed the table in ROM: %lx",
          *(const uint64_t*)TABLE);
}

// The last bytes of ROM and the first of RAM, neighbours in linear addresses.
static void over_the_end(void) {
    page_map(over, NUMBERS_END - 4096, PAGE_PRESENT | PAGE_WRITE);
    page_map(over + 4096, 0x3000000, PAGE_PRESENT | PAGE_WRITE);
    volatile uint32_t* behind = (volatile uint32_t*)(over + 4096);
    *behind = 0;
    *(volatile uint64_t*)(over + 4092) = 0x1111111122222222;
    check(*behind == 0x11111111, "a store over ROM and RAM left %x in RAM", *behind);
    uint64_t old = 1ull << 32;
    __asm__ volatile("lock xaddq %0, (%1)" : "+r"(old) : "r"(over + 4092) : "memory");
    check(*behind == 0x11111112 && old >> 32 == 0x11111111, "LOCK XADD over both: %x, %lx", *behind, old);
    untouched(NUMBERS_END - 640, "an access over the end");
}

void guest_main(void) {
    rom = option_number("rom", 0);
    rounds = (uint32_t)option_number("rounds", 20);
    over = WINDOW + (1ull << 39);
    cores_start();
    check(call(FUNCTION) == 0x12345678, "code in ROM does not run");
    cores_run(work, cores_running);
    over_the_end();
    table_in_rom();
    uint64_t wrong = 0;
    for (uint64_t at = NUMBERS; at < NUMBERS_END; at += 8)
        wrong += *(const uint64_t*)at != number_at(at - rom);
    check(!wrong, "%lu words of ROM are not what they were", wrong);
    print("cores=%u\n", cores_running);
    finish();
}
