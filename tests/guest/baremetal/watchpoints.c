// SPDX-License-Identifier: GPL-2.0-or-later
// Data breakpoints (SDM 3B, 18.2): every way of reaching a watched byte traps once, after the instruction,
// with the instruction done once; what lies beside it does not.
#include "guest.h"
#include "debug_registers.h"

#define FLAG_TF 0x100ull
#define DR6_BS (1ull << 14)
#define DR6_CLEAR 0xffff0ff0ull
#define DR7_CLEAR 0x400ull
enum { WRITES = 1, READS_AND_WRITES = 3 };
enum { BYTES_1 = 0, BYTES_2 = 1, BYTES_8 = 2, BYTES_4 = 3 };

static volatile uint8_t area[3 * 4096] __attribute__((aligned(4096)));
static volatile uint64_t hits, hit_rip, hit_dr6, hit_rcx;
static uint64_t after;  // where the case at hand must stop; written by its own code

#define WORD(at) (*(volatile uint64_t*)(area + (at)))
#define HALF(at) (*(volatile uint32_t*)(area + (at)))

// Around the instruction of a case: its end is where the trap must report.
#define CASE(instruction) "leaq 1f(%%rip), %%rax\n movq %%rax, %[after]\n" instruction "\n 1: nop\n"

static void on_debug(struct trap_frame* frame) {
    hits++;
    hit_rip = frame->rip;
    hit_dr6 = read_dr(6) & 0xe00f;
    hit_rcx = frame->rcx;
    write_dr(6, DR6_CLEAR);
}

static void watch(uint64_t address, unsigned kind, unsigned length) {
    hits = hit_rip = hit_dr6 = 0;
    write_dr(7, DR7_CLEAR);
    write_dr(0, address);
    write_dr(7, DR7_CLEAR | 2 | kind << 16 | length << 18);
}

static void expect(const char* what, uint64_t count) {
    check(hits == count, "%s: %lu debug exceptions, expected %lu", what, hits, count);
    if (count) check(hit_rip == after, "%s: RIP %lx, expected %lx", what, hit_rip, after);
    if (count) check(hit_dr6 == 1, "%s: DR6 %lx", what, hit_dr6);
    hits = 0;
}

static void reads_and_writes(void) {
    watch((uint64_t)&area[64], WRITES, BYTES_4);
    WORD(64) = 41;
    hits = 0;
    uint64_t before = 0;
    __asm__ volatile("incq %[count]\n" CASE("addl $1, %[word]") "incq %[count]"
                     : [after] "=m"(after), [word] "+m"(HALF(64)), [count] "+m"(before)::"rax", "cc");
    expect("add to memory", 1);
    check(HALF(64) == 42 && before == 2, "add to memory: %u, its neighbours %lu", HALF(64), before);
    __asm__ volatile(CASE("xchgl %%ecx, %[word]")
                     : [after] "=m"(after), [word] "+m"(HALF(64))
                     :
                     : "rax", "rcx", "memory");
    expect("xchg", 1);
    HALF(64) = 10, hits = 0;
    __asm__ volatile("movl $5, %%ecx\n" CASE("lock xaddl %%ecx, %[word]")
                     : [after] "=m"(after), [word] "+m"(HALF(64))::"rax", "rcx", "cc", "memory");
    expect("lock xadd", 1);
    check(HALF(64) == 15, "lock xadd: %u", HALF(64));
    __asm__ volatile("movl $15, %%eax\n movl $1, %%ecx\n lock cmpxchgl %%ecx, %[word]"
                     : [word] "+m"(HALF(64))::"rax", "rcx", "cc", "memory");
    check(hits == 1 && HALF(64) == 1, "lock cmpxchg: %lu debug exceptions, value %u", hits, HALF(64));
    hits = 0;
    (void)HALF(64);
    expect("a read under a write breakpoint", 0);

    watch((uint64_t)&area[64], READS_AND_WRITES, BYTES_4);
    __asm__ volatile(CASE("movl %[word], %%ecx") : [after] "=m"(after) : [word] "m"(HALF(64)) : "rax", "rcx");
    expect("a read", 1);
    __asm__ volatile(CASE("negl %[word]") : [after] "=m"(after), [word] "+m"(HALF(64))::"rax", "cc");
    expect("a read, then a write", 1);
    check(HALF(64) == (uint32_t)-1, "neg: %x", HALF(64));
    hits = 0;
    __asm__ volatile(CASE("pushq %[word]\n") "popq %%rcx"
                     : [after] "=m"(after)
                     : [word] "m"(WORD(64))
                     : "rax", "rcx", "memory");
    check(hits == 1, "push of a watched word: %lu", hits);
}

static void neighbours_and_edges(void) {
    watch((uint64_t)&area[128], WRITES, BYTES_4);
    WORD(120) = 1;
    HALF(132) = 1;
    area[127] = area[132] = 1;
    expect("writes beside it", 0);
    // Misaligned: bytes 121-128 and 131-138 touch it, 120-127 (from 117) and 132-139 do not.
    WORD(121) = 0x1122334455667788;
    check(hits == 1 && WORD(121) == 0x1122334455667788, "misaligned write into its first byte: %lu", hits);
    hits = 0;
    WORD(131) = 7;
    check(hits == 1, "misaligned write into its last byte: %lu", hits);
    hits = 0;
    WORD(117) = WORD(133) = 5;
    expect("misaligned writes beside it", 0);
    WORD(125) = 0xfffffffffffffff0;
    hits = 0;
    __asm__ volatile(CASE("addq $0x20, %[word]") : [after] "=m"(after), [word] "+m"(WORD(125))::"rax", "cc");
    expect("misaligned add", 1);
    check(WORD(125) == 0x10, "misaligned add: %lx", WORD(125));

    watch((uint64_t)&area[8192], WRITES, BYTES_1);
    WORD(8192 - 7) = 0xff;
    check(hits == 1, "write over the end of a page: %lu", hits);
    hits = 0;
    WORD(8192 - 8) = 0xff;
    expect("write up to the end of a page", 0);
    WORD(8192 - 4) = 0xffffffff;
    hits = 0;
    __asm__ volatile(CASE("lock addq $1, %[word]")
                     : [after] "=m"(after), [word] "+m"(WORD(8192 - 4))::"rax", "cc");
    expect("lock add over the end of a page", 1);
    check(WORD(8192 - 4) == 0x100000000, "lock add over the end of a page: %lx", WORD(8192 - 4));

    watch((uint64_t)&area[258], WRITES, BYTES_4);  // the low bits are not looked at
    HALF(256) = 1;
    check(hits == 1, "write under an address of DR0 that is not aligned: %lu", hits);
    hits = 0;
    HALF(260) = 1;
    expect("write behind an address of DR0 that is not aligned", 0);
}

static void many_bytes(void) {
    uint64_t count = 16;
    volatile void* to = &area[512];
    watch((uint64_t)&area[516], WRITES, BYTES_4);
    __asm__ volatile("movb $0x5a, %%al\n 1: rep stosb" : "+c"(count), "+D"(to)::"rax", "memory");
    check(hits == 4, "rep stosb over it: %lu debug exceptions, expected one for each iteration", hits);
    check(hit_rcx == 8, "rep stosb: the last at RCX %lu, expected 8", hit_rcx);
    check(WORD(512) == 0x5a5a5a5a5a5a5a5a && WORD(520) == WORD(512), "rep stosb: %lx %lx", WORD(512),
          WORD(520));
    hits = 0;
    watch((uint64_t)&area[600], WRITES, BYTES_8);
    __asm__ volatile(CASE("movups %%xmm0, %[word]") : [after] "=m"(after), [word] "=m"(WORD(592))::"rax");
    expect("movups whose second half hits", 1);
    __asm__ volatile(CASE("fxsave %[area]")
                     : [after] "=m"(after), [area] "=m"(*(uint8_t(*)[512]) & area[512])::"rax");
    expect("fxsave over it", 1);
    WORD(592) = 1, WORD(600) = 2, hits = 0;
    uint64_t low = 1, high = 2;
    __asm__ volatile("lock cmpxchg16b %[pair]"
                     : "+a"(low), "+d"(high), [pair] "+m"(*(uint8_t(*)[16]) & area[592])
                     : "b"(3ull), "c"(4ull)
                     : "cc", "memory");
    check(hits == 1 && WORD(592) == 3 && WORD(600) == 4, "lock cmpxchg16b: %lu", hits);
}

static void the_stack(void) {
    // On a stack of its own, whose next word is watched.
    const uint64_t top = (uint64_t)&area[2048];
    watch(top - 8, WRITES, BYTES_8);
    __asm__ volatile("movq %%rsp, %%rcx\n movq %[top], %%rsp\n" CASE("pushq $7") "movq %%rcx, %%rsp"
                     : [after] "=m"(after)
                     : [top] "r"(top)
                     : "rax", "rcx", "memory");
    expect("push", 1);
    __asm__ volatile(
        "movq %%rsp, %%rcx\n movq %[top], %%rsp\n leaq 2f(%%rip), %%rax\n movq %%rax, %[after]\n"
        "call 2f\n 2: movq %%rcx, %%rsp"
        : [after] "=m"(after)
        : [top] "r"(top)
        : "rax", "rcx", "memory");
    expect("call", 1);
    // The frame of an INT n is written by the delivery: the trap comes before the handler's first
    // instruction.
    after = trap_entry(3);
    __asm__ volatile("movq %%rsp, %%rcx\n movq %[top], %%rsp\n int3\n movq %%rcx, %%rsp" ::[top] "r"(top)
                     : "rcx", "memory");
    check(hits == 1 && hit_rip == after, "int3: %lu debug exceptions, RIP %lx, expected %lx", hits, hit_rip,
          after);
    hits = 0;
    // MOV SS holds the trap back until the next instruction is done (SDM 3A, 6.8.3).
    WORD(1024) = KERNEL_DATA;
    watch((uint64_t)&area[1024], READS_AND_WRITES, BYTES_2);
    __asm__ volatile(CASE("movw %[word], %%ss\n nop")
                     : [after] "=m"(after)
                     : [word] "m"(*(volatile uint16_t*)&area[1024])
                     : "rax", "memory");
    expect("mov ss", 1);
}

static void together(void) {
    watch((uint64_t)&area[64], WRITES, BYTES_4);
    write_dr(3, (uint64_t)&area[66]);
    write_dr(7, DR7_CLEAR | 2 | 0x80 | WRITES << 16 | BYTES_4 << 18 | WRITES << 28 | BYTES_1 << 30);
    HALF(64) = 3;
    check(hits == 1 && hit_dr6 == 9, "two breakpoints, one write: %lu debug exceptions, DR6 %lx", hits,
          hit_dr6);
    watch((uint64_t)&area[64], WRITES, BYTES_4);
    __asm__ volatile(
        "pushfq\n orq $0x100, (%%rsp)\n popfq\n movl $1, %[word]\n"
        "pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
        : [word] "=m"(HALF(64))::"cc", "memory");
    check(hits == 4, "single step over a write: %lu debug exceptions, expected 4", hits);
}

static void write_read_only(void* unused) {
    (void)unused;
    *(volatile uint32_t*)(1ull << 40) = 1;
}

static void faults(void) {
    write_cr0(read_cr0() | 1u << 16);  // WP
    page_map(1ull << 40, (uint64_t)area, PAGE_PRESENT);
    watch(1ull << 40, WRITES, BYTES_4);
    int vector = trap_catch(write_read_only, NULL);
    check(vector == 14 && !hits, "write to a read-only page: vector %d, %lu debug exceptions", vector, hits);
    page_map(1ull << 40, (uint64_t)area, PAGE_PRESENT | PAGE_WRITE);
    vector = trap_catch(write_read_only, NULL);
    check(vector == -1 && hits == 1, "write to it when it is writable: vector %d, %lu", vector, hits);
    HALF(0) = 2;
    check(hits == 1, "a breakpoint is at a linear address: %lu hits by way of another", hits);
    write_dr(7, DR7_CLEAR);
    write_read_only(NULL);
    check(hits == 1, "a breakpoint hits after it was switched off");
}

static void on_breakpoint(struct trap_frame* frame) { (void)frame; }

void guest_main(void) {
    write_cr4(read_cr4() | 3 << 9);
    trap_handlers[1] = on_debug;
    trap_handlers[3] = on_breakpoint;
    reads_and_writes();
    neighbours_and_edges();
    many_bytes();
    the_stack();
    together();
    faults();
    finish();
}
