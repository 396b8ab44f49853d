// SPDX-License-Identifier: GPL-2.0-or-later
// FXSAVE and FXRSTOR (SDM vol. 1, 10.5; vol. 2A). All of the image is read, and looked at, before any of the
// state changes; a page fault of a store comes before its first byte.
#if defined(__x86_64__)

#include "translator.h"
#include "tcg/tcg-op.h"

#include "float.h"
#include "float_slow.h"
#include "x87.h"

// Bytes 464-511 are the program's, and 416-463 are not written either.
typedef struct {
    uint16_t control, status;
    uint8_t full, reserved0;  // bit i: register Ri is not empty
    uint16_t opcode;
    uint64_t ip, dp;  // without REX.W an offset of 32 bits, then the selector
    uint32_t mxcsr, mxcsr_mask;
    struct {
        uint8_t value[10], reserved[6];
    } st[8];
    uint8_t xmm[16][16];
} Image;
_Static_assert(sizeof(Image) == 416, "SDM vol. 1, table 10-2");

static unsigned xmm_registers(const CPUX86State* env) { return env->hflags & HF_CS64_MASK ? 16 : 8; }

// The registers of SSE are left out where the system has not said that it knows them.
static unsigned image_bytes(const CPUX86State* env) {
    return (unsigned)offsetof(Image, xmm) + (env->cr[4] & CR4_OSFXSR_MASK ? 16 * xmm_registers(env) : 0);
}

static void fxsave(CPUX86State* env, target_ulong address, union cm_operands in) {
    const uintptr_t ra = GETPC();
    Image image = {.control = env->fpuc, .opcode = env->fpop, .ip = env->fpip, .dp = env->fpdp};
    if (address & 15) raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
    cm_float_sync(env);
    image.status = (uint16_t)(env->fpus | env->fpstt << FSW_TOP_SHIFT);
    if (in.operand_bytes != 8) {
        image.ip = (uint32_t)env->fpip | (uint64_t)env->fpcs << 32;
        image.dp = (uint32_t)env->fpdp | (uint64_t)env->fpds << 32;
    }
    for (unsigned i = 0; i < 8; i++) {
        image.full |= (uint8_t)(!env->fptags[i] << i);
        memcpy(image.st[i].value, &env->fpregs[x87_physical(env, i)].d, 10);
    }
    if (env->cr[4] & CR4_OSFXSR_MASK) {
        image.mxcsr = env->mxcsr;
        image.mxcsr_mask = MX_VALID;
        for (unsigned i = 0; i < xmm_registers(env); i++) memcpy(image.xmm[i], &env->xmm_regs[i], 16);
    }
    cm_x87_probe_fxsave(env, address, true, ra);
    x87_store(env, address, &image, image_bytes(env), ra);
}

static void fxrstor(CPUX86State* env, target_ulong address, union cm_operands in) {
    const uintptr_t ra = GETPC();
    Image image;
    if (address & 15) raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
    cm_x87_probe_fxsave(env, address, false, ra);
    x87_load(env, address, &image, image_bytes(env), ra);
    const bool sse = env->cr[4] & CR4_OSFXSR_MASK;
    if (sse && (image.mxcsr & ~(uint32_t)MX_VALID)) raise_exception_err_ra(env, EXCP0D_GPF, 0, ra);
    cm_x87_set_words(env, image.control, image.status);
    env->fpop = image.opcode & 0x7ff;
    const bool wide = in.operand_bytes == 8;
    env->fpip = wide ? image.ip : (uint32_t)image.ip;
    env->fpdp = wide ? image.dp : (uint32_t)image.dp;
    env->fpcs = wide ? 0 : (uint16_t)(image.ip >> 32);
    env->fpds = wide ? 0 : (uint16_t)(image.dp >> 32);
    for (unsigned i = 0; i < 8; i++) {
        floatx80* to = &env->fpregs[x87_physical(env, i)].d;
        memcpy(&to->low, image.st[i].value, 8);
        memcpy(&to->high, image.st[i].value + 8, 2);
        env->fptags[i] = !(image.full >> i & 1);
    }
    if (!sse) return;
    cpu_set_mxcsr(env, image.mxcsr);
    for (unsigned i = 0; i < xmm_registers(env); i++) memcpy(&env->xmm_regs[i], image.xmm[i], 16);
    cm_float_load(env);
}

enum cm_translated cm_translate_fxsave(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->mandatory != CM_NO_PREFIX || (in->prefixes & CM_PREFIX_LOCK)) {
        return cm_emit_exception(t, EXCP06_ILLOP);
    }
    if (t->dc->flags & (HF_EM_MASK | HF_TS_MASK)) return cm_emit_exception(t, EXCP07_PREX);
    return cm_emit_execute(t, in, in->reg & 1 ? fxrstor : fxsave, 0);
}

#endif
