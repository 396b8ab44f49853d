// SPDX-License-Identifier: GPL-2.0-or-later
// With an exception unmasked, each instruction runs masked on the host; then the flags say whether the
// guest's masks would have let it through (SDM vol. 1, 11.5 and appendix E). The flags of the thread's MXCSR
// never include one that the guest has unmasked, so most instructions are done once those bits are seen to be
// clear.
#if defined(__x86_64__)

#include <float.h>  // the standard one

#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"

#include "float_slow.h"

enum { PRE_COMPUTATION = MX_IE | MX_DE | MX_ZE, VECTOR_XM = 19, VECTOR_UD = 6 };

static uint32_t unmasked(uint32_t mxcsr) { return ~(mxcsr >> MX_MASK_SHIFT) & MX_FLAGS; }

// The guest's controls with every exception masked. Flush-to-zero works only while underflow is masked (SDM
// vol. 1, 10.2.3.3).
static uint32_t masked_controls(uint32_t mxcsr) {
    if (unmasked(mxcsr) & MX_UE) mxcsr &= ~(uint32_t)MX_FZ;
    return (mxcsr & ~(uint32_t)MX_FLAGS) | MX_MASKS;
}

static __m128 run_masked(VectorOp run, __m128 d, __m128 s, uint32_t controls, uint32_t* flags) {
    uint32_t host = host_mxcsr();
    set_host_mxcsr(controls);
    __m128 result = run(d, s);
    *flags = host_mxcsr() & MX_FLAGS;
    set_host_mxcsr(host);
    return result;
}

static void raise_unmasked(CPUX86State* env, uint32_t flags, uintptr_t ra) {
    env->mxcsr |= flags;
    if (flags & unmasked(env->mxcsr))
        raise_exception_ra(env, env->cr[4] & CR4_OSXMMEXCPT_MASK ? VECTOR_XM : VECTOR_UD, ra);
}

// The result rounded to the element's precision in the x87's wider range of exponents, which is what "huge",
// "tiny" and "inexact" are defined on when overflow or underflow is unmasked (SDM vol. 1, 4.9.1.4
// to 4.9.1.6). Returns inexact.
static bool wide_result(ResultKind kind, long double a, long double b, bool single, uint32_t mxcsr,
                        long double* result) {
    uint16_t old_cw, status;
    uint16_t cw = 0x3f | (single ? 0 : 0x200) | ((mxcsr >> MX_RC_SHIFT & 3) << 10);
    __asm__ volatile("fnstcw %0" : "=m"(old_cw));
    __asm__ volatile("fnclex\n\tfldcw %0" : : "m"(cw));
    switch (kind) {
        case RESULT_SUB:
            __asm__ volatile("fsub %2, %0" : "=t"(a) : "0"(a), "u"(b));
            break;
        case RESULT_MUL:
            __asm__ volatile("fmul %2, %0" : "=t"(a) : "0"(a), "u"(b));
            break;
        case RESULT_DIV:
            __asm__ volatile("fdiv %2, %0" : "=t"(a) : "0"(a), "u"(b));
            break;
        default:
            __asm__ volatile("fadd %2, %0" : "=t"(a) : "0"(a), "u"(b));
            break;
    }
    __asm__ volatile("fnstsw %0\n\tfnclex\n\tfldcw %1" : "=m"(status) : "m"(old_cw));
    *result = a;
    return status & 0x20;
}

typedef union {
    __m128 v;
    float f[4];
    double d[2];
    uint32_t f_bits[4];
    uint64_t d_bits[2];
} Lanes;

static long double element(const Lanes* x, int i, bool single, uint32_t mxcsr) {
    long double value = single ? (long double)x->f[i] : (long double)x->d[i];
    bool denormal = single ? !(x->f_bits[i] & 0x7f800000) : !(x->d_bits[i] & 0x7ff0000000000000);
    return (mxcsr & MX_DAZ) && denormal ? 0 : value;
}

// One element's flags after the computation, where the masks matter: `native` are those of a masked run of it
// alone.
static uint32_t element_flags(ResultKind kind, long double a, long double b, bool single, uint32_t mxcsr,
                              uint32_t native) {
    long double largest = single ? FLT_MAX : DBL_MAX, smallest = single ? FLT_MIN : DBL_MIN, result;
    if (native & PRE_COMPUTATION & ~MX_DE) return native;
    bool inexact = wide_result(kind, a, b, single, mxcsr, &result);
    long double size = result < 0 ? -result : result;
    if (size <= LDBL_MAX && size > largest && (unmasked(mxcsr) & MX_OE)) return MX_OE | (inexact ? MX_PE : 0);
    if (size > 0 && size < smallest && (unmasked(mxcsr) & MX_UE)) return MX_UE | (inexact ? MX_PE : 0);
    return native;
}

static uint32_t post_computation_flags(const SlowVector* op, __m128 d, __m128 s, uint32_t mxcsr) {
    Lanes x = {.v = d}, y = {.v = s};
    bool single = op->element_bytes == 4;
    int lanes =
        op->kind == RESULT_NARROW ? (op->result_bytes == 4 ? 1 : 2) : op->result_bytes / op->element_bytes;
    uint32_t flags = 0;
    for (int i = 0; i < lanes; i++) {
        ResultKind kind = op->kind;
        Lanes one = {.v = single ? _mm_set1_ps(1) : _mm_castpd_ps(_mm_set1_pd(1))}, other = one;
        long double a, b;
        uint32_t native;
        if (kind == RESULT_NARROW) {
            a = element(&y, i, false, mxcsr), b = 0;
            other.v = _mm_castpd_ps(_mm_set_sd(y.d[i]));
        } else if (kind == RESULT_HADD || kind == RESULT_HSUB) {
            const Lanes* from = i < lanes / 2 ? &x : &y;
            int at = 2 * i % lanes;
            kind = kind == RESULT_HADD ? RESULT_ADD : RESULT_SUB;
            a = element(from, at, single, mxcsr), b = element(from, at + 1, single, mxcsr);
            if (single)
                one.f_bits[0] = from->f_bits[at], one.f_bits[1] = from->f_bits[at + 1];
            else
                one.d_bits[0] = from->d_bits[at], one.d_bits[1] = from->d_bits[at + 1];
        } else {
            if (kind == RESULT_ADDSUB) kind = i & 1 ? RESULT_ADD : RESULT_SUB;
            a = element(&x, i, single, mxcsr), b = element(&y, i, single, mxcsr);
            if (single)
                one.f_bits[i] = x.f_bits[i], other.f_bits[i] = y.f_bits[i];
            else
                one.d_bits[i] = x.d_bits[i], other.d_bits[i] = y.d_bits[i];
        }
        run_masked(op->run, one.v, other.v, masked_controls(mxcsr), &native);
        flags |= element_flags(kind, a, b, single, mxcsr, native);
    }
    // Widening an SNaN or a denormal, and comparing a NaN, raise flags of the host's x87, which would become
    // the guest's at its next x87 instruction (x87.h).
    __asm__ volatile("fnclex");
    return flags;
}

void cm_float_slow_vector(CPUX86State* env, const SlowVector* op, void* dest, __m128 d, __m128 s,
                          uintptr_t ra) {
    uint32_t mxcsr = env->mxcsr, host = host_mxcsr(), flags;
    __m128 result;
    // An exact tiny result raises no flag while underflow is masked, but would be an exception.
    bool tiny_matters = op->kind != RESULT_EXACT_RANGE && (unmasked(mxcsr) & MX_UE);
    if (!tiny_matters) {
        result = op->run(d, s);
        if (!(host_mxcsr() & unmasked(mxcsr))) {
            memcpy(dest, &result, op->result_bytes);
            return;
        }
        set_host_mxcsr(host);
    }
    result = run_masked(op->run, d, s, masked_controls(mxcsr), &flags);
    if (flags & unmasked(mxcsr) & PRE_COMPUTATION)
        flags &= PRE_COMPUTATION;  // the computation itself is not reached: SDM vol. 1, 4.9.2
    else if (op->kind != RESULT_EXACT_RANGE && (unmasked(mxcsr) & (MX_OE | MX_UE)))
        flags = (flags & PRE_COMPUTATION) | post_computation_flags(op, d, s, mxcsr);
    raise_unmasked(env, flags, ra);
    memcpy(dest, &result, op->result_bytes);
}

int64_t cm_float_slow_integer(CPUX86State* env, IntegerOp run, __m128 d, __m128 s, uintptr_t ra) {
    uint32_t host = host_mxcsr();
    int64_t result = run(d, s);
    if (!(host_mxcsr() & unmasked(env->mxcsr))) return result;
    set_host_mxcsr(masked_controls(env->mxcsr));
    result = run(d, s);
    uint32_t flags = host_mxcsr() & MX_FLAGS;
    set_host_mxcsr(host);
    raise_unmasked(env, flags, ra);
    return result;
}

#endif
