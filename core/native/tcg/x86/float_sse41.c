// SPDX-License-Identifier: GPL-2.0-or-later
// ROUNDxx and DPPx of SSE4.1 on the host's own (see float.h for the contract). A host without SSE4.1 keeps
// the engine's helpers.
#if defined(__x86_64__)

#include "../internals.h"

#include "float_slow.h"

// The immediate is part of the instruction, so there is one form of it for each value: 8 bytes of code apart,
// called as a VectorOp (operands in XMM0 and XMM1, result in XMM0: System V AMD64 psABI 3.2.3).
#define FORM_BYTES 8
#define FORMS(name, text)                                                                         \
    __asm__(".pushsection .text\n.balign 8\ncm_forms_" name ":\n.set form, 0\n.rept 256\n\t" text \
            " $form, %xmm1, %xmm0\n\tret\n.balign 8\n.set form, form + 1\n"                       \
            ".endr\n.popsection");
FORMS("roundss", "roundss")
FORMS("roundsd", "roundsd")
FORMS("roundps", "roundps")
FORMS("roundpd", "roundpd")
FORMS("dpps", "dpps")
FORMS("dppd", "dppd")

static bool host_has_it(void) { return __builtin_cpu_supports("sse4.1"); }

static bool all_masked(const CPUX86State* env) {
    return __builtin_expect((env->mxcsr & MX_MASKS) == MX_MASKS, 1);
}

static __m128 low(const ZMMReg* reg, unsigned bytes) {
    __m128 value = _mm_setzero_ps();
    memcpy(&value, reg, bytes);
    return value;
}

#define WRAP_ROUND(name, bytes, element_size)                                                     \
    extern const uint8_t cm_forms_##name[] __attribute__((visibility("hidden")));                 \
    void CM_REAL(helper_##name##_xmm)(CPUX86State*, ZMMReg*, ZMMReg*, uint32_t);                  \
    void CM_WRAP(helper_##name##_xmm)(CPUX86State * env, ZMMReg * d, ZMMReg * s, uint32_t mode) { \
        CM_HIT(helper_##name##_xmm);                                                              \
        if (!host_has_it()) {                                                                     \
            CM_REAL(helper_##name##_xmm)(env, d, s, mode);                                        \
            return;                                                                               \
        }                                                                                         \
        VectorOp run = (VectorOp)(uintptr_t)(cm_forms_##name + (mode & 0xff) * FORM_BYTES);       \
        __m128 source = low(s, bytes);                                                            \
        if (all_masked(env)) {                                                                    \
            __m128 result = run(source, source);                                                  \
            memcpy(d, &result, bytes);                                                            \
        } else {                                                                                  \
            const SlowVector slow = {run, bytes, element_size, RESULT_EXACT_RANGE};               \
            cm_float_slow_vector(env, &slow, d, source, source, GETPC());                         \
        }                                                                                         \
    }
WRAP_ROUND(roundss, 4, 4)
WRAP_ROUND(roundsd, 8, 8)
WRAP_ROUND(roundps, 16, 4)
WRAP_ROUND(roundpd, 16, 8)

#define STEP(name)                                            \
    static __m128 name##_step(__m128 d, __m128 s) {           \
        __asm__ volatile(#name " %1, %0" : "+x"(d) : "x"(s)); \
        return d;                                             \
    }
STEP(mulps)
STEP(mulpd)
STEP(haddps)
STEP(haddpd)

// With an exception unmasked, the steps of a dot product are looked at one after the other: each of its
// multiplications and additions may raise its own (SDM vol. 2A, DPPS). The steps leave their flags; the
// result is that of the instruction itself.
static void dot_product_slowly(CPUX86State* env, ZMMReg* dest, VectorOp run, __m128 d, __m128 s,
                               uint32_t mask, unsigned element, uintptr_t ra) {
    const bool single = element == 4;
    const SlowVector multiply = {single ? mulps_step : mulpd_step, 16, (uint8_t)element, RESULT_MUL};
    const SlowVector add = {single ? haddps_step : haddpd_step, 16, (uint8_t)element, RESULT_HADD};
    __m128 factors[2] = {d, s}, sums;
    for (unsigned lane = 0; lane < 16 / element; lane++) {
        if (mask >> (4 + lane) & 1) continue;
        memset((uint8_t*)&factors[0] + lane * element, 0, element);
        memset((uint8_t*)&factors[1] + lane * element, 0, element);
    }
    cm_float_slow_vector(env, &multiply, &sums, factors[0], factors[1], ra);
    for (unsigned lanes = 16 / element; lanes > 1; lanes /= 2) {
        cm_float_slow_vector(env, &add, &sums, sums, sums, ra);
    }
    uint32_t host = host_mxcsr();
    __m128 result = run(d, s);
    set_host_mxcsr(host);
    memcpy(dest, &result, sizeof result);
}

#define WRAP_DOT_PRODUCT(name, element)                                                           \
    extern const uint8_t cm_forms_##name[] __attribute__((visibility("hidden")));                 \
    void CM_REAL(helper_##name##_xmm)(CPUX86State*, ZMMReg*, ZMMReg*, uint32_t);                  \
    void CM_WRAP(helper_##name##_xmm)(CPUX86State * env, ZMMReg * d, ZMMReg * s, uint32_t mask) { \
        CM_HIT(helper_##name##_xmm);                                                              \
        if (!host_has_it()) {                                                                     \
            CM_REAL(helper_##name##_xmm)(env, d, s, mask);                                        \
            return;                                                                               \
        }                                                                                         \
        VectorOp run = (VectorOp)(uintptr_t)(cm_forms_##name + (mask & 0xff) * FORM_BYTES);       \
        __m128 a = low(d, 16), b = low(s, 16);                                                    \
        if (all_masked(env)) {                                                                    \
            __m128 result = run(a, b);                                                            \
            memcpy(d, &result, sizeof result);                                                    \
        } else {                                                                                  \
            dot_product_slowly(env, d, run, a, b, mask, element, GETPC());                        \
        }                                                                                         \
    }
WRAP_DOT_PRODUCT(dpps, 4)
WRAP_DOT_PRODUCT(dppd, 8)

#endif
