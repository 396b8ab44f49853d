// SPDX-License-Identifier: GPL-2.0-or-later
// The engine's SSE helpers, replaced by the same instructions of an x86-64 host (see float.h for the
// contract). Operands are read in pieces of at most 8 bytes: translated code writes XMM registers by halves,
// and a 16-byte load after two 8-byte stores cannot be forwarded from the store buffer.
#if defined(__x86_64__)

#include "../internals.h"

#include "float.h"
#include "float_ops.h"
#include "float_slow.h"

// The thread's MXCSR has the guest's controls, and no exception can be due.
static inline bool all_masked(const CPUX86State* env) {
    return __builtin_expect((env->mxcsr & MX_MASKS) == MX_MASKS, 1);
}

static inline __m128 load0(const void* p) {
    (void)p;
    return _mm_setzero_ps();  // not read by the instruction; a zero breaks the false dependency
}

static inline __m128 load4(const void* p) { return _mm_load_ss(p); }

static inline __m128 load8(const void* p) { return _mm_castsi128_ps(_mm_loadl_epi64(p)); }

static inline __m128 load16(const void* p) {
    __m128 value = load8(p);
    __asm__("movhps %1, %0"
            : "+x"(value)
            : "m"(((const uint64_t*)p)[1]));  // the compiler would fuse an intrinsic
    return value;
}

static inline void store4(void* p, __m128 value) { _mm_store_ss(p, value); }

static inline void store8(void* p, __m128 value) { _mm_storel_pi(p, value); }

static inline void store16(void* p, __m128 value) { _mm_storeu_ps(p, value); }

#define WRAP_VECTOR(name, text, d_bytes, s_bytes, out_bytes, element_size, result_kind)    \
    static inline __m128 run_##name(__m128 d, __m128 s) {                                  \
        __asm__ volatile(text " %1, %0" : "+x"(d) : "x"(s));                               \
        return d;                                                                          \
    }                                                                                      \
    void CM_WRAP(helper_##name)(CPUX86State * env, void* d, void* s) {                     \
        static const SlowVector slow = {run_##name, out_bytes, element_size, result_kind}; \
        CM_HIT(helper_##name);                                                             \
        __m128 a = load##d_bytes(d), b = load##s_bytes(s);                                 \
        if (all_masked(env))                                                               \
            store##out_bytes(d, run_##name(a, b));                                         \
        else                                                                               \
            cm_float_slow_vector(env, &slow, d, a, b, GETPC());                            \
    }
FLOAT_VECTOR_OPS(WRAP_VECTOR)

#define WRAP_FROM_INTEGER(name, text, type, out_bytes, element_size)                              \
    static inline __m128 convert_##name(type value) {                                             \
        __m128 d = _mm_setzero_ps();                                                              \
        __asm__ volatile(text " %1, %0" : "+x"(d) : "r"(value));                                  \
        return d;                                                                                 \
    }                                                                                             \
    static __m128 run_##name(__m128 d, __m128 s) {                                                \
        (void)d;                                                                                  \
        return convert_##name((type)_mm_cvtsi128_si64(_mm_castps_si128(s)));                      \
    }                                                                                             \
    void CM_WRAP(helper_##name)(CPUX86State * env, void* d, type value) {                         \
        static const SlowVector slow = {run_##name, out_bytes, element_size, RESULT_EXACT_RANGE}; \
        CM_HIT(helper_##name);                                                                    \
        if (all_masked(env))                                                                      \
            store##out_bytes(d, convert_##name(value));                                           \
        else                                                                                      \
            cm_float_slow_vector(env, &slow, d, _mm_setzero_ps(),                                 \
                                 _mm_castsi128_ps(_mm_cvtsi64_si128((int64_t)value)), GETPC());   \
    }
FLOAT_FROM_INTEGER_OPS(WRAP_FROM_INTEGER)

#define WRAP_TO_INTEGER(name, text, type, s_bytes)                             \
    static inline int64_t run_##name(__m128 d, __m128 s) {                     \
        type value;                                                            \
        (void)d;                                                               \
        __asm__ volatile(text " %1, %0" : "=r"(value) : "x"(s));               \
        return value;                                                          \
    }                                                                          \
    type CM_WRAP(helper_##name)(CPUX86State * env, void* s) {                  \
        CM_HIT(helper_##name);                                                 \
        __m128 zero = _mm_setzero_ps(), b = load##s_bytes(s);                  \
        if (all_masked(env)) return (type)run_##name(zero, b);                 \
        return (type)cm_float_slow_integer(env, run_##name, zero, b, GETPC()); \
    }
FLOAT_TO_INTEGER_OPS(WRAP_TO_INTEGER)

// The result is in ZF, PF and CF; OF, SF and AF are cleared (SDM vol. 2, COMISD). LAHF brings bits 0-7 of
// RFLAGS in one go. The translator has already said that the guest's flags are those in cc_src.
#define WRAP_COMPARE(name, bytes)                                                     \
    static inline int64_t run_##name(__m128 d, __m128 s) {                            \
        uint16_t ax;                                                                  \
        __asm__ volatile(#name " %2, %1\n\tlahf" : "=a"(ax) : "x"(d), "x"(s) : "cc"); \
        return ax >> 8 & (CC_Z | CC_P | CC_C);                                        \
    }                                                                                 \
    void CM_WRAP(helper_##name)(CPUX86State * env, void* d, void* s) {                \
        CM_HIT(helper_##name);                                                        \
        __m128 a = load##bytes(d), b = load##bytes(s);                                \
        if (all_masked(env))                                                          \
            env->cc_src = run_##name(a, b);                                           \
        else                                                                          \
            env->cc_src = cm_float_slow_integer(env, run_##name, a, b, GETPC());      \
    }
FLOAT_COMPARE_OPS(WRAP_COMPARE)

#endif
