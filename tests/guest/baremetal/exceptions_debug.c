// SPDX-License-Identifier: GPL-2.0-or-later
// Debug exceptions: single step and the four address registers (SDM 3B, 18.2 and 18.3).
#include "exceptions.h"
#include "debug_registers.h"

#define FLAG_TF 0x100ull
#define FLAG_RF 0x10000ull
#define DR6_BS (1ull << 14)

uint64_t debug_rip;  // where the case at hand must stop; written by its own code
static volatile uint64_t watched[4] __attribute__((aligned(64)));
static volatile uint64_t hits, hit_rip, hit_dr6;

static void on_debug(struct trap_frame* frame) {
    hits++;
    hit_rip = frame->rip;
    hit_dr6 = read_dr(6);
    write_dr(6, 0xffff0ff0);
    if (hit_dr6 & 1) frame->rflags |= FLAG_RF;  // an instruction breakpoint is a fault: go over it
}

static void reset(void) {
    hits = hit_rip = hit_dr6 = 0;
    write_dr(7, 0x400);
    write_dr(6, 0xffff0ff0);
}

static void expect_hit(const char* what, uint64_t rip, uint64_t dr6) {
    check(hits == 1, "%s: %lu debug exceptions", what, hits);
    check(hit_rip == rip, "%s: RIP %lx, expected %lx", what, hit_rip, rip);
    check((hit_dr6 & 0xe00f) == dr6, "%s: DR6 %lx, expected %lx", what, hit_dr6, dr6);
}

static void single_step(void) {
    reset();
    __asm__ volatile(
        "pushfq\n orq $0x100, (%%rsp)\n leaq 1f(%%rip), %%rax\n movq %%rax, debug_rip(%%rip)\n popfq\n"
        "nop\n 1: nop\n"
        "pushfq\n andq $~0x100, (%%rsp)\n popfq\n" ::
            : "rax", "memory", "cc");
    // After the instruction behind POPF, then after each until TF is off again: NOP NOP PUSHF AND POPF.
    check(hits == 5, "single step: %lu steps, expected 5", hits);
    check((hit_dr6 & 0xe00f) == DR6_BS, "single step: DR6 %lx", hit_dr6);
    reset();
    // MOV SS holds the trap back for one instruction; REP steps once an iteration.
    uint64_t count = 3;
    static uint8_t bytes[8];
    void* to = bytes;
    __asm__ volatile(
        "pushfq\n orq $0x100, (%%rsp)\n popfq\n rep stosb\n"
        "pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
        : "+c"(count), "+D"(to)
        : "a"(0)
        : "memory", "cc");
    check(hits == 6, "single step of rep stosb: %lu steps, expected 6", hits);
}

static void instruction_breakpoint(void) {
    extern char breakpoint_here[];
    reset();
    write_dr(0, (uint64_t)breakpoint_here);
    write_dr(7, 0x402);
    uint64_t value = 0;
    __asm__ volatile(".globl breakpoint_here\n nop\n breakpoint_here: inc %0\n nop" : "+r"(value)::"cc");
    expect_hit("instruction breakpoint", (uint64_t)breakpoint_here, 1);
    check(value == 1, "instruction breakpoint: the instruction ran %lu times", value);
    check(read_dr(0) == (uint64_t)breakpoint_here, "DR0 reads %lx", read_dr(0));
    write_dr(7, 0x400);
    __asm__ volatile("" ::: "memory");
}

// MOV SS holds an instruction breakpoint back for good, STI does not (SDM vol. 3A 6.8.3).
static void breakpoint_in_shadow(void) {
    extern char behind_mov_ss[], behind_sti[];
    uint64_t value = 0;
    uint64_t selector = KERNEL_DATA;
    reset();
    write_dr(0, (uint64_t)behind_mov_ss);
    write_dr(7, 0x402);
    __asm__ volatile("movw %w1, %%ss\n behind_mov_ss: inc %0\n inc %0" : "+r"(value) : "r"(selector) : "cc");
    check(hits == 0 && value == 2, "instruction breakpoint behind mov ss: %lu debug exceptions, %lu", hits,
          value);
    reset();
    write_dr(0, (uint64_t)behind_sti);
    write_dr(7, 0x402);
    __asm__ volatile("movw %w1, %%ss\n pushfq\n cli\n sti\n behind_sti: inc %0\n popfq"
                     : "+r"(value)
                     : "r"(selector)
                     : "cc", "memory");
    expect_hit("instruction breakpoint behind sti", (uint64_t)behind_sti, 1);
    write_dr(7, 0x400);
}

static void data_breakpoints(void) {
    reset();
    write_dr(1, (uint64_t)&watched[1]);
    write_dr(7, 0x400 | 8 | 0xdull << 20);  // DR1, writes, 4 bytes
    __asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, debug_rip(%%rip)\n movl $5, %0\n 1: nop"
                     : "=m"(watched[1])::"rax", "memory");
    expect_hit("write watchpoint", debug_rip, 2);
    hits = 0;
    uint64_t value = watched[1];
    check(!hits && value == 5, "write watchpoint hit by a read");
    ((volatile uint8_t*)watched)[8 + 3] = 1;
    check(hits == 1, "write watchpoint: a byte inside hits %lu times", hits);
    hits = 0;
    ((volatile uint8_t*)watched)[8 + 4] = 1;
    watched[0] = 1;
    check(!hits, "write watchpoint: a neighbour hits");

    reset();
    write_dr(2, (uint64_t)&watched[2]);
    write_dr(7, 0x400 | 0x20 | 0xfull << 24);  // DR2, reads and writes, 4 bytes
    __asm__ volatile(
        "leaq 1f(%%rip), %%rax\n movq %%rax, debug_rip(%%rip)\n movl %0, %%eax\n 1: nop" ::"m"(watched[2])
        : "rax", "memory");
    expect_hit("read watchpoint", debug_rip, 4);

    reset();
    write_dr(3, (uint64_t)&watched[3]);
    write_dr(7, 0x400 | 0x80 | 0x9ull << 28);  // DR3, writes, 8 bytes
    __asm__ volatile("leaq 1f(%%rip), %%rax\n movq %%rax, debug_rip(%%rip)\n movb $1, 7+%0\n 1: nop"
                     : "=m"(watched[3])::"rax", "memory");
    expect_hit("8-byte watchpoint", debug_rip, 8);
    hits = 0;
    __asm__ volatile("lock incq %0" : "+m"(watched[3])::"cc", "memory");
    check(hits == 1, "8-byte watchpoint: lock inc hits %lu times", hits);
    write_dr(7, 0x400);
    hits = 0;
    watched[3] = 1;
    check(!hits, "a watchpoint hits after it was switched off");
}

static volatile uint64_t interrupted;
static void on_interrupt(struct trap_frame* frame) { interrupted += frame->vector == 0x83; }

// MOV SS holds a data breakpoint back for one instruction. When that is INT n, #DB comes at the handler's
// first instruction (SDM vol. 3A 6.8.3); the shadow is over there.
static void breakpoint_before_interrupt(void) {
    trap_handlers[0x83] = on_interrupt;
    reset();
    watched[0] = KERNEL_DATA;
    interrupted = 0;
    write_dr(0, (uint64_t)&watched[0]);
    write_dr(7, 0x400 | 2 | 0x7ull << 16);  // DR0, reads and writes, 2 bytes
    __asm__ volatile("movw %0, %%ss\n int $0x83" ::"m"(watched[0]) : "memory");
    const uint64_t rip = hit_rip, dr6 = hit_dr6;
    write_dr(7, 0x400);
    check(hits == 1 && interrupted == 1 && rip == trap_entry(0x83) && (dr6 & 0xe00f) == 1,
          "mov ss of a watched word, int 83h: %lu debug exceptions, %lu interrupts, RIP %lx, expected %lx, "
          "DR6 %lx",
          hits, interrupted, rip, trap_entry(0x83), dr6);
    trap_handlers[0x83] = NULL;
}

void test_debug(void) {
    trap_handlers[1] = on_debug;
    single_step();
    instruction_breakpoint();
    data_breakpoints();
    if (strict) {
        breakpoint_before_interrupt();
        breakpoint_in_shadow();
    }
    reset();
    trap_handlers[1] = NULL;
    // In ring 3: one step, and the interrupt gate clears TF for the handler.
    extern char user_step[];
    int vector = run_user(user_step, 0, FLAG_TF);
    const struct trap* trap = &this_core()->trap;
    check(vector == 1 && trap->rip == user_address(user_step) + 1 && trap->rflags & FLAG_TF &&
              !(trap->handler_flags & FLAG_TF),
          "single step in ring 3: vector %d rip %lx rflags %lx", vector, trap->rip, trap->rflags);
    write_dr(6, 0xffff0ff0);
}
