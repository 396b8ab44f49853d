// SPDX-License-Identifier: GPL-2.0-or-later
// One x87 instruction under the whole of the guest's x87 state, on the host (see x87.h).
#if defined(__x86_64__)

#include "x87.h"

// FSAVE's image in 64-bit code (SDM vol. 1, figure 8-9 and 8.1.10).
typedef struct {
    uint16_t control, reserved0, status, reserved1, tags, reserved2;
    uint32_t ip, cs, dp, ds;
    uint8_t registers[8][10];  // ST(0) first
} __attribute__((packed)) Image;

// The opcode and ModRM are part of the instruction, so there is one form of it for each, 8 bytes of code
// apart: with ModRM C0-FF of each opcode D8-DF, and with a memory operand at RDI for each group. They are
// called with the guest's state in the host's x87; those that are not an instruction, never.
#define FORM_BYTES 8
__asm__(
    ".pushsection .text\n.balign 8\n"
    "cm_x87_register_forms:\n"
    ".set opcode, 0xd8\n.rept 8\n.set modrm, 0xc0\n.rept 64\n"
    ".byte opcode, modrm\n\tret\n.balign 8\n"
    ".set modrm, modrm + 1\n.endr\n.set opcode, opcode + 1\n.endr\n"
    "cm_x87_memory_forms:\n"
    ".set opcode, 0xd8\n.rept 8\n.set modrm, 0x07\n.rept 8\n"
    ".byte opcode, modrm\n\tret\n.balign 8\n"
    ".set modrm, modrm + 8\n.endr\n.set opcode, opcode + 1\n.endr\n"
    ".popsection");
extern const uint8_t cm_x87_register_forms[] __attribute__((visibility("hidden")));
extern const uint8_t cm_x87_memory_forms[] __attribute__((visibility("hidden")));

// Bytes of a memory operand by group, negative where it is stored. The instructions that are not in this
// list work on control state.
static const int8_t operand_bytes[64] = {
    4, 4,  4,  4,  4,  4,  4,   4,    // D8: arithmetic with m32fp
    4, 0,  -4, -4, 0,  0,  0,   0,    // D9: FLD, FST, FSTP m32fp
    4, 4,  4,  4,  4,  4,  4,   4,    // DA: arithmetic with m32int
    4, -4, -4, -4, 0,  10, 0,   -10,  // DB: FILD, FISTTP, FIST, FISTP m32int; FLD, FSTP m80fp
    8, 8,  8,  8,  8,  8,  8,   8,    // DC: arithmetic with m64fp
    8, -8, -8, -8, 0,  0,  0,   0,    // DD: FLD, FISTTP, FST, FSTP m64
    2, 2,  2,  2,  2,  2,  2,   2,    // DE: arithmetic with m16int
    2, -2, -2, -2, 10, 8,  -10, -8    // DF: FILD, FISTTP, FIST, FISTP m16int; FBLD, FILD, FBSTP, FISTP
};

unsigned cm_x87_operand_bytes(x87_op op) {
    const int bytes = operand_bytes[x87_group(op)];
    return (unsigned)(bytes < 0 ? -bytes : bytes);
}

bool cm_x87_stores(x87_op op) { return operand_bytes[x87_group(op)] < 0; }

// The sticky flags do not go along: no instruction's result depends on them, and one that is pending must not
// reach the host.
static void fill(Image* image, const CPUX86State* env) {
    *image = (Image){.control = env->fpuc | FCW_RESERVED_1,
                     .status = (uint16_t)((env->fpus & FSW_CONDITIONS) | env->fpstt << FSW_TOP_SHIFT)};
    for (unsigned i = 0; i < 8; i++) {
        memcpy(image->registers[i], &env->fpregs[x87_physical(env, i)].d, 10);
        if (env->fptags[i]) image->tags |= 3 << 2 * i;
    }
}

static void take(CPUX86State* env, const Image* image) {
    env->fpus = (env->fpus & FSW_STICKY) | (image->status & (FSW_STICKY | FSW_CONDITIONS));
    env->fpstt = image->status >> FSW_TOP_SHIFT & 7;
    for (unsigned i = 0; i < 8; i++) {
        floatx80* to = &env->fpregs[x87_physical(env, i)].d;
        memcpy(&to->low, image->registers[i], 8);
        memcpy(&to->high, image->registers[i] + 8, 2);
        env->fptags[i] = (image->tags >> 2 * i & 3) == 3;
    }
    x87_update_summary(env);
}

// Returns bits 0-7 of RFLAGS after the instruction. FNSAVE does not wait for what the instruction left
// pending, and initialises the host's x87. The stack pointer is moved out of the red zone for the call.
static uint32_t run(Image* image, const uint8_t* form, void* operand, uint32_t flags) {
    uint64_t rax = (flags & 0xff) << 8;
    __asm__ volatile(
        "frstor %[image]\n\t"
        "sahf\n\t"
        "lea -128(%%rsp), %%rsp\n\t"
        "call *%[form]\n\t"
        "lea 128(%%rsp), %%rsp\n\t"
        "lahf\n\t"
        "fnsave %[image]"
        : [image] "+m"(*image), "+a"(rax)
        : [form] "r"(form), "D"(operand)
        : "cc", "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    return rax >> 8 & 0xff;
}

uint32_t cm_x87_whole(CPUX86State* env, x87_op op, uint32_t flags, uintptr_t ra) {
    Image image;
    x87_wait(env, ra);
    fill(&image, env);
    const unsigned number = (op >> 8 & 7) << 6 | (op & 0x3f);
    flags = run(&image, cm_x87_register_forms + number * FORM_BYTES, NULL, flags);
    take(env, &image);
    x87_note(env, op);
    return flags;
}

// Whether the operand was written: an unmasked exception before the computation leaves it alone (SDM vol. 1,
// 8.5). A store that writes what is there already looks the same, so it is tried over two contents.
static bool run_store(Image* image, const uint8_t* form, uint8_t operand[10], unsigned bytes) {
    uint8_t before[10];
    const Image start = *image;
    for (int content = 0; content < 2; content++) {
        memset(before, content ? 0x33 : 0xcc, sizeof before);
        memcpy(operand, before, sizeof before);
        *image = start;
        run(image, form, operand, 0);
        if (memcmp(operand, before, bytes) != 0) return true;
    }
    return false;
}

void cm_x87_whole_memory(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra) {
    Image image;
    uint8_t operand[10] = {0};
    const unsigned bytes = cm_x87_operand_bytes(op);
    const uint8_t* form = cm_x87_memory_forms + x87_group(op) * FORM_BYTES;
    x87_wait(env, ra);
    fill(&image, env);
    if (!cm_x87_stores(op)) {
        x87_load(env, address, operand, bytes, ra);
        run(&image, form, operand, 0);
    } else if (run_store(&image, form, operand, bytes)) {
        x87_store(env, address, operand, bytes, ra);
    } else {
        if (env->eflags & AC_MASK) cm_x87_check_alignment(env, address, bytes, ra);
        cm_x87_probe_store(env, address, bytes, ra);  // a page fault comes first all the same
    }
    take(env, &image);
    x87_note_operand(env, address, op);
}

#endif
