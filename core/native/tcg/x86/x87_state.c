// SPDX-License-Identifier: GPL-2.0-or-later
// x87 state in memory: FLDCW, FLDENV, FNSTENV, FRSTOR, FNSAVE. All of an image is read before any of the
// state changes, and all of it may be written before its first byte is.
#if defined(__x86_64__)

#include "x87.h"

void cm_x87_initialise(CPUX86State* env) {
    env->fpus = 0;
    env->fpstt = 0;
    env->fpip = env->fpdp = 0;
    env->fpcs = env->fpds = env->fpop = 0;
    memset(env->fptags, 1, sizeof env->fptags);
    env->fpuc = FCW_DEFAULT;
    x87_forget_flags(env);
}

static void set_control(CPUX86State* env, uint16_t control) {
    env->fpuc = (control & FCW_SETTABLE) | FCW_RESERVED_1;
    x87_update_summary(env);
}

static void set_status(CPUX86State* env, uint16_t status) {
    env->fpstt = status >> FSW_TOP_SHIFT & 7;
    env->fpus = status & (FSW_STICKY | FSW_CONDITIONS);
    x87_forget_flags(env);
    x87_update_summary(env);
}

void cm_x87_set_words(CPUX86State* env, uint16_t control, uint16_t status) {
    set_control(env, control);
    set_status(env, status);
}

static uint16_t status_of(const CPUX86State* env) {
    return (uint16_t)(env->fpus | env->fpstt << FSW_TOP_SHIFT);
}

void cm_x87_load_control(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    uint16_t control;
    (void)op;
    x87_wait(env, ra);
    x87_load(env, address, &control, sizeof control, ra);
    set_control(env, control);
}

// --- The environment: 28 bytes, or 14 in its 16-bit form (SDM vol. 1, figures 8-9 to 8-12) ---

enum { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

static unsigned tag_of(const CPUX86State* env, unsigned physical) {
    const floatx80 value = env->fpregs[physical].d;
    const unsigned exponent = value.high & 0x7fff;
    if (env->fptags[physical]) return TAG_EMPTY;
    if (!exponent && !value.low) return TAG_ZERO;
    return !exponent || exponent == 0x7fff || !(value.low >> 63) ? TAG_SPECIAL : TAG_VALID;
}

static bool is_real_mode(const CPUX86State* env) {
    return !(env->cr[0] & CR0_PE_MASK) || (env->eflags & VM_MASK);
}

static unsigned environment_bytes(x87_op op) { return op & OP_NARROW ? 14 : 28; }

// As seven words of 32 bits; those of the 16-bit form are their low halves.
static void environment_words(const CPUX86State* env, x87_op op, uint32_t words[7]) {
    const uint32_t unused = 0xffff0000;
    uint32_t tags = 0;
    for (unsigned i = 0; i < 8; i++) tags |= tag_of(env, i) << 2 * i;
    words[0] = unused | env->fpuc;
    words[1] = unused | status_of(env);
    words[2] = unused | tags;
    if (is_real_mode(env)) {
        // Linear addresses, and the opcode.
        const uint32_t ip = (env->fpcs << 4) + (uint32_t)env->fpip;
        const uint32_t dp = (env->fpds << 4) + (uint32_t)env->fpdp;
        words[3] = unused | (ip & 0xffff);
        words[5] = unused | (dp & 0xffff);
        if (op & OP_NARROW) {
            words[4] = (ip >> 16 & 0xf) << 12 | env->fpop;
            words[6] = (dp >> 16 & 0xf) << 12;
        } else {
            words[4] = (ip >> 16) << 12 | env->fpop;
            words[6] = (dp >> 16) << 12;
        }
        return;
    }
    words[3] = (uint32_t)env->fpip;
    words[4] = env->fpcs | (uint32_t)env->fpop << 16;
    words[5] = (uint32_t)env->fpdp;
    words[6] = unused | env->fpds;
}

static void take_words(CPUX86State* env, x87_op op, const uint32_t words[7]) {
    cm_x87_set_words(env, (uint16_t)words[0], (uint16_t)words[1]);
    for (unsigned i = 0; i < 8; i++) env->fptags[i] = (words[2] >> 2 * i & 3) == TAG_EMPTY;
    if (is_real_mode(env)) {
        const uint32_t high = op & OP_NARROW ? 0xf : 0xffff;
        env->fpip = (words[3] & 0xffff) | (words[4] >> 12 & high) << 16;
        env->fpdp = (words[5] & 0xffff) | (words[6] >> 12 & high) << 16;
        env->fpop = words[4] & 0x7ff;
        env->fpcs = env->fpds = 0;
        return;
    }
    const uint32_t offset = op & OP_NARROW ? 0xffff : 0xffffffff;
    env->fpip = words[3] & offset;
    env->fpcs = (uint16_t)words[4];
    env->fpop = op & OP_NARROW ? 0 : words[4] >> 16 & 0x7ff;
    env->fpdp = words[5] & offset;
    env->fpds = (uint16_t)words[6];
}

static void pack(x87_op op, const uint32_t words[7], uint8_t* image) {
    const unsigned bytes = op & OP_NARROW ? 2 : 4;
    for (unsigned i = 0; i < 7; i++) memcpy(image + i * bytes, &words[i], bytes);
}

static void unpack(x87_op op, const uint8_t* image, uint32_t words[7]) {
    const unsigned bytes = op & OP_NARROW ? 2 : 4;
    memset(words, 0, 7 * sizeof words[0]);
    for (unsigned i = 0; i < 7; i++) memcpy(&words[i], image + i * bytes, bytes);
}

void cm_x87_store_environment(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    uint8_t image[28];
    uint32_t words[7];
    environment_words(env, op, words);
    pack(op, words, image);
    x87_store(env, address, image, environment_bytes(op), ra);
    set_control(env, env->fpuc | FCW_MASKS);
}

void cm_x87_load_environment(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    uint8_t image[28];
    uint32_t words[7];
    x87_wait(env, ra);
    x87_load(env, address, image, environment_bytes(op), ra);
    unpack(op, image, words);
    take_words(env, op, words);
}

// The environment, then ST(0) to ST(7), 10 bytes each.
void cm_x87_save(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    uint8_t image[108];
    uint32_t words[7];
    const unsigned before = environment_bytes(op);
    environment_words(env, op, words);
    pack(op, words, image);
    for (unsigned i = 0; i < 8; i++)
        memcpy(image + before + 10 * i, &env->fpregs[x87_physical(env, i)].d, 10);
    x87_store(env, address, image, before + 80, ra);
    cm_x87_initialise(env);
}

void cm_x87_restore(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    uint8_t image[108];
    uint32_t words[7];
    const unsigned before = environment_bytes(op);
    x87_wait(env, ra);
    x87_load(env, address, image, before + 80, ra);
    unpack(op, image, words);
    take_words(env, op, words);
    for (unsigned i = 0; i < 8; i++) {
        floatx80* to = &env->fpregs[x87_physical(env, i)].d;
        memcpy(&to->low, image + before + 10 * i, 8);
        memcpy(&to->high, image + before + 10 * i + 8, 2);
    }
}

#endif
