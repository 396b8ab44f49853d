// SPDX-License-Identifier: GPL-2.0-or-later
// The limit of CS outside 64-bit code: a near branch that leads beyond it is #GP(0) of the branch, which has
// changed nothing (SDM vol. 2A, JMP, CALL, Jcc, LOOP; vol. 2B, RET); an instruction whose bytes run over it
// is #GP(0) at its start (SDM vol. 3A 5.3). Far transfers check where they lead (segments.c).
//
// Flat code must cost nothing, so hflags says whether the limit is below what its offsets can reach
// (cm_note_segments). Where it is not, the checks that remain are those of offsets known at translation: the
// last bytes of 4 GiB, and in 16-bit code branches of 32 bits.
#include "segment_limits.h"

#include "segments.h"

// Raised without a return address: the instruction has stored its RIP and its flags before it asks.
static void refuse(CPUX86State* env) { raise_exception_err_ra(env, EXCP0D_GPF, 0, 0); }

static void check_length(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)address;
    if ((uint64_t)(uint32_t)env->eip + in.length - 1 > env->segs[R_CS].limit) refuse(env);
}

// Whether a condition of Jcc holds (SDM vol. 1, appendix B).
static bool holds(uint32_t flags, unsigned condition) {
    const bool less = !(flags & CC_S) != !(flags & CC_O);
    const bool of_even[] = {
        flags & CC_O, flags & CC_C, flags & CC_Z, flags & (CC_C | CC_Z),
        flags & CC_S, flags & CC_P, less,         less || (flags & CC_Z),
    };
    return of_even[condition >> 1] != (condition & 1);
}

// For relative branches: `in.immediate` has the bytes of the count.
static bool is_taken(CPUX86State* env, union cm_operands in) {
    if (in.opcode >= 0x70 && in.opcode <= 0x8f) return holds(cm_arithmetic_flags(env), in.opcode & 15);
    if (in.opcode > 0xe3) return true;  // CALL, JMP
    const uint32_t count = (uint32_t)env->regs[R_ECX] & (in.immediate == 2 ? UINT16_MAX : UINT32_MAX);
    if (in.opcode == 0xe3) return count == 0;  // JCXZ
    if (count == 1) return false;
    return in.opcode == 0xe2 || holds(cm_arithmetic_flags(env), in.opcode == 0xe1 ? 4 : 5);  // LOOP, LOOPcc
}

static uint32_t load(CPUX86State* env, int segment, target_ulong linear, unsigned size) {
    cm_check_segment(env, segment, linear, size, false, 0);
    return size == 2 ? cpu_lduw_data_ra(env, linear, 0) : cpu_ldl_data_ra(env, linear, 0);
}

static void check_branch(CPUX86State* env, target_ulong address, union cm_operands in) {
    const unsigned size = in.operand_bytes;
    uint32_t target = (uint32_t)address;
    if (in.opcode == 0xc2 || in.opcode == 0xc3) {
        const struct cm_stack stack = cm_current_stack(env);
        target = load(env, R_SS, (uint32_t)(stack.base + (stack.pointer & stack.mask)), size);
    } else if (in.opcode == 0xff) {
        target = in.memory ? load(env, in.immediate, address, size) : (uint32_t)env->regs[in.rm];
    } else if (!is_taken(env, in)) {
        return;
    }
    if (size == 2) target &= UINT16_MAX;
    if (target > env->segs[R_CS].limit) refuse(env);
}

// --- Translation ---

static bool is_relative(const struct cm_instruction* in) {
    if (in->map == CM_MAP_0F) return (in->opcode & 0xf0) == 0x80;
    if (in->map != CM_MAP_1) return false;
    return (in->opcode & 0xf0) == 0x70 || (in->opcode >= 0xe0 && in->opcode <= 0xe3) || in->opcode == 0xe8 ||
           in->opcode == 0xe9 || in->opcode == 0xeb;
}

static bool is_indirect(const struct cm_instruction* in) {
    const unsigned group = in->modrm >> 3 & 7;
    if (in->map != CM_MAP_1) return false;
    return in->opcode == 0xc2 || in->opcode == 0xc3 || (in->opcode == 0xff && (group == 2 || group == 4));
}

static void emit_branch_check(struct cm_translator* t, const struct cm_instruction* in, uint32_t target) {
    struct cm_instruction asked = *in;
    if (is_relative(in)) {
        // Its target goes as the address of an operand.
        asked.is_memory = true;
        asked.code_size = CM_CODE64;
        asked.base = asked.index = CM_NO_REGISTER;
        asked.displacement = (int32_t)target;
        asked.operand_segment = CM_DS;
        asked.immediate = in->address_bytes;
        asked.address_bytes = 4;
    } else {
        asked.immediate = in->operand_segment;
    }
    cm_emit_execute(t, &asked, check_branch, CM_READS_FLAGS | CM_READS_RIP);
}

bool cm_may_leave_code(const struct cm_translator* t) {
    const uint32_t offset = (uint32_t)(t->pc - t->dc->cs_base);
    return (t->dc->flags & CM_CHECK_CODE) || !t->dc->code32 || offset > UINT32_MAX - CM_LONGEST_INSTRUCTION;
}

void cm_require_code_byte(const struct cm_translator* t, target_ulong at) {
    // An instruction that may cross its page begins its block: what is raised now is raised in its place.
    if (t->dc->code64 || ((at ^ t->pc) & TARGET_PAGE_MASK) == 0 || !cm_may_leave_code(t)) return;
    if ((uint32_t)(at - t->dc->cs_base) > t->env->segs[R_CS].limit) refuse(t->env);
}

void cm_emit_code_checks(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    const bool limited = t->dc->flags & CM_CHECK_CODE;
    const uint32_t offset = (uint32_t)(t->pc - t->dc->cs_base);
    const uint32_t top = t->dc->code32 ? UINT32_MAX : UINT16_MAX;
    const uint64_t end = (uint64_t)offset + in->length;
    const uint32_t target =
        (uint32_t)(end + (uint64_t)in->immediate) & (in->operand_bytes == 2 ? UINT16_MAX : UINT32_MAX);
    // In front of the op that begins the instruction: what it notes of the flags has to be the last.
    TCGOp* start = QTAILQ_LAST(&tcg->ops);
    if (limited || end - 1 > top) cm_emit_execute(t, in, check_length, CM_READS_FLAGS | CM_READS_RIP);
    if (is_relative(in) ? limited || target > top : is_indirect(in) && (limited || in->operand_bytes == 4))
        emit_branch_check(t, in, target);
    cm_move_ops_before(tcg, start, start);
}
