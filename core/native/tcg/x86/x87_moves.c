// SPDX-License-Identifier: GPL-2.0-or-later
// x87 loads and stores, and what moves values within the stack (see x87_quick.h).
#if defined(__x86_64__)

#include "x87_convert.h"
#include "x87_quick.h"

// --- Loads ---

#define LOAD(name, text, type, fraction_bits, exponent_bits)                          \
    MEMORY_FUNCTION(name) {                                                           \
        uint16_t status = 0;                                                          \
        type bits;                                                                    \
        floatx80 value;                                                               \
        WHOLE_MEMORY_UNLESS(quiet(env) && !full(env, 7))                              \
        x87_load(env, address, &bits, sizeof bits, GETPC());                          \
        if (unlikely(!x87_from_format(bits, fraction_bits, exponent_bits, &value))) { \
            __asm__ volatile(text " %2\n\tfnstsw %0\n\tfstpt %1"                      \
                             : "=&a"(status), "=m"(value)                             \
                             : "m"(bits)                                              \
                             : ON_STACK);                                             \
            WHOLE_MEMORY_UNLESS(!raises(env, status))                                 \
        }                                                                             \
        set(push(env), value);                                                        \
        merge(env, status, FSW_C1);                                                   \
        x87_note_operand(env, address, op);                                           \
    }
LOAD(load_float, "flds", uint32_t, 23, 8)
LOAD(load_double, "fldl", uint64_t, 52, 11)

// Exact, and without a flag.
#define LOAD_INTEGER(name, text, type)                                                       \
    MEMORY_FUNCTION(name) {                                                                  \
        type value;                                                                          \
        WHOLE_MEMORY_UNLESS(quiet(env) && !full(env, 7))                                     \
        x87_load(env, address, &value, sizeof value, GETPC());                               \
        __asm__ volatile(text " %1\n\tfstpt %0" : "=m"(*push(env)) : "m"(value) : ON_STACK); \
        clear_c1(env);                                                                       \
        x87_note_operand(env, address, op);                                                  \
    }
LOAD_INTEGER(load_int16, "filds", int16_t)
LOAD_INTEGER(load_int32, "fildl", int32_t)
LOAD_INTEGER(load_int64, "fildq", int64_t)

MEMORY_FUNCTION(load_extended) {
    floatx80 value;
    WHOLE_MEMORY_UNLESS(quiet(env) && !full(env, 7))
    x87_load(env, address, &value, 10, GETPC());
    set(push(env), value);
    clear_c1(env);
    x87_note_operand(env, address, op);
}

REGISTER_FUNCTION(fld) {
    WHOLE_UNLESS(quiet(env) && full(env, op & 7) && !full(env, 7))
    const floatx80 value = get(st(env, op & 7));
    set(push(env), value);
    clear_c1(env);
    x87_note(env, op);
}

// Rounded as the control word says.
#define CONSTANT(name)                                                                       \
    REGISTER_FUNCTION(name) {                                                                \
        WHOLE_UNLESS(quiet(env) && !full(env, 7))                                            \
        floatx80* to = push(env);                                                            \
        UNDER_CONTROL(env, __asm__ volatile(#name "\n\tfstpt %0" : "=m"(*to) : : ON_STACK)); \
        clear_c1(env);                                                                       \
        x87_note(env, op);                                                                   \
    }
CONSTANT(fld1)
CONSTANT(fldl2t)
CONSTANT(fldl2e)
CONSTANT(fldpi)
CONSTANT(fldlg2)
CONSTANT(fldln2)
CONSTANT(fldz)

// --- Stores ---

// The host's instruction pops its own copy; the guest's is popped by those that do.
#define STORE(name, text, type, pops, convert)                                        \
    MEMORY_FUNCTION(name) {                                                           \
        uint16_t status;                                                              \
        type value;                                                                   \
        WHOLE_MEMORY_UNLESS(quiet(env) && full(env, 0))                               \
        const floatx80* top = st(env, 0);                                             \
        if (unlikely(!convert)) {                                                     \
            UNDER_CONTROL(env, __asm__ volatile("fldt %2\n\t" text " %1\n\tfnstsw %0" \
                                                : "=&a"(status), "=m"(value)          \
                                                : "m"(*top)                           \
                                                : ON_STACK));                         \
        }                                                                             \
        WHOLE_MEMORY_UNLESS(!raises(env, status))                                     \
        x87_store(env, address, &value, sizeof value, GETPC());                       \
        merge(env, status, FSW_C1);                                                   \
        if (pops) pop(env);                                                           \
        x87_note_operand(env, address, op);                                           \
    }

static inline bool to_float(const CPUX86State* env, const floatx80* from, uint32_t* to, uint16_t* status) {
    uint64_t bits;
    const bool ordinary = x87_to_format(get(from), 23, 8, x87_rounding(env), &bits, status);
    *to = (uint32_t)bits;
    return ordinary;
}

static inline bool to_double(const CPUX86State* env, const floatx80* from, uint64_t* to, uint16_t* status) {
    return x87_to_format(get(from), 52, 11, x87_rounding(env), to, status);
}

#define TO_INTEGER(type)                                                                                \
    static inline bool to_##type(unsigned rounding, const floatx80* from, type* to, uint16_t* status) { \
        int64_t integer;                                                                                \
        const bool ordinary = x87_to_integer(get(from), 8 * sizeof(type), rounding, &integer, status);  \
        *to = (type)integer;                                                                            \
        return ordinary;                                                                                \
    }
TO_INTEGER(int16_t)
TO_INTEGER(int32_t)
TO_INTEGER(int64_t)

STORE(store_float, "fstps", uint32_t, x87_group(op) & 1, to_float(env, top, &value, &status))
STORE(store_double, "fstpl", uint64_t, x87_group(op) & 1, to_double(env, top, &value, &status))
STORE(store_int16, "fistps", int16_t, x87_group(op) & 1, to_int16_t(x87_rounding(env), top, &value, &status))
STORE(store_int32, "fistpl", int32_t, x87_group(op) & 1, to_int32_t(x87_rounding(env), top, &value, &status))
STORE(store_int64, "fistpq", int64_t, true, to_int64_t(x87_rounding(env), top, &value, &status))
STORE(truncate_int16, "fisttps", int16_t, true, to_int16_t(ROUND_TO_ZERO, top, &value, &status))
STORE(truncate_int32, "fisttpl", int32_t, true, to_int32_t(ROUND_TO_ZERO, top, &value, &status))
STORE(truncate_int64, "fisttpq", int64_t, true, to_int64_t(ROUND_TO_ZERO, top, &value, &status))

MEMORY_FUNCTION(store_extended) {
    WHOLE_MEMORY_UNLESS(quiet(env) && full(env, 0))
    x87_store(env, address, st(env, 0), 10, GETPC());
    clear_c1(env);
    pop(env);
    x87_note_operand(env, address, op);
}

// FST and FSTP ST(i), which may be empty before.
REGISTER_FUNCTION(fst) {
    WHOLE_UNLESS(quiet(env) && full(env, 0))
    set(st(env, op & 7), get(st(env, 0)));
    env->fptags[x87_physical(env, op & 7)] = 0;
    clear_c1(env);
    if (op & 8) pop(env);
    x87_note(env, op);
}

// --- The stack ---

REGISTER_FUNCTION(fxch) {
    WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, op & 7))
    floatx80 *top = st(env, 0), *other = st(env, op & 7);
    const floatx80 value = get(top);
    set(top, get(other));
    set(other, value);
    clear_c1(env);
    x87_note(env, op);
}

#endif
