// SPDX-License-Identifier: GPL-2.0-or-later
// x87 instructions of one or two operands on the stack: roots, remainders, sines, logarithms (see
// x87_quick.h).
#if defined(__x86_64__)

#include "x87_quick.h"

// --- One or two operands, one result ---

#define UNARY(name, conditions)                                          \
    static inline uint16_t compute_##name(floatx80* top) {               \
        uint16_t status;                                                 \
        __asm__ volatile("fldt %1\n\t" #name "\n\tfnstsw %0\n\tfstpt %1" \
                         : "=&a"(status), "+m"(*top)                     \
                         :                                               \
                         : ON_STACK);                                    \
        return status;                                                   \
    }                                                                    \
    REGISTER_FUNCTION(name) {                                            \
        uint16_t status;                                                 \
        WHOLE_UNLESS(quiet(env) && full(env, 0))                         \
        floatx80* top = st(env, 0);                                      \
        const floatx80 before = get(top);                                \
        UNDER_CONTROL(env, status = compute_##name(top));                \
        UNDO_IF_RAISED(top)                                              \
        merge(env, status, conditions);                                  \
        x87_note(env, op);                                               \
    }
UNARY(fsqrt, FSW_C1)
UNARY(frndint, FSW_C1)
UNARY(f2xm1, FSW_C1)
UNARY(fsin, FSW_C1 | FSW_C2)
UNARY(fcos, FSW_C1 | FSW_C2)

REGISTER_FUNCTION(fchs) {
    WHOLE_UNLESS(quiet(env) && full(env, 0))
    st(env, 0)->high ^= 0x8000;
    clear_c1(env);
    x87_note(env, op);
}

REGISTER_FUNCTION(fabs_) {
    WHOLE_UNLESS(quiet(env) && full(env, 0))
    st(env, 0)->high &= 0x7fff;
    clear_c1(env);
    x87_note(env, op);
}

// A finite number in a format that is supported: exponent and integer bit say so.
static inline bool is_finite(const floatx80* value) {
    const unsigned exponent = value->high & 0x7fff;
    return exponent != 0x7fff && (!exponent || value->low >> 63);
}

// FPREM and FPREM1 set conditions for finite operands only.
static inline bool has_remainder(CPUX86State* env) {
    return likely(is_finite(st(env, 0)) && is_finite(st(env, 1)) && st(env, 1)->low);
}

// ST(0) changes, ST(1) does not.
#define SCALED(name, conditions, if_computed)                                                       \
    static inline uint16_t compute_##name(floatx80* top, const floatx80* second) {                  \
        uint16_t status;                                                                            \
        __asm__ volatile("fldt %2\n\tfldt %1\n\t" #name "\n\tfnstsw %0\n\tfstpt %1\n\tfstp %%st(0)" \
                         : "=&a"(status), "+m"(*top)                                                \
                         : "m"(*second)                                                             \
                         : ON_STACK);                                                               \
        return status;                                                                              \
    }                                                                                               \
    REGISTER_FUNCTION(name) {                                                                       \
        uint16_t status;                                                                            \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, 1) && (if_computed))                   \
        floatx80* top = st(env, 0);                                                                 \
        const floatx80 before = get(top);                                                           \
        UNDER_CONTROL(env, status = compute_##name(top, st(env, 1)));                               \
        UNDO_IF_RAISED(top)                                                                         \
        merge(env, status, conditions);                                                             \
        x87_note(env, op);                                                                          \
    }
SCALED(fscale, FSW_C1, true)
SCALED(fprem, FSW_CONDITIONS, has_remainder(env))
SCALED(fprem1, FSW_CONDITIONS, has_remainder(env))

// The result takes the place of ST(1), and ST(0) is popped.
#define BINARY_POP(name)                                                            \
    static inline uint16_t compute_##name(const floatx80* top, floatx80* second) {  \
        uint16_t status;                                                            \
        __asm__ volatile("fldt %1\n\tfldt %2\n\t" #name "\n\tfnstsw %0\n\tfstpt %1" \
                         : "=&a"(status), "+m"(*second)                             \
                         : "m"(*top)                                                \
                         : ON_STACK);                                               \
        return status;                                                              \
    }                                                                               \
    REGISTER_FUNCTION(name) {                                                       \
        uint16_t status;                                                            \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, 1))                    \
        floatx80* second = st(env, 1);                                              \
        const floatx80 before = get(second);                                        \
        UNDER_CONTROL(env, status = compute_##name(st(env, 0), second));            \
        UNDO_IF_RAISED(second)                                                      \
        merge(env, status, FSW_C1);                                                 \
        pop(env);                                                                   \
        x87_note(env, op);                                                          \
    }
BINARY_POP(fyl2x)
BINARY_POP(fyl2xp1)
BINARY_POP(fpatan)

// Two results, of which the second is pushed; FSINCOS and FPTAN leave the stack alone when the operand is too
// large, and say so in C2.
#define TWO_RESULTS(name, conditions)                                          \
    static inline uint16_t compute_##name(floatx80* top, floatx80* pushed) {   \
        uint16_t status;                                                       \
        __asm__ volatile("fldt %1\n\t" #name                                   \
                         "\n\tfnstsw %0\n\t"                                   \
                         "testl %3, %%eax\n\tjnz 1f\n\tfstpt %2\n1:\tfstpt %1" \
                         : "=&a"(status), "+m"(*top), "+m"(*pushed)            \
                         : "i"((conditions)&FSW_C2)                            \
                         : ON_STACK, "cc");                                    \
        return status;                                                         \
    }                                                                          \
    REGISTER_FUNCTION(name) {                                                  \
        uint16_t status;                                                       \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && !full(env, 7))              \
        floatx80 *top = st(env, 0), pushed;                                    \
        const floatx80 before = get(top);                                      \
        UNDER_CONTROL(env, status = compute_##name(top, &pushed));             \
        UNDO_IF_RAISED(top)                                                    \
        merge(env, status, conditions);                                        \
        if (!(status & (conditions)&FSW_C2)) set(push(env), pushed);           \
        x87_note(env, op);                                                     \
    }
TWO_RESULTS(fsincos, FSW_C1 | FSW_C2)
TWO_RESULTS(fptan, FSW_C1 | FSW_C2)
TWO_RESULTS(fxtract, FSW_C1)

#endif
