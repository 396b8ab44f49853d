// SPDX-License-Identifier: GPL-2.0-or-later
// Which fault an address that is not canonical makes: #SS(0) when the access goes through the stack segment,
// else #GP(0) (SDM vol. 1 3.3.7.1; vol. 3A 6.15, interrupt 12). The engine knows the address alone, so the
// instruction is decoded again.
#include "decode.h"
#include "segments.h"
#include "translator.h"

// Pushes and pops beside their operand.
static bool uses_stack(const struct cm_instruction* in) {
    const unsigned op = in->opcode, group = in->modrm >> 3 & 7;
    if (in->map == CM_MAP_0F)
        return op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9;  // PUSH, POP FS, GS
    if (in->map != CM_MAP_1) return false;
    switch (op) {
        case 0x50 ... 0x5f:  // PUSH, POP
        case 0x68:
        case 0x6a:
        case 0x8f:  // PUSH immediate, POP memory
        case 0x9c:
        case 0x9d:  // PUSHF, POPF
        case 0xc2:
        case 0xc3:
        case 0xc8:
        case 0xc9:  // RET, ENTER, LEAVE
        case 0xe8:  // CALL
            return true;
        case 0xff:  // CALL, PUSH
            return group == 2 || group == 6;
        default:
            return false;
    }
}

// The operand of such an instruction lies where the stack does not.
static bool is_at_stack(const CPUX86State* env, const struct cm_instruction* in, target_ulong address) {
    if (!in->is_memory) return true;
    const target_ulong widest = 8, from_below = address - (env->regs[R_ESP] - widest);
    return from_below < 2 * widest;
}

// The segment of an access at RIP: SS, or that of the operand.
static int segment_at(CPUX86State* env, target_ulong address) {
    const enum cm_code_size size = env->hflags & HF_CS64_MASK   ? CM_CODE64
                                   : env->hflags & HF_CS32_MASK ? CM_CODE32
                                                                : CM_CODE16;
    uint8_t bytes[CM_LONGEST_INSTRUCTION];
    struct cm_instruction in;
    enum cm_decoded decoded = CM_NEEDS_MORE;
    size_t length = 0;
    // Byte by byte: what follows the instruction may lie on a page that is missing.
    while (decoded == CM_NEEDS_MORE && length < sizeof bytes) {
        bytes[length] = cpu_ldub_code(env, env->segs[R_CS].base + env->eip + length);
        length++;
        decoded = cm_decode(bytes, length, size, &in);
    }
    if (decoded != CM_DECODED) return CM_DS;
    if (uses_stack(&in) && is_at_stack(env, &in, address)) return CM_SS;
    return in.operand_segment;
}

void cm_check_end_of_segment(CPUX86State* env, target_ulong address, unsigned size, uintptr_t from) {
    CPUState* cs = env_cpu(env);
    if (address + size - 1 <= UINT32_MAX || !cpu_restore_state(cs, from, true)) return;
    const int segment = segment_at(env, address);
    if ((uint32_t)(address - env->segs[segment].base) + (uint64_t)size - 1 <= UINT32_MAX) return;
    raise_exception_err_ra(env, segment == CM_SS ? EXCP0C_STACK : EXCP0D_GPF, 0, from);
}

static bool fill(CPUState* cs, vaddr address, int size, MMUAccessType access, int mmu_index, bool probe,
                 uintptr_t ra) {
    CPUX86State* env = cs->env_ptr;
    if (!cm_is_canonical(address) && cm_long_mode(env) && !probe && access != MMU_INST_FETCH &&
        (env->hflags & HF_CS64_MASK) && cpu_restore_state(cs, ra, true)) {
        const int vector = segment_at(env, address) == CM_SS ? EXCP0C_STACK : EXCP0D_GPF;
        raise_exception_err_ra(env, vector, 0, ra);
    }
    return x86_cpu_tlb_fill(cs, address, size, access, mmu_index, probe, ra);
}

void cm_canonical_attach(struct cm_engine* engine) { engine->cs->cc->tlb_fill = fill; }
