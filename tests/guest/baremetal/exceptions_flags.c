// SPDX-License-Identifier: GPL-2.0-or-later
// Instructions that change some flags and keep the others, after each kind of instruction that sets them all.
#include "exceptions.h"

#define ZF 0x40ull
// As operands these have every bit that is not an arithmetic flag: TF, IF, DF, IOPL, NT, RF, VM, AC.
#define LEFT 0x00ffffffffff7f7eull
#define RIGHT 0x7f5bffffffffff33ull

static struct { uint64_t low, high; } memory __attribute__((aligned(16)));

// RFLAGS after `setter`, and then `exchange`: with RAX and RDX equal to memory or not.
#define PAIR(name, setter, exchange)                                                             \
    static uint64_t name(bool equal) {                                                           \
        uint64_t flags, scratch = LEFT, a = memory.low ^ !equal;                                 \
        uint64_t d = memory.high ? memory.high : memory.low >> 32;                               \
        __asm__ volatile("mov %[right], %%rcx\n" setter "\n" exchange "\n pushfq\n pop %[flags]" \
                         : [flags] "=r"(flags), "+S"(scratch), "+a"(a), "+d"(d)                  \
                         : [right] "r"(RIGHT), "b"(LEFT), "D"(&memory)                           \
                         : "rcx", "memory", "cc");                                               \
        return flags;                                                                            \
    }

#define ALL(row, setter)                                    \
    PAIR(row##_plain, setter, "")                           \
    PAIR(row##_8b, setter, "cmpxchg8b (%%rdi)")             \
    PAIR(row##_locked_8b, setter, "lock cmpxchg8b (%%rdi)") \
    PAIR(row##_16b, setter, "cmpxchg16b (%%rdi)")           \
    PAIR(row##_locked_16b, setter, "lock cmpxchg16b (%%rdi)")

#define SETTERS(X)                                      \
    X(add_b, "add %%cl, %%sil")                         \
    X(add_w, "add %%cx, %%si")                          \
    X(add_l, "add %%ecx, %%esi")                        \
    X(add_q, "add %%rcx, %%rsi")                        \
    X(adc_l, "stc\n adc %%ecx, %%esi")                  \
    X(adc_q, "stc\n adc %%rcx, %%rsi")                  \
    X(sub_l, "sub %%ecx, %%esi")                        \
    X(sub_q, "sub %%rcx, %%rsi")                        \
    X(sbb_q, "stc\n sbb %%rcx, %%rsi")                  \
    X(cmp_q, "cmp %%rcx, %%rsi")                        \
    X(and_q, "and %%rcx, %%rsi")                        \
    X(test_q, "test %%rcx, %%rcx")                      \
    X(inc_q, "stc\n inc %%rsi")                         \
    X(dec_l, "clc\n dec %%esi")                         \
    X(neg_q, "neg %%rsi")                               \
    X(shl_q, "shl $1, %%rsi")                           \
    X(sar_q, "sar $1, %%rsi")                           \
    X(shift_by_cl, "shl %%cl, %%rsi")                   \
    X(rcl_q, "test %%rcx, %%rcx\n stc\n rcl $1, %%rsi") \
    X(imul_q, "imul %%rcx, %%rsi")                      \
    X(bt_q, "test %%rcx, %%rcx\n bt $3, %%rsi")         \
    X(bsf_q, "test %%rcx, %%rcx\n bsf %%rcx, %%rsi")    \
    X(popcnt_q, "popcnt %%rcx, %%rsi")                  \
    X(xadd_q, "xadd %%rcx, %%rsi")                      \
    X(sahf, "mov %%rax, %%rsi\n mov $0xd5, %%ah\n sahf\n mov %%rsi, %%rax")

SETTERS(ALL)

struct row {
    const char* name;
    uint64_t (*after[5])(bool equal);
};
#define ROW(row, setter) {#row, {row##_plain, row##_8b, row##_locked_8b, row##_16b, row##_locked_16b}},
static const struct row rows[] = {SETTERS(ROW)};
static const char* const exchanges[] = {"", "cmpxchg8b", "lock cmpxchg8b", "cmpxchg16b", "lock cmpxchg16b"};

extern char user_exchange_cli[], user_exchange_fault[];

void test_flags(void) {
    for (const struct row* row = rows; row < rows + sizeof rows / sizeof *rows; row++) {
        for (int exchange = 1; exchange < 5; exchange++) {
            memory.low = 0x1234567890abcdefull;
            memory.high = exchange < 3 ? 0 : 0xfedcba0987654321ull;
            for (int equal = 0; equal < 2; equal++) {
                // The comparison needs EAX and EDX apart from the setter's operands, so it changes ZF alone.
                uint64_t expected = (row->after[0](true) & ~ZF) | (equal ? ZF : 0);
                uint64_t flags = row->after[exchange](equal);
                check(flags == expected, "%s, %s, %s: RFLAGS %lx, expected %lx", row->name,
                      exchanges[exchange], equal ? "equal" : "not equal", flags, expected);
            }
        }
    }
    // Ring 3 gains no IOPL by it, seen by an instruction that asks for it and by the flags of an interrupt.
    int vector = run_user(user_exchange_cli, LEFT, 0);
    const struct trap* trap = &this_core()->trap;
    check(vector == 13, "cli in ring 3 after add and cmpxchg8b: vector %d", vector);
    check(!(trap->rflags & 0x7700), "cli in ring 3 after add and cmpxchg8b: saved RFLAGS %lx", trap->rflags);
    vector = run_user(user_exchange_fault, LEFT, 0);
    check(vector == 0x80 && !(trap->rflags & 0x47f00), "int in ring 3 after add and cmpxchg16b: RFLAGS %lx",
          trap->rflags);
}
