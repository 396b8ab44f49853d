// SPDX-License-Identifier: GPL-2.0-or-later
// The instructions under test. Each is a loop over rows that runs, byte for byte, on the bare host and in the
// engine.
#ifndef COREMESH_TESTS_FLOAT_BLOCKS_H
#define COREMESH_TESTS_FLOAT_BLOCKS_H

#include <stdint.h>

// One case: what the loop loads, and what it leaves. The offsets are used by the loops below.
typedef struct {
    uint32_t mxcsr_in;   // 0
    uint32_t unused;     // 4
    uint64_t gpr_in;     // 8: rax
    uint8_t d_in[16];    // 16: xmm0
    uint8_t s_in[16];    // 32: xmm1, and what the forms with a memory operand read
    uint8_t d_out[16];   // 48: xmm0
    uint64_t gpr_out;    // 64: rax
    uint32_t mxcsr_out;  // 72
    uint32_t vector;     // 76: of the exception raised, or 0
    uint8_t area[16];    // 80: scratch
} Row;

#define ROW_BYTES "96"

typedef enum { SINGLES, DOUBLES, INTEGERS } Elements;

// B(name, before, the instruction, after, elements of the source, wrapped helper)
#define PACKED_AND_SCALAR(B, op)                             \
    B(op##ss, "", #op "ss %xmm1, %xmm0", "", SINGLES)        \
    B(op##sd, "", #op "sd %xmm1, %xmm0", "", DOUBLES)        \
    B(op##ps, "", #op "ps %xmm1, %xmm0", "", SINGLES)        \
    B(op##pd, "", #op "pd %xmm1, %xmm0", "", DOUBLES)        \
    B(op##ss_mem, "", #op "ss 32(%rdi), %xmm0", "", SINGLES) \
    B(op##sd_mem, "", #op "sd 32(%rdi), %xmm0", "", DOUBLES) \
    B(op##ps_mem, "", #op "ps 32(%rdi), %xmm0", "", SINGLES) \
    B(op##pd_mem, "", #op "pd 32(%rdi), %xmm0", "", DOUBLES)

#define REGISTER_AND_MEMORY(B, op, elements)     \
    B(op, "", #op " %xmm1, %xmm0", "", elements) \
    B(op##_mem, "", #op " 32(%rdi), %xmm0", "", elements)

#define ROUNDINGS(B, op, elements)                                 \
    B(op##_nearest, "", #op " $0, %xmm1, %xmm0", "", elements)     \
    B(op##_down, "", #op " $1, %xmm1, %xmm0", "", elements)        \
    B(op##_up, "", #op " $2, %xmm1, %xmm0", "", elements)          \
    B(op##_to_zero, "", #op " $3, %xmm1, %xmm0", "", elements)     \
    B(op##_by_mxcsr, "", #op " $4, %xmm1, %xmm0", "", elements)    \
    B(op##_quietly, "", #op " $0xa, %xmm1, %xmm0", "", elements)   \
    B(op##_reserved, "", #op " $0xfc, %xmm1, %xmm0", "", elements) \
    B(op##_mem, "", #op " $0, 32(%rdi), %xmm0", "", elements)

#define DOT_PRODUCTS(B, op, elements)                            \
    B(op##_all, "", #op " $0xff, %xmm1, %xmm0", "", elements)    \
    B(op##_none, "", #op " $0x0f, %xmm1, %xmm0", "", elements)   \
    B(op##_first, "", #op " $0x11, %xmm1, %xmm0", "", elements)  \
    B(op##_second, "", #op " $0x22, %xmm1, %xmm0", "", elements) \
    B(op##_3d, "", #op " $0x71, %xmm1, %xmm0", "", elements)     \
    B(op##_odd, "", #op " $0xa5, %xmm1, %xmm0", "", elements)    \
    B(op##_mem, "", #op " $0x3f, 32(%rdi), %xmm0", "", elements)

#define FLAGS(B, op, elements)                                                         \
    B(op, "cmp %rax, %rax", #op " %xmm1, %xmm0", "lahf\n\tmovzwl %ax, %eax", elements) \
    B(op##_mem, "cmp %rax, %rax", #op " 32(%rdi), %xmm0", "lahf\n\tmovzwl %ax, %eax", elements)

#define FLOAT_BLOCKS(B)                                                                      \
    PACKED_AND_SCALAR(B, add)                                                                \
    PACKED_AND_SCALAR(B, sub)                                                                \
    PACKED_AND_SCALAR(B, mul)                                                                \
    PACKED_AND_SCALAR(B, div)                                                                \
    PACKED_AND_SCALAR(B, min)                                                                \
    PACKED_AND_SCALAR(B, max)                                                                \
    PACKED_AND_SCALAR(B, sqrt)                                                               \
    PACKED_AND_SCALAR(B, cmpeq)                                                              \
    PACKED_AND_SCALAR(B, cmplt)                                                              \
    PACKED_AND_SCALAR(B, cmple)                                                              \
    PACKED_AND_SCALAR(B, cmpunord)                                                           \
    PACKED_AND_SCALAR(B, cmpneq)                                                             \
    PACKED_AND_SCALAR(B, cmpnlt)                                                             \
    PACKED_AND_SCALAR(B, cmpnle)                                                             \
    PACKED_AND_SCALAR(B, cmpord)                                                             \
    B(addsd_self, "", "addsd %xmm0, %xmm0", "", DOUBLES)                                     \
    REGISTER_AND_MEMORY(B, haddps, SINGLES)                                                  \
    REGISTER_AND_MEMORY(B, haddpd, DOUBLES)                                                  \
    REGISTER_AND_MEMORY(B, hsubps, SINGLES)                                                  \
    REGISTER_AND_MEMORY(B, hsubpd, DOUBLES)                                                  \
    REGISTER_AND_MEMORY(B, addsubps, SINGLES)                                                \
    REGISTER_AND_MEMORY(B, addsubpd, DOUBLES)                                                \
    REGISTER_AND_MEMORY(B, rcpss, SINGLES)                                                   \
    REGISTER_AND_MEMORY(B, rcpps, SINGLES)                                                   \
    REGISTER_AND_MEMORY(B, rsqrtss, SINGLES)                                                 \
    REGISTER_AND_MEMORY(B, rsqrtps, SINGLES)                                                 \
    REGISTER_AND_MEMORY(B, cvtss2sd, SINGLES)                                                \
    REGISTER_AND_MEMORY(B, cvtsd2ss, DOUBLES)                                                \
    REGISTER_AND_MEMORY(B, cvtps2pd, SINGLES)                                                \
    REGISTER_AND_MEMORY(B, cvtpd2ps, DOUBLES)                                                \
    REGISTER_AND_MEMORY(B, cvtdq2ps, INTEGERS)                                               \
    REGISTER_AND_MEMORY(B, cvtdq2pd, INTEGERS)                                               \
    REGISTER_AND_MEMORY(B, cvtps2dq, SINGLES)                                                \
    REGISTER_AND_MEMORY(B, cvtpd2dq, DOUBLES)                                                \
    REGISTER_AND_MEMORY(B, cvttps2dq, SINGLES)                                               \
    REGISTER_AND_MEMORY(B, cvttpd2dq, DOUBLES)                                               \
    B(cvtpi2ps, "movq 32(%rdi), %mm1", "cvtpi2ps %mm1, %xmm0", "", INTEGERS)                 \
    B(cvtpi2pd, "movq 32(%rdi), %mm1", "cvtpi2pd %mm1, %xmm0", "", INTEGERS)                 \
    B(cvtps2pi, "movq 16(%rdi), %mm0", "cvtps2pi %xmm1, %mm0", "movq %mm0, %rax", SINGLES)   \
    B(cvtpd2pi, "movq 16(%rdi), %mm0", "cvtpd2pi %xmm1, %mm0", "movq %mm0, %rax", DOUBLES)   \
    B(cvttps2pi, "movq 16(%rdi), %mm0", "cvttps2pi %xmm1, %mm0", "movq %mm0, %rax", SINGLES) \
    B(cvttpd2pi, "movq 16(%rdi), %mm0", "cvttpd2pi %xmm1, %mm0", "movq %mm0, %rax", DOUBLES) \
    B(cvtsi2ss, "", "cvtsi2ss %eax, %xmm0", "", INTEGERS)                                    \
    B(cvtsi2sd, "", "cvtsi2sd %eax, %xmm0", "", INTEGERS)                                    \
    B(cvtsq2ss, "", "cvtsi2ssq %rax, %xmm0", "", INTEGERS)                                   \
    B(cvtsq2sd, "", "cvtsi2sdq %rax, %xmm0", "", INTEGERS)                                   \
    B(cvtss2si, "", "cvtss2si %xmm1, %eax", "", SINGLES)                                     \
    B(cvtsd2si, "", "cvtsd2si %xmm1, %eax", "", DOUBLES)                                     \
    B(cvtss2sq, "", "cvtss2si 32(%rdi), %rax", "", SINGLES)                                  \
    B(cvtsd2sq, "", "cvtsd2si 32(%rdi), %rax", "", DOUBLES)                                  \
    B(cvttss2si, "", "cvttss2si %xmm1, %eax", "", SINGLES)                                   \
    B(cvttsd2si, "", "cvttsd2si %xmm1, %eax", "", DOUBLES)                                   \
    B(cvttss2sq, "", "cvttss2si 32(%rdi), %rax", "", SINGLES)                                \
    B(cvttsd2sq, "", "cvttsd2si 32(%rdi), %rax", "", DOUBLES)                                \
    ROUNDINGS(B, roundss, SINGLES)                                                           \
    ROUNDINGS(B, roundsd, DOUBLES)                                                           \
    ROUNDINGS(B, roundps, SINGLES)                                                           \
    ROUNDINGS(B, roundpd, DOUBLES)                                                           \
    DOT_PRODUCTS(B, dpps, SINGLES)                                                           \
    DOT_PRODUCTS(B, dppd, DOUBLES)                                                           \
    FLAGS(B, ucomiss, SINGLES)                                                               \
    FLAGS(B, ucomisd, DOUBLES)                                                               \
    FLAGS(B, comiss, SINGLES)                                                                \
    FLAGS(B, comisd, DOUBLES)

typedef struct {
    const char* name;
    const uint8_t *begin, *instruction, *next, *end;
    Elements elements;
} Block;

#define BLOCK_ENTRY(name, before, text, after, elements)                                                 \
    {#name,   block_##name##_begin, block_##name##_instruction, block_##name##_next, block_##name##_end, \
     elements},

#define TIMED_ENTRY(name, body) {#name, timed_##name##_begin, NULL, NULL, timed_##name##_end, DOUBLES},

#define DECLARE_BLOCK(name, before, instruction, after, elements) ROW_LOOP(name, before, instruction, after)

// The loop: rdi points to the first row, rsi counts them.
#define ROW_LOOP(name, before, instruction, after)                                                    \
    __asm__(                                                                                          \
        ".pushsection .text\n"                                                                        \
        "block_" #name                                                                                \
        "_begin:\n\t"                                                                                 \
        "ldmxcsr (%rdi)\n\tmov 8(%rdi), %rax\n\t"                                                     \
        "movaps 16(%rdi), %xmm0\n\tmovaps 32(%rdi), %xmm1\n\t" before "\nblock_" #name                \
        "_instruction:\n\t" instruction "\nblock_" #name "_next:\n\t" after                           \
        "\n\tmovaps %xmm0, 48(%rdi)\n\tmov %rax, 64(%rdi)\n\t"                                        \
        "stmxcsr 72(%rdi)\n\tadd $" ROW_BYTES                                                         \
        ", %rdi\n\t"                                                                                  \
        "dec %rsi\n\tjnz block_" #name                                                                \
        "_begin\n"                                                                                    \
        "block_" #name                                                                                \
        "_end:\n\tret\n"                                                                              \
        ".popsection");                                                                               \
    extern const uint8_t block_##name##_begin[], block_##name##_instruction[], block_##name##_next[], \
        block_##name##_end[];

// T(name, loop body): timed with ordinary values.
#define TIMED_BLOCKS(T)                                                    \
    T(empty, "")                                                           \
    T(mul_add_sd, "mulsd %xmm1, %xmm0\n\taddsd %xmm2, %xmm0")              \
    T(mul_add_ss, "mulss %xmm4, %xmm3\n\taddss %xmm5, %xmm3")              \
    T(div_sd, "divsd %xmm1, %xmm0")                                        \
    T(sqrt_sd, "sqrtsd %xmm2, %xmm0")                                      \
    T(mul_add_pd, "mulpd %xmm1, %xmm0\n\taddpd %xmm2, %xmm0")              \
    T(mul_add_ps, "mulps %xmm4, %xmm3\n\taddps %xmm5, %xmm3")              \
    T(int_to_sd_and_back, "cvtsi2sd %eax, %xmm6\n\tcvttsd2si %xmm6, %eax") \
    T(ss_to_sd_and_back, "cvtss2sd %xmm3, %xmm6\n\tcvtsd2ss %xmm6, %xmm7") \
    T(ucomisd_jump, "ucomisd %xmm1, %xmm2\n\tjp 2f\n2:")                   \
    T(cmp_pd, "movapd %xmm1, %xmm6\n\tcmpltpd %xmm2, %xmm6")               \
    T(max_sd, "maxsd %xmm1, %xmm0")                                        \
    T(saxpy_memory,                                                        \
      "movss 32(%rdi), %xmm6\n\tmulss %xmm4, %xmm6\n\taddss 36(%rdi), %xmm6\n\tmovss %xmm6, 80(%rdi)")

#define TIMED_LOOP(name, body)            \
    __asm__(                              \
        ".pushsection .text\n"            \
        "timed_" #name "_begin:\n\t" body \
        "\n\t"                            \
        "dec %rsi\n\tjnz timed_" #name    \
        "_begin\n"                        \
        "timed_" #name                    \
        "_end:\n\tret\n"                  \
        ".popsection");                   \
    extern const uint8_t timed_##name##_begin[], timed_##name##_end[];

#endif
