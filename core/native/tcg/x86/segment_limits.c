// SPDX-License-Identifier: GPL-2.0-or-later
// Limits, types and presence of segments outside 64-bit code (SDM vol. 3A 5.3 and 5.4).
//
// The engine computes linear addresses and asks no more. Programs and kernels have flat segments, which must
// cost nothing. So hflags, which blocks are translated by, says whether some segment in use is another one,
// and only then the accesses of a block are checked, each by the segment that its instruction takes: by a
// call before the access, which computes the offset back from the linear address. The end of 4 GiB, the one
// limit of a flat segment, is looked at where an access runs over the end of a page (accesses.c).
//
// CS is code_limit.c's. MASKMOVQ and MASKMOVDQU, which name no operand, check theirs themselves (vector.c).
#include "segment_limits.h"
#include "tcg/tcg-op.h"

#include "engine_calls.h"
#include "segments.h"

// All of 4 GiB can be read and written.
static bool is_flat(const SegmentCache* s) {
    const uint32_t data = DESC_P_MASK | DESC_S_MASK | DESC_W_MASK;
    return s->limit == UINT32_MAX && (s->flags & (data | DESC_CS_MASK | DESC_E_MASK)) == data;
}

void cm_note_segments_anew(CPUX86State* env) {
    uint32_t checks = 0;
    if (!(env->hflags & HF_CS64_MASK)) {
        const SegmentCache* s = env->segs;
        const uint32_t last = s[R_CS].flags & DESC_B_MASK ? UINT32_MAX : UINT16_MAX;
        if (s[R_CS].limit < last) checks |= CM_CHECK_CODE;
        if (!is_flat(&s[R_DS]) || !is_flat(&s[R_ES]) || !is_flat(&s[R_SS])) checks |= CM_CHECK_DATA;
        if (!is_flat(&s[R_FS])) checks |= CM_CHECK_FS;
        if (!is_flat(&s[R_GS])) checks |= CM_CHECK_GS;
    }
    env->hflags = (env->hflags & ~(uint32_t)CM_CHECK_ANY) | checks;
}

static bool may_access(const CPUX86State* env, const SegmentCache* s, uint32_t offset, unsigned size,
                       bool write) {
    const uint64_t last = (uint64_t)offset + size - 1;
    const bool is_code = s->flags & DESC_CS_MASK;
    if ((env->cr[0] & CR0_PE_MASK) && !(env->eflags & VM_MASK)) {
        if (!(s->flags & DESC_P_MASK)) return false;  // null, or never loaded
        if (write && (is_code || !(s->flags & DESC_W_MASK))) return false;
        if (!write && is_code && !(s->flags & DESC_R_MASK)) return false;
    }
    if (is_code || !(s->flags & DESC_E_MASK)) return last <= s->limit;
    return offset > s->limit && last <= (s->flags & DESC_B_MASK ? UINT32_MAX : UINT16_MAX);
}

void cm_check_segment(CPUX86State* env, int segment, target_ulong linear, unsigned size, bool write,
                      uintptr_t ra) {
    const SegmentCache* s = &env->segs[segment];
    if (env->hflags & HF_CS64_MASK) return;
    if (likely(may_access(env, s, (uint32_t)(linear - s->base), size, write))) return;
    raise_exception_err_ra(env, segment == R_SS ? EXCP0C_STACK : EXCP0D_GPF, 0, ra);
}

// --- Translation ---

// What an access is checked for, as the argument of a call.
union check {
    uint64_t word;
    struct {
        uint16_t size;
        uint8_t segment, write;
    };
};

static void check(CPUX86State* env, target_ulong linear, uint64_t word) {
    const union check c = {.word = word};
    cm_check_segment(env, c.segment, linear, c.size, c.write, GETPC());
}

static bool is_store(const TCGOp* op) {
    return op->opc == INDEX_op_qemu_st_i64 || op->opc == INDEX_op_qemu_st_i32;
}

static bool is_access(const TCGOp* op) {
    return is_store(op) || op->opc == INDEX_op_qemu_ld_i64 || op->opc == INDEX_op_qemu_ld_i32;
}

// Of an operand that no ModRM byte names: the segment of the prefix, or DS.
static int source(const struct cm_instruction* in) {
    return in->segment == CM_NO_SEGMENT ? CM_DS : in->segment;
}

// The segment of an access: `nth` of its instruction, from 0.
static int segment_of(const struct cm_instruction* in, bool store, unsigned nth) {
    const unsigned op = in->opcode, group = in->modrm >> 3 & 7;
    if (in->map == CM_MAP_0F && (op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9)) return CM_SS;
    if (in->map != CM_MAP_1) return in->operand_segment;
    switch (op) {
        case 0x06:
        case 0x07:
        case 0x0e:
        case 0x16:
        case 0x17:
        case 0x1e:
        case 0x1f:
        case 0x50 ... 0x61:
        case 0x68:
        case 0x6a:
        case 0x9a:
        case 0x9c:
        case 0x9d:
        case 0xc2:
        case 0xc3:
        case 0xc8 ... 0xcb:
        case 0xcf:
        case 0xe8:
            return CM_SS;
        case 0x8f:  // POP of memory
            return store ? in->operand_segment : CM_SS;
        case 0xff:  // CALL, PUSH of memory
            return store && group >= 2 ? CM_SS : in->operand_segment;
        case 0xa6:
        case 0xa7:  // CMPS: the engine reads at EDI first
            return nth == 0 ? CM_ES : source(in);
        case 0x6c:
        case 0x6d:
        case 0xaa:
        case 0xab:
        case 0xae:
        case 0xaf:  // INS, STOS, SCAS
            return CM_ES;
        case 0xa4:
        case 0xa5:  // MOVS
            return store ? CM_ES : source(in);
        case 0x6e:
        case 0x6f:
        case 0xa0 ... 0xa3:
        case 0xac:
        case 0xad:
        case 0xd7:  // OUTS, MOV of an offset, LODS, XLAT
            return source(in);
        default:
            return in->operand_segment;
    }
}

static bool needs_check(const struct cm_translator* t, int segment) {
    const uint64_t flags = t->dc->flags;
    if (segment == CM_CS) return true;  // is not written, for one
    return flags & (segment == CM_FS ? CM_CHECK_FS : segment == CM_GS ? CM_CHECK_GS : CM_CHECK_DATA);
}

// The memory operand of an x87 instruction: its bytes, and whether it is written.
static unsigned x87_operand(const struct cm_instruction* in, bool* write) {
    const unsigned group = in->modrm >> 3 & 7, environment = in->operand_bytes == 2 ? 14 : 28;
    const bool stores = group >= 2 && group != 4 && group != 5;
    switch (in->opcode) {
        case 0xd9:
            *write = stores || group == 2;
            return group == 4 || group == 6 ? environment : group & 4 ? 2 : 4;
        case 0xdb:
            *write = (group >= 1 && group <= 3) || group == 7;
            return group >= 5 ? 10 : 4;
        case 0xdd:
            *write = (group >= 1 && group <= 3) || group >= 6;
            return group == 4 || group == 6 ? environment + 80 : group == 7 ? 2 : 8;
        case 0xdf:
            *write = (group >= 1 && group <= 3) || group >= 6;
            return group == 4 || group == 6 ? 10 : group & 4 ? 8 : 2;
        default:
            *write = false;
            return in->opcode == 0xdc ? 8 : in->opcode == 0xde ? 2 : 4;
    }
}

// The same of an operand that a called function accesses: of an instruction with LOCK or XCHG, or ours.
static unsigned called_operand(const struct cm_instruction* in, bool* write) {
    const unsigned op = in->opcode, group = in->modrm >> 3 & 7;
    *write = true;
    if (in->map == CM_MAP_1) {
        if (op >= 0xd8 && op <= 0xdf) return x87_operand(in, write);
        if (op == 0x62) {  // BOUND
            *write = false;
            return 2u * in->operand_bytes;
        }
        return op & 1 ? in->operand_bytes : 1;
    }
    if (in->map == CM_MAP_0F) {
        if (op == 0xae) {
            *write = group == 0;
            return group <= 1 ? 512 : 4;
        }
        if (op == 0xc7) return 8;
        if (op == 0xb0 || op == 0xc0 || (op & 0xf0) == 0x90) return 1;
        return in->operand_bytes;
    }
    *write = in->map == CM_MAP_0F38 && op == 0xf1;  // MOVBE
    return in->map == CM_MAP_0F38 && op >= 0xf0 ? in->operand_bytes : 16;
}

// The argument has a temporary that the engine did not have for this instruction: one that it has freed may
// still be read behind the access.
static void emit_check(struct cm_translator* t, TCGOp* access, TCGArg address, union check what) {
    static HelperInfo info = {
        check, "check_segment", TCG_CALL_NO_WG,
        dh_sizemask(void, 0) | dh_sizemask(ptr, 1) | dh_sizemask(i64, 2) | dh_sizemask(i64, 3)};
    TCGContext* tcg = t->tcg;
    TCGOp* mark = QTAILQ_LAST(&tcg->ops);
    tcg_gen_movi_i64(tcg, t->check_word, (int64_t)what.word);
    TCGTemp* args[] = {tcgv_ptr_temp(tcg, tcg->cpu_env), arg_temp(address),
                       tcgv_i64_temp(tcg, t->check_word)};
    cm_emit_call(tcg, &info, 3, args);
    cm_move_ops_before(tcg, mark, access);
}

// A call with the linear address of the memory operand as its second argument.
static bool takes_operand(const struct cm_translator* t, const TCGOp* op) {
    if (op->opc != INDEX_op_call || TCGOP_CALLI(op) < 2) return false;
    const TCGArg* inputs = &op->args[TCGOP_CALLO(op)];
    if (inputs[0] != tcgv_ptr_arg(t->tcg, t->tcg->cpu_env)) return false;
    return inputs[1] != TCG_CALL_DUMMY_ARG && arg_temp(inputs[1])->type == TCG_TYPE_I64;
}

// LEA, NOP, PREFETCH, INVLPG and CLFLUSH ask for no access.
static bool has_operand(const struct cm_instruction* in) {
    if (!in->is_memory) return false;
    if (in->map == CM_MAP_1) return in->opcode != 0x8d;
    if (in->map != CM_MAP_0F) return true;
    return in->opcode != 0x01 && in->opcode != 0x0d && (in->opcode < 0x18 || in->opcode > 0x1f) &&
           (in->opcode != 0xae || (in->modrm >> 3 & 7) != 7);
}

static bool loads_segment(const TCGOp* op) {
    return op->opc == INDEX_op_call &&
           op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op)] == (TCGArg)(uintptr_t)HELPER(load_seg);
}

static bool has_access(const struct cm_translator* t) {
    for (const TCGOp* op = QTAILQ_NEXT(t->before, link); op; op = QTAILQ_NEXT(op, link)) {
        if (is_access(op)) return true;
    }
    return false;
}

void cm_emit_segment_checks(struct cm_translator* t) {
    struct cm_instruction in;
    if (cm_decode(t->bytes, t->available, cm_code_size_of(t), &in) != CM_DECODED) return;
    if (!(t->dc->flags & CM_CHECK_ACCESSES) && in.segment != CM_CS) {
        // Behind a load of a segment register the block may be another one.
        for (const TCGOp* op = QTAILQ_NEXT(t->before, link); op; op = QTAILQ_NEXT(op, link)) {
            if (loads_segment(op) && t->dc->base.is_jmp == DISAS_NEXT) t->dc->base.is_jmp = DISAS_TOO_MANY;
        }
        return;
    }
    const bool by_call = has_operand(&in) && !has_access(t);
    unsigned accesses = 0;
    for (TCGOp* op = QTAILQ_NEXT(t->before, link); op; op = QTAILQ_NEXT(op, link)) {
        if (is_access(op)) {
            const bool store = is_store(op);
            const int segment = segment_of(&in, store, accesses++);
            if (!needs_check(t, segment)) continue;
            const MemOp memop = get_memop((TCGMemOpIdx)op->args[2]);
            emit_check(t, op, op->args[1],
                       (union check){.size = (uint16_t)(memop & CM_MO_PAIR ? 16 : 1 << (memop & MO_SIZE)),
                                     .segment = (uint8_t)segment,
                                     .write = store || (memop & CM_MO_WRITTEN)});
        } else if (loads_segment(op)) {
            if (t->dc->base.is_jmp == DISAS_NEXT) t->dc->base.is_jmp = DISAS_TOO_MANY;
        } else if (by_call && takes_operand(t, op) && needs_check(t, in.operand_segment)) {
            bool write;
            const unsigned size = called_operand(&in, &write);
            emit_check(t, op, op->args[TCGOP_CALLO(op) + 1],
                       (union check){
                           .size = (uint16_t)size, .segment = (uint8_t)in.operand_segment, .write = write});
        }
    }
}
