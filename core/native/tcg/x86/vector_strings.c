// SPDX-License-Identifier: GPL-2.0-or-later
// PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM: on the host's own where it has them, else in plain C. The
// engine's helpers negate a length of the guest, where the smallest number has no positive one, and then
// index by it beyond the register, out of its own memory.
#include "../internals.h"

#include "string_compare.h"

struct outcome {
    uint64_t index_and_flags;  // ECX; RFLAGS << 32
    uint8_t mask[16];
};

#if defined(__x86_64__)

// The immediate is part of the instruction: one form of each for every value, 8 bytes of code apart.
#define FORM_BYTES 8
#define FORMS(name)                                                                                 \
    __asm__(".pushsection .text\n.balign 8\ncm_forms_" #name ":\n.set form, 0\n.rept 256\n\t" #name \
            " $form, %xmm1, %xmm0\n\tret\n.balign 8\n.set form, form + 1\n.endr\n.popsection");     \
    extern const uint8_t cm_forms_##name[] __attribute__((visibility("hidden")));
FORMS(pcmpestri)
FORMS(pcmpestrm)
FORMS(pcmpistri)
FORMS(pcmpistrm)

// cm_string_form(code, first, second, lengths in EAX and EDX, outcome): System V AMD64 psABI 3.2.3.
void cm_string_form(const void* form, const void* a, const void* b, int eax, int edx, struct outcome* out)
    __attribute__((visibility("hidden")));
__asm__(
    ".pushsection .text\n"
    "cm_string_form:\n"
    "\tmovdqu (%rsi), %xmm0\n"
    "\tmovdqu (%rdx), %xmm1\n"
    "\tmovl %ecx, %eax\n"
    "\tmovl %r8d, %edx\n"
    "\txorl %ecx, %ecx\n"
    "\tcall *%rdi\n"
    "\tpushfq\n"
    "\tpopq %rax\n"
    "\tmovl %ecx, (%r9)\n"
    "\tmovl %eax, 4(%r9)\n"
    "\tmovdqu %xmm0, 8(%r9)\n"
    "\tret\n"
    ".popsection");

static bool host_has_them(void) { return __builtin_cpu_supports("sse4.2"); }

#else

static bool host_has_them(void) { return false; }

#endif

static struct outcome compare(const ZMMReg* a, const ZMMReg* b, unsigned a_length, unsigned b_length,
                              unsigned imm, const uint8_t* forms) {
    struct outcome out;
#if defined(__x86_64__)
    if (forms) {
        cm_string_form(forms + (imm & 0xff) * FORM_BYTES, a, b, (int)a_length, (int)b_length, &out);
        return out;
    }
#endif
    struct string_comparison result =
        string_compare((const uint8_t*)a, (const uint8_t*)b, a_length, b_length, imm);
    out.index_and_flags = result.index | (uint64_t)result.flags << 32;
    memcpy(out.mask, result.mask, sizeof out.mask);
    return out;
}

// Presence of REX.W, which makes the lengths those of RAX and RDX, is bit 8 of the immediate.
static unsigned explicit_length(const CPUX86State* env, int reg, uint32_t imm) {
    int64_t length = (int64_t)env->regs[reg];
    return string_explicit_length(imm >> 8 ? length : (int32_t)length, imm);
}

static void to_flags(CPUX86State* env, const struct outcome* out) {
    CC_SRC = out->index_and_flags >> 32 & (CC_C | CC_Z | CC_S | CC_O);
}

static void to_index(CPUX86State* env, const struct outcome* out) {
    to_flags(env, out);
    env->regs[R_ECX] = (uint32_t)out->index_and_flags;
}

static void to_mask(CPUX86State* env, const struct outcome* out) {
    to_flags(env, out);
    memcpy(&env->xmm_regs[0], out->mask, sizeof out->mask);
}

#if defined(__x86_64__)
#define HOST_FORMS(name) (host_has_them() ? cm_forms_##name : NULL)
#else
#define HOST_FORMS(name) NULL
#endif

#define WRAP_STRINGS(name, a_length, b_length, result)                                           \
    void CM_WRAP(helper_##name##_xmm)(CPUX86State * env, ZMMReg * d, ZMMReg * s, uint32_t imm) { \
        CM_HIT(helper_##name##_xmm);                                                             \
        struct outcome out = compare(d, s, a_length, b_length, imm, HOST_FORMS(name));           \
        result(env, &out);                                                                       \
    }
#define EXPLICIT(reg) explicit_length(env, reg, imm)
#define IMPLICIT(operand) string_implicit_length((const uint8_t*)operand, imm)
WRAP_STRINGS(pcmpestri, EXPLICIT(R_EAX), EXPLICIT(R_EDX), to_index)
WRAP_STRINGS(pcmpestrm, EXPLICIT(R_EAX), EXPLICIT(R_EDX), to_mask)
WRAP_STRINGS(pcmpistri, IMPLICIT(d), IMPLICIT(s), to_index)
WRAP_STRINGS(pcmpistrm, IMPLICIT(d), IMPLICIT(s), to_mask)
