// SPDX-License-Identifier: GPL-2.0-or-later
// x87 sums, products, quotients and comparisons, with registers and with memory (see x87_quick.h).
#if defined(__x86_64__)

#include "x87_quick.h"

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

#endif
