// SPDX-License-Identifier: GPL-2.0-or-later
// The SSE instructions that run as themselves on the host, by the shape of their operands. Private to
// float.c. MMX registers are the low halves of XMM here: the host's own x87 and MMX state is left alone.
#ifndef COREMESH_TCG_X86_FLOAT_OPS_H
#define COREMESH_TCG_X86_FLOAT_OPS_H

// V(name, instruction, bytes loaded of the destination, bytes of the source, bytes stored, element bytes,
// kind)
#define FLOAT_ARITHMETIC(V, name, kind)          \
    V(name##ss, #name "ss", 4, 4, 4, 4, kind)    \
    V(name##sd, #name "sd", 8, 8, 8, 8, kind)    \
    V(name##ps, #name "ps", 16, 16, 16, 4, kind) \
    V(name##pd, #name "pd", 16, 16, 16, 8, kind)

#define FLOAT_VECTOR_OPS(V)                                     \
    FLOAT_ARITHMETIC(V, add, RESULT_ADD)                        \
    FLOAT_ARITHMETIC(V, sub, RESULT_SUB)                        \
    FLOAT_ARITHMETIC(V, mul, RESULT_MUL)                        \
    FLOAT_ARITHMETIC(V, div, RESULT_DIV)                        \
    FLOAT_ARITHMETIC(V, min, RESULT_EXACT_RANGE)                \
    FLOAT_ARITHMETIC(V, max, RESULT_EXACT_RANGE)                \
    FLOAT_ARITHMETIC(V, cmpeq, RESULT_EXACT_RANGE)              \
    FLOAT_ARITHMETIC(V, cmplt, RESULT_EXACT_RANGE)              \
    FLOAT_ARITHMETIC(V, cmple, RESULT_EXACT_RANGE)              \
    FLOAT_ARITHMETIC(V, cmpunord, RESULT_EXACT_RANGE)           \
    FLOAT_ARITHMETIC(V, cmpneq, RESULT_EXACT_RANGE)             \
    FLOAT_ARITHMETIC(V, cmpnlt, RESULT_EXACT_RANGE)             \
    FLOAT_ARITHMETIC(V, cmpnle, RESULT_EXACT_RANGE)             \
    FLOAT_ARITHMETIC(V, cmpord, RESULT_EXACT_RANGE)             \
    V(sqrtss, "sqrtss", 0, 4, 4, 4, RESULT_EXACT_RANGE)         \
    V(sqrtsd, "sqrtsd", 0, 8, 8, 8, RESULT_EXACT_RANGE)         \
    V(sqrtps, "sqrtps", 0, 16, 16, 4, RESULT_EXACT_RANGE)       \
    V(sqrtpd, "sqrtpd", 0, 16, 16, 8, RESULT_EXACT_RANGE)       \
    V(haddps, "haddps", 16, 16, 16, 4, RESULT_HADD)             \
    V(haddpd, "haddpd", 16, 16, 16, 8, RESULT_HADD)             \
    V(hsubps, "hsubps", 16, 16, 16, 4, RESULT_HSUB)             \
    V(hsubpd, "hsubpd", 16, 16, 16, 8, RESULT_HSUB)             \
    V(addsubps, "addsubps", 16, 16, 16, 4, RESULT_ADDSUB)       \
    V(addsubpd, "addsubpd", 16, 16, 16, 8, RESULT_ADDSUB)       \
    V(cvtss2sd, "cvtss2sd", 0, 4, 8, 8, RESULT_EXACT_RANGE)     \
    V(cvtsd2ss, "cvtsd2ss", 0, 8, 4, 4, RESULT_NARROW)          \
    V(cvtps2pd, "cvtps2pd", 0, 8, 16, 8, RESULT_EXACT_RANGE)    \
    V(cvtpd2ps, "cvtpd2ps", 0, 16, 16, 4, RESULT_NARROW)        \
    V(cvtdq2ps, "cvtdq2ps", 0, 16, 16, 4, RESULT_EXACT_RANGE)   \
    V(cvtdq2pd, "cvtdq2pd", 0, 8, 16, 8, RESULT_EXACT_RANGE)    \
    V(cvtpi2ps, "cvtdq2ps", 0, 8, 8, 4, RESULT_EXACT_RANGE)     \
    V(cvtpi2pd, "cvtdq2pd", 0, 8, 16, 8, RESULT_EXACT_RANGE)    \
    V(cvtps2dq, "cvtps2dq", 0, 16, 16, 4, RESULT_EXACT_RANGE)   \
    V(cvtpd2dq, "cvtpd2dq", 0, 16, 16, 4, RESULT_EXACT_RANGE)   \
    V(cvttps2dq, "cvttps2dq", 0, 16, 16, 4, RESULT_EXACT_RANGE) \
    V(cvttpd2dq, "cvttpd2dq", 0, 16, 16, 4, RESULT_EXACT_RANGE) \
    V(cvtps2pi, "cvtps2dq", 0, 8, 8, 4, RESULT_EXACT_RANGE)     \
    V(cvtpd2pi, "cvtpd2dq", 0, 16, 8, 4, RESULT_EXACT_RANGE)    \
    V(cvttps2pi, "cvttps2dq", 0, 8, 8, 4, RESULT_EXACT_RANGE)   \
    V(cvttpd2pi, "cvttpd2dq", 0, 16, 8, 4, RESULT_EXACT_RANGE)  \
    V(rcpss, "rcpss", 0, 4, 4, 4, RESULT_EXACT_RANGE)           \
    V(rcpps, "rcpps", 0, 16, 16, 4, RESULT_EXACT_RANGE)         \
    V(rsqrtss, "rsqrtss", 0, 4, 4, 4, RESULT_EXACT_RANGE)       \
    V(rsqrtps, "rsqrtps", 0, 16, 16, 4, RESULT_EXACT_RANGE)

// F(name, instruction, guest's integer type, bytes stored, element bytes)
#define FLOAT_FROM_INTEGER_OPS(F)            \
    F(cvtsi2ss, "cvtsi2ssl", uint32_t, 4, 4) \
    F(cvtsi2sd, "cvtsi2sdl", uint32_t, 8, 8) \
    F(cvtsq2ss, "cvtsi2ssq", uint64_t, 4, 4) \
    F(cvtsq2sd, "cvtsi2sdq", uint64_t, 8, 8)

// I(name, instruction, guest's integer type, bytes of the source)
#define FLOAT_TO_INTEGER_OPS(I)           \
    I(cvtss2si, "cvtss2si", int32_t, 4)   \
    I(cvtsd2si, "cvtsd2si", int32_t, 8)   \
    I(cvtss2sq, "cvtss2si", int64_t, 4)   \
    I(cvtsd2sq, "cvtsd2si", int64_t, 8)   \
    I(cvttss2si, "cvttss2si", int32_t, 4) \
    I(cvttsd2si, "cvttsd2si", int32_t, 8) \
    I(cvttss2sq, "cvttss2si", int64_t, 4) \
    I(cvttsd2sq, "cvttsd2si", int64_t, 8)

// C(name, bytes of each operand)
#define FLOAT_COMPARE_OPS(C) \
    C(ucomiss, 4)            \
    C(ucomisd, 8)            \
    C(comiss, 4)             \
    C(comisd, 8)

#endif
