// SPDX-License-Identifier: GPL-2.0-or-later
// Every instruction that may carry LOCK (SDM 2A, LOCK), and XCHG that locks by itself, in each operand size.
//
// One form for all: RDI = memory operand, RCX = register or immediate operand, RAX RDX RBX as CMPXCHG wants
// them.
#pragma once
#include "guest.h"

struct operands {
    uint64_t rcx, rax, rdx, rbx, flags;
};

struct instruction {
    const char* name;
    unsigned size;
    void (*locked)(void* memory, struct operands* operands);
    void (*plain)(void* memory, struct operands* operands);
    uint64_t flags;  // the flags the manual defines after it
};

#define FLAGS_ALL 0x8d5ull    // OF SF ZF AF PF CF
#define FLAGS_LOGIC 0x8c5ull  // AF is undefined
#define FLAGS_BIT 0x1ull      // CF alone
#define FLAG_CF 1u
#define FLAG_ZF 0x40u

#define RUN(text)                                                                     \
    __asm__ volatile("pushq %[f]\n popfq\n" text "\n pushfq\n popq %[f]"              \
                     : "+c"(operands->rcx), "+a"(operands->rax), "+d"(operands->rdx), \
                       "+b"(operands->rbx), [f] "+r"(operands->flags)                 \
                     : "D"(memory)                                                    \
                     : "memory", "cc")

#define DEFINE(name, prefix, text) \
    static void prefix##_##name(void* memory, struct operands* operands) { RUN(text); }
#define PAIR(name, text) DEFINE(name, locked, "lock " text) DEFINE(name, plain, text)

#define BINARY(op)                      \
    PAIR(op##1, #op "b %%cl, (%%rdi)")  \
    PAIR(op##2, #op "w %%cx, (%%rdi)")  \
    PAIR(op##4, #op "l %%ecx, (%%rdi)") \
    PAIR(op##8, #op "q %%rcx, (%%rdi)")
#define IMMEDIATE(op)                             \
    PAIR(op##_imm1, #op "b $0x5b, (%%rdi)")       \
    PAIR(op##_imm2, #op "w $0x5b3c, (%%rdi)")     \
    PAIR(op##_imm4, #op "l $0x7b3c1d2e, (%%rdi)") \
    PAIR(op##_imm8, #op "q $-0x35, (%%rdi)")
#define UNARY(op)                \
    PAIR(op##1, #op "b (%%rdi)") \
    PAIR(op##2, #op "w (%%rdi)") \
    PAIR(op##4, #op "l (%%rdi)") \
    PAIR(op##8, #op "q (%%rdi)")
#define BIT(op)                           \
    PAIR(op##2, #op "w %%cx, (%%rdi)")    \
    PAIR(op##4, #op "l %%ecx, (%%rdi)")   \
    PAIR(op##8, #op "q %%rcx, (%%rdi)")   \
    PAIR(op##_imm2, #op "w $13, (%%rdi)") \
    PAIR(op##_imm4, #op "l $29, (%%rdi)") \
    PAIR(op##_imm8, #op "q $51, (%%rdi)")

// clang-format off
BINARY(add) BINARY(or) BINARY(adc) BINARY(sbb) BINARY(and) BINARY(sub) BINARY(xor)
IMMEDIATE(add) IMMEDIATE(or) IMMEDIATE(adc) IMMEDIATE(sbb) IMMEDIATE(and) IMMEDIATE(sub) IMMEDIATE(xor)
UNARY(inc) UNARY(dec) UNARY(not) UNARY(neg)
BIT(bts) BIT(btr) BIT(btc)
BINARY(xadd) BINARY(cmpxchg)
PAIR(cmpxchg8b, "cmpxchg8b (%%rdi)")
PAIR(cmpxchg16b, "cmpxchg16b (%%rdi)")
// XCHG needs no prefix; the plain form is two moves.
#define EXCHANGE(size, suffix, reg, spare)                                       \
    DEFINE(xchg##size, locked, "xchg" suffix " %%" reg ", (%%rdi)")              \
    DEFINE(xchg##size, plain, "mov" suffix " (%%rdi), %%" spare "; mov" suffix " %%" reg ", (%%rdi); mov" suffix \
           " %%" spare ", %%" reg)
EXCHANGE(1, "b", "cl", "bl")
EXCHANGE(2, "w", "cx", "bx")
EXCHANGE(4, "l", "ecx", "ebx")
EXCHANGE(8, "q", "rcx", "rbx")

#define ROW(name, size, flags) {#name, size, locked_##name, plain_##name, flags}
#define ROWS(op, flags) ROW(op##1, 1, flags), ROW(op##2, 2, flags), ROW(op##4, 4, flags), ROW(op##8, 8, flags)
#define BIT_ROWS(op) ROW(op##2, 2, FLAGS_BIT), ROW(op##4, 4, FLAGS_BIT), ROW(op##8, 8, FLAGS_BIT), \
    ROW(op##_imm2, 2, FLAGS_BIT), ROW(op##_imm4, 4, FLAGS_BIT), ROW(op##_imm8, 8, FLAGS_BIT)

static const struct instruction instructions[] = {
    ROWS(add, FLAGS_ALL), ROWS(or, FLAGS_LOGIC), ROWS(adc, FLAGS_ALL), ROWS(sbb, FLAGS_ALL),
    ROWS(and, FLAGS_LOGIC), ROWS(sub, FLAGS_ALL), ROWS(xor, FLAGS_LOGIC),
    ROWS(add_imm, FLAGS_ALL), ROWS(or_imm, FLAGS_LOGIC), ROWS(adc_imm, FLAGS_ALL), ROWS(sbb_imm, FLAGS_ALL),
    ROWS(and_imm, FLAGS_LOGIC), ROWS(sub_imm, FLAGS_ALL), ROWS(xor_imm, FLAGS_LOGIC),
    ROWS(inc, FLAGS_ALL), ROWS(dec, FLAGS_ALL), ROWS(not, FLAGS_ALL), ROWS(neg, FLAGS_ALL),
    BIT_ROWS(bts), BIT_ROWS(btr), BIT_ROWS(btc),
    ROWS(xadd, FLAGS_ALL), ROWS(cmpxchg, FLAGS_ALL), ROWS(xchg, FLAGS_ALL),
    ROW(cmpxchg8b, 8, FLAGS_ALL), ROW(cmpxchg16b, 16, FLAGS_ALL),
};
// clang-format on
#define INSTRUCTIONS (sizeof instructions / sizeof instructions[0])
