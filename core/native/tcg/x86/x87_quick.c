// SPDX-License-Identifier: GPL-2.0-or-later
// x87 instructions that raise no unmasked exception and use no register that is empty (see x87.h). Operands
// go through the host's x87 stack; everything unusual goes to x87_whole.c.
#if defined(__x86_64__)

#include "x87.h"
#include "x87_convert.h"

#define ON_STACK "st", "st(1)", "memory"

// No exception is pending. With underflow unmasked an exact tiny result is one too, of which masked
// arithmetic tells nothing (SDM vol. 1, 4.9.1.5).
static inline bool quiet(const CPUX86State* env) {
    return likely((env->fpuc & FCW_UM) && !(env->fpus & FSW_ES));
}

// Whether what the host computed with all exceptions masked is an unmasked one for the guest. The host's
// sticky flags never include one that is unmasked: it would be pending. Then all is as before, and
// x87_whole.c does it again.
static inline bool raises(const CPUX86State* env, uint16_t status) {
    if (likely(!(status & ~env->fpuc & FSW_FLAGS))) return false;
    __asm__ volatile("fnclex");
    return true;
}

static inline bool full(const CPUX86State* env, unsigned i) {
    return likely(!env->fptags[x87_physical(env, i)]);
}

static inline floatx80* st(CPUX86State* env, unsigned i) { return &env->fpregs[x87_physical(env, i)].d; }

// By halves, as the host's FSTP stores them: a wider load behind it would wait for the store.
static inline floatx80 get(const floatx80* from) {
    floatx80 value;
    value.low = from->low;
    value.high = from->high;
    return value;
}

static inline void set(floatx80* to, floatx80 value) {
    to->low = value.low;
    to->high = value.high;
}

static inline void pop(CPUX86State* env) {
    env->fptags[env->fpstt] = 1;
    env->fpstt = (env->fpstt + 1) & 7;
}

static inline floatx80* push(CPUX86State* env) {
    env->fpstt = (env->fpstt - 1) & 7;
    env->fptags[env->fpstt] = 0;
    return &env->fpregs[env->fpstt].d;
}

// The flags of the host join those of the guest; these condition codes are the instruction's result.
static inline void merge(CPUX86State* env, uint16_t status, uint16_t conditions) {
    env->fpus = (uint16_t)((env->fpus & ~conditions) | (status & (FSW_FLAGS | conditions)));
}

// Whether FCMOVcc and FCOMI clear C1 when no stack fault is there to be told. Intel does not say (SDM vol.
// 2A); cores differ.
static uint16_t fcmov_clears, fcomi_clears;

void cm_x87_learn_host(void) {
    uint16_t after_fcmov, after_fcomi;
    __asm__ volatile(
        "fninit\n\tfld1\n\tfchs\n\tfxam\n\tfcmovu %%st(0), %%st\n\tfnstsw %0\n\t"  // FXAM's C1 is the sign
        "fxam\n\tfcomi %%st(0), %%st\n\tfnstsw %1\n\tfninit"
        : "=m"(after_fcmov), "=m"(after_fcomi)
        :
        : "st", "cc");
    fcmov_clears = ~after_fcmov & FSW_C1;
    fcomi_clears = ~after_fcomi & FSW_C1;
}

static inline void clear_c1(CPUX86State* env) { env->fpus &= (uint16_t)~FSW_C1; }

// Computes with the guest's rounding and precision, all exceptions masked. `...` is one statement.
#define UNDER_CONTROL(env, ...)                                                   \
    do {                                                                          \
        if (likely(((env)->fpuc & FCW_ROUNDING_AND_PRECISION) ==                  \
                   (FCW_DEFAULT & FCW_ROUNDING_AND_PRECISION))) {                 \
            __VA_ARGS__;                                                          \
        } else {                                                                  \
            const uint16_t guest_ = (env)->fpuc | FCW_MASKS, host_ = FCW_DEFAULT; \
            __asm__ volatile("fldcw %0" : : "m"(guest_));                         \
            __VA_ARGS__;                                                          \
            __asm__ volatile("fldcw %0" : : "m"(host_));                          \
        }                                                                         \
    } while (0)

#define WHOLE_UNLESS(condition)            \
    if (unlikely(!(condition))) {          \
        cm_x87_whole(env, op, 0, GETPC()); \
        return;                            \
    }

#define WHOLE_MEMORY_UNLESS(condition)                  \
    if (unlikely(!(condition))) {                       \
        cm_x87_whole_memory(env, address, op, GETPC()); \
        return;                                         \
    }

#define UNDO_IF_RAISED(result)             \
    if (raises(env, status)) {             \
        set(result, before);               \
        cm_x87_whole(env, op, 0, GETPC()); \
        return;                            \
    }

#define REGISTER_FUNCTION(name) \
    static void name(CPUX86State* env, target_ulong address __attribute__((unused)), x87_op op)
#define MEMORY_FUNCTION(name) static void name(CPUX86State* env, target_ulong address, x87_op op)

// --- Arithmetic ---

// With ST(0) as the host's ST(1) and the other operand as its ST(0), the popping form of the instruction
// leaves the one result. Its opcode is spelled out: assemblers disagree on the names of the reversed forms.
#define ARITHMETIC_OF_REGISTERS(name, popping_opcode)                                                     \
    static inline uint16_t compute_##name(const floatx80* top, const floatx80* other, floatx80* result) { \
        uint16_t status;                                                                                  \
        __asm__ volatile("fldt %1\n\tfldt %2\n\t.byte 0xde, " popping_opcode "\n\tfnstsw %0\n\tfstpt %3"  \
                         : "=&a"(status)                                                                  \
                         : "m"(*top), "m"(*other), "m"(*result)                                           \
                         : ON_STACK);                                                                     \
        return status;                                                                                    \
    }                                                                                                     \
    REGISTER_FUNCTION(name##_to_top) {                                                                    \
        uint16_t status;                                                                                  \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, op & 7))                                     \
        floatx80* top = st(env, 0);                                                                       \
        const floatx80 before = get(top);                                                                 \
        UNDER_CONTROL(env, status = compute_##name(top, st(env, op & 7), top));                           \
        UNDO_IF_RAISED(top)                                                                               \
        merge(env, status, FSW_C1);                                                                       \
        x87_note(env, op);                                                                                \
    }                                                                                                     \
    REGISTER_FUNCTION(name##_to_other) {                                                                  \
        uint16_t status;                                                                                  \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, op & 7))                                     \
        floatx80* other = st(env, op & 7);                                                                \
        const floatx80 before = get(other);                                                               \
        UNDER_CONTROL(env, status = compute_##name(st(env, 0), other, other));                            \
        UNDO_IF_RAISED(other)                                                                             \
        merge(env, status, FSW_C1);                                                                       \
        if (op & 0x200) pop(env); /* DE */                                                                \
        x87_note(env, op);                                                                                \
    }
ARITHMETIC_OF_REGISTERS(fadd, "0xc1")
ARITHMETIC_OF_REGISTERS(fmul, "0xc9")
ARITHMETIC_OF_REGISTERS(fsub, "0xe9")
ARITHMETIC_OF_REGISTERS(fsubr, "0xe1")
ARITHMETIC_OF_REGISTERS(fdiv, "0xf9")
ARITHMETIC_OF_REGISTERS(fdivr, "0xf1")

#define ARITHMETIC_WITH_MEMORY(name, text, type)                                       \
    static inline uint16_t compute_##name##_##type(floatx80* top, const type* other) { \
        uint16_t status;                                                               \
        __asm__ volatile("fldt %1\n\t" text " %2\n\tfnstsw %0\n\tfstpt %1"             \
                         : "=&a"(status), "+m"(*top)                                   \
                         : "m"(*other)                                                 \
                         : ON_STACK);                                                  \
        return status;                                                                 \
    }                                                                                  \
    MEMORY_FUNCTION(name##_##type) {                                                   \
        uint16_t status;                                                               \
        type other;                                                                    \
        WHOLE_MEMORY_UNLESS(quiet(env) && full(env, 0))                                \
        x87_load(env, address, &other, sizeof other, GETPC());                         \
        floatx80* top = st(env, 0);                                                    \
        const floatx80 before = get(top);                                              \
        UNDER_CONTROL(env, status = compute_##name##_##type(top, &other));             \
        if (raises(env, status)) {                                                     \
            set(top, before);                                                          \
            cm_x87_whole_memory(env, address, op, GETPC());                            \
            return;                                                                    \
        }                                                                              \
        merge(env, status, FSW_C1);                                                    \
        x87_note_operand(env, address, op);                                            \
    }

#define COMPARE_WITH_MEMORY(name, text, type)                  \
    MEMORY_FUNCTION(name##_##type) {                           \
        uint16_t status;                                       \
        type other;                                            \
        WHOLE_MEMORY_UNLESS(quiet(env) && full(env, 0))        \
        x87_load(env, address, &other, sizeof other, GETPC()); \
        __asm__ volatile("fldt %1\n\t" text " %2\n\tfnstsw %0" \
                         : "=&a"(status)                       \
                         : "m"(*st(env, 0)), "m"(other)        \
                         : ON_STACK);                          \
        WHOLE_MEMORY_UNLESS(!raises(env, status))              \
        merge(env, status, FSW_CONDITIONS);                    \
        if (x87_group(op) & 1) pop(env); /* FCOMP, FICOMP */   \
        x87_note_operand(env, address, op);                    \
    }

// The letter that the assembler wants for the operand's type.
#define WITH_MEMORY(type, prefix, letter)                    \
    ARITHMETIC_WITH_MEMORY(add, prefix "add" letter, type)   \
    ARITHMETIC_WITH_MEMORY(mul, prefix "mul" letter, type)   \
    ARITHMETIC_WITH_MEMORY(sub, prefix "sub" letter, type)   \
    ARITHMETIC_WITH_MEMORY(subr, prefix "subr" letter, type) \
    ARITHMETIC_WITH_MEMORY(div, prefix "div" letter, type)   \
    ARITHMETIC_WITH_MEMORY(divr, prefix "divr" letter, type) \
    COMPARE_WITH_MEMORY(com, prefix "comp" letter, type)
WITH_MEMORY(float, "f", "s")
WITH_MEMORY(double, "f", "l")
WITH_MEMORY(int32_t, "fi", "l")
WITH_MEMORY(int16_t, "fi", "s")

// --- Comparisons of registers ---

#define COMPARE(name, text, pops)                                      \
    REGISTER_FUNCTION(name) {                                          \
        uint16_t status;                                               \
        WHOLE_UNLESS(quiet(env) && full(env, 0) && full(env, op & 7))  \
        __asm__ volatile("fldt %2\n\tfldt %1\n\t" text "\n\tfnstsw %0" \
                         : "=&a"(status)                               \
                         : "m"(*st(env, 0)), "m"(*st(env, op & 7))     \
                         : ON_STACK);                                  \
        WHOLE_UNLESS(!raises(env, status))                             \
        merge(env, status, FSW_CONDITIONS);                            \
        for (int i = 0; i < (pops); i++) pop(env);                     \
        x87_note(env, op);                                             \
    }
COMPARE(fcom, "fcompp", 0)
COMPARE(fcomp, "fcompp", 1)
COMPARE(fcompp, "fcompp", 2)
COMPARE(fucom, "fucompp", 0)
COMPARE(fucomp, "fucompp", 1)
COMPARE(fucompp, "fucompp", 2)

// OF, SF and AF are cleared (SDM vol. 2A, FCOMI).
static const uint32_t result_flags = CC_Z | CC_P | CC_C;

#define COMPARE_TO_FLAGS(name, text)                                                                     \
    REGISTER_FUNCTION(name) {                                                                            \
        uint16_t status;                                                                                 \
        bool zero, parity, carry;                                                                        \
        if (quiet(env) && full(env, 0) && full(env, op & 7)) {                                           \
            __asm__ volatile("fldt %5\n\tfldt %4\n\t" text " %%st(1), %%st\n\tfstp %%st(0)\n\tfnstsw %0" \
                             : "=&a"(status), "=@ccz"(zero), "=@ccp"(parity), "=@ccc"(carry)             \
                             : "m"(*st(env, 0)), "m"(*st(env, op & 7))                                   \
                             : ON_STACK);                                                                \
            if (!raises(env, status)) {                                                                  \
                merge(env, status, 0);                                                                   \
                env->fpus &= (uint16_t)~fcomi_clears;                                                    \
                env->cc_src = (zero ? CC_Z : 0) | (parity ? CC_P : 0) | (carry ? CC_C : 0);              \
                if (op & 0x400) pop(env); /* DF */                                                       \
                x87_note(env, op);                                                                       \
                return;                                                                                  \
            }                                                                                            \
        }                                                                                                \
        env->cc_src = cm_x87_whole(env, op, 0, GETPC()) & result_flags;                                  \
    }
COMPARE_TO_FLAGS(fcomi, "fcomip")
COMPARE_TO_FLAGS(fucomi, "fucomip")

#define EXAMINE(name)                                                        \
    REGISTER_FUNCTION(name) {                                                \
        uint16_t status;                                                     \
        WHOLE_UNLESS(quiet(env) && full(env, 0))                             \
        __asm__ volatile("fldt %1\n\t" #name "\n\tfnstsw %0\n\tfstp %%st(0)" \
                         : "=&a"(status)                                     \
                         : "m"(*st(env, 0))                                  \
                         : ON_STACK);                                        \
        WHOLE_UNLESS(!raises(env, status))                                   \
        merge(env, status, FSW_CONDITIONS);                                  \
        x87_note(env, op);                                                   \
    }
EXAMINE(ftst)
EXAMINE(fxam)

// FCMOVcc
REGISTER_FUNCTION(fcmov) {
    static const uint32_t tests[4] = {CC_C, CC_Z, CC_C | CC_Z, CC_P};
    const uint32_t flags = (uint32_t)cpu_cc_compute_all(env, (int)env->cc_op);
    if (unlikely(!(quiet(env) && full(env, 0) && full(env, op & 7)))) {
        cm_x87_whole(env, op, flags, GETPC());
        return;
    }
    const bool negated = op & 0x100;  // DB
    if (((flags & tests[op >> 3 & 3]) != 0) != negated) set(st(env, 0), get(st(env, op & 7)));
    env->fpus &= (uint16_t)~fcmov_clears;
    x87_note(env, op);
}

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

static void whole(CPUX86State* env, target_ulong address __attribute__((unused)), x87_op op) {
    cm_x87_whole(env, op, 0, GETPC());
}

static void whole_memory(CPUX86State* env, target_ulong address, x87_op op) {
    cm_x87_whole_memory(env, address, op, GETPC());
}

// --- Control state (x87_state.c); these leave FIP and its companions alone ---

MEMORY_FUNCTION(fldcw) { cm_x87_load_control(env, address, op, GETPC()); }
MEMORY_FUNCTION(fldenv) { cm_x87_load_environment(env, address, op, GETPC()); }
MEMORY_FUNCTION(fnstenv) { cm_x87_store_environment(env, address, op, GETPC()); }
MEMORY_FUNCTION(frstor) { cm_x87_restore(env, address, op, GETPC()); }
MEMORY_FUNCTION(fnsave) { cm_x87_save(env, address, op, GETPC()); }

static uint16_t status_word(const CPUX86State* env) {
    return (uint16_t)(env->fpus | env->fpstt << FSW_TOP_SHIFT);
}

static void fnstcw(CPUX86State* env, target_ulong address, x87_op op __attribute__((unused))) {
    x87_store(env, address, &env->fpuc, sizeof env->fpuc, GETPC());
}

static void fnstsw(CPUX86State* env, target_ulong address, x87_op op __attribute__((unused))) {
    const uint16_t status = status_word(env);
    x87_store(env, address, &status, sizeof status, GETPC());
}

REGISTER_FUNCTION(fnstsw_ax) {
    (void)op;
    env->regs[R_EAX] = (env->regs[R_EAX] & ~(target_ulong)0xffff) | status_word(env);
}

REGISTER_FUNCTION(fnclex) {
    (void)op;
    env->fpus &= FSW_CONDITIONS;
    x87_forget_flags(env);
}

REGISTER_FUNCTION(fninit) {
    (void)op;
    cm_x87_initialise(env);
}

// FNENI, FNDISI and FNSETPM of the 8087 and 80287 do nothing (SDM vol. 3B, 23.18.7).
REGISTER_FUNCTION(nothing) { (void)env, (void)op; }

// --- Which is which (SDM vol. 2D, tables) ---

#define ARITHMETIC_ROW(type) \
    add_##type, mul_##type, com_##type, com_##type, sub_##type, subr_##type, div_##type, divr_##type

const x87_function cm_x87_memory_functions[64] = {
    ARITHMETIC_ROW(float),
    load_float,
    NULL,
    store_float,
    store_float,
    fldenv,
    fldcw,
    fnstenv,
    fnstcw,
    ARITHMETIC_ROW(int32_t),
    load_int32,
    truncate_int32,
    store_int32,
    store_int32,
    NULL,
    load_extended,
    NULL,
    store_extended,
    ARITHMETIC_ROW(double),
    load_double,
    truncate_int64,
    store_double,
    store_double,
    frstor,
    NULL,
    fnsave,
    fnstsw,
    ARITHMETIC_ROW(int16_t),
    load_int16,
    truncate_int16,
    store_int16,
    store_int16,
    whole_memory,
    load_int64,
    whole_memory,
    store_int64,
};

// By group, where all eight values of ModRM.rm are one instruction.
static const x87_function register_functions[64] = {
    // D8
    fadd_to_top,
    fmul_to_top,
    fcom,
    fcomp,
    fsub_to_top,
    fsubr_to_top,
    fdiv_to_top,
    fdivr_to_top,
    // D9
    fld,
    fxch,
    NULL,
    fst,
    NULL,
    NULL,
    NULL,
    NULL,
    // DA
    fcmov,
    fcmov,
    fcmov,
    fcmov,
    NULL,
    NULL,
    NULL,
    NULL,
    // DB
    fcmov,
    fcmov,
    fcmov,
    fcmov,
    NULL,
    fucomi,
    fcomi,
    NULL,
    // DC
    fadd_to_other,
    fmul_to_other,
    fcom,
    fcomp,
    fsub_to_other,
    fsubr_to_other,
    fdiv_to_other,
    fdivr_to_other,
    // DD
    whole,
    fxch,
    fst,
    fst,
    fucom,
    fucomp,
    NULL,
    NULL,
    // DE
    fadd_to_other,
    fmul_to_other,
    fcomp,
    NULL,
    fsub_to_other,
    fsubr_to_other,
    fdiv_to_other,
    fdivr_to_other,
    // DF
    whole,
    fxch,
    whole,
    whole,
    NULL,
    fucomi,
    fcomi,
    NULL,
};

// D9 E0-FF.
static const x87_function d9_functions[32] = {
    fchs,  fabs_,  NULL,   NULL,    ftst,  fxam,    NULL,    NULL,   fld1,   fldl2t,  fldl2e,
    fldpi, fldlg2, fldln2, fldz,    NULL,  f2xm1,   fyl2x,   fptan,  fpatan, fxtract, fprem1,
    whole, whole,  fprem,  fyl2xp1, fsqrt, fsincos, frndint, fscale, fsin,   fcos,
};

// DB E0-E7.
static const x87_function db_functions[8] = {nothing, nothing, fnclex, fninit, nothing, NULL, NULL, NULL};

bool cm_x87_is_control(x87_op op) {
    if ((op & 0xc0) != 0xc0) return cm_x87_operand_bytes(op) == 0;
    const unsigned opcode = op >> 8 & 7, modrm = op & 0xff;
    return (opcode == 3 && modrm >= 0xe0 && modrm <= 0xe7) || (opcode == 7 && modrm == 0xe0);
}

x87_function cm_x87_register_function(x87_op op) {
    const unsigned opcode = op >> 8 & 7, modrm = op & 0xff;
    if (opcode == 1 && modrm >= 0xe0) return d9_functions[modrm - 0xe0];
    if (opcode == 1 && modrm == 0xd0) return whole;  // FNOP
    if (opcode == 3 && modrm >= 0xe0 && modrm <= 0xe7) return db_functions[modrm - 0xe0];
    if (opcode == 7 && modrm == 0xe0) return fnstsw_ax;
    if (opcode == 2 && modrm == 0xe9) return fucompp;
    if (opcode == 6 && modrm == 0xd9) return fcompp;
    return register_functions[x87_group(op)];
}

#endif
