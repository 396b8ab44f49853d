// SPDX-License-Identifier: GPL-2.0-or-later
// What an instruction asks of its memory accesses beyond their size. The engine's ops do not say it, so it is
// read off the instruction that they were emitted for, and kept in their MemOp:
//
// - MO_ALIGN_16: the operand of an SSE instruction with 16 bytes, #GP(0) if it is not aligned (SDM vol. 2A,
//   2.4.3, exception types 1, 2 and 4). The alignment is compared together with the page, so it costs
//   nothing.
// - CM_MO_PAIR: the first of two halves of 16 bytes. Both pages are looked at before a half is stored, or
//   loaded into a register.
// - CM_MO_WRITTEN: a load of what is then stored to. It faults as a write does (SDM vol. 3A, 4.7), before
//   anything has changed.
// - MO_ALIGN: #AC(0), if alignment is checked (SDM vol. 3A, 6.15, interrupt 17). Nothing of it is there when
// it
//   is not.
#include "accesses.h"
#include "segments.h"

static bool is_load(const TCGOp* op) {
    return op->opc == INDEX_op_qemu_ld_i64 || op->opc == INDEX_op_qemu_ld_i32;
}

static bool is_store(const TCGOp* op) {
    return op->opc == INDEX_op_qemu_st_i64 || op->opc == INDEX_op_qemu_st_i32;
}

static void mark_access(TCGOp* op, unsigned bits) {
    const TCGMemOpIdx oi = (TCGMemOpIdx)op->args[2];
    op->args[2] = make_memop_idx(get_memop(oi) | bits, get_mmuidx(oi));
}

// The engine loads 16 bytes for these too; the half that is too many is taken out later (operand_width.c).
static bool is_narrower(const struct cm_instruction* in) {
    if (in->map == CM_MAP_0F3A) return in->opcode == 0x0a || in->opcode == 0x0b;  // ROUNDSS, ROUNDSD
    if (in->map != CM_MAP_0F) return false;
    // CVTDQ2PD; CVTTPS2PI, CVTPS2PI, CVTPS2PD
    if (in->opcode == 0xe6) return in->mandatory == CM_WITH_F3;
    return in->mandatory == CM_NO_PREFIX && (in->opcode == 0x2c || in->opcode == 0x2d || in->opcode == 0x5a);
}

static bool takes_any_alignment(const struct cm_instruction* in) {
    if (in->map == CM_MAP_0F3A) return in->opcode >= 0x60 && in->opcode <= 0x63;  // PCMPxSTRx
    if (in->map != CM_MAP_0F) return false;
    switch (in->opcode) {
        case 0x10:
        case 0x11:
            return true;  // MOVUPS, MOVUPD
        case 0x6f:
        case 0x7f:
            return in->mandatory == CM_WITH_F3;  // MOVDQU
        case 0xf0:
            return in->mandatory == CM_WITH_F2;  // LDDQU
        default:
            return false;
    }
}

static void clear_alignment(TCGOp* op) {
    const TCGMemOpIdx oi = (TCGMemOpIdx)op->args[2];
    op->args[2] = make_memop_idx(get_memop(oi) & ~MO_AMASK, get_mmuidx(oi));
}

static void mark_pair(struct cm_translator* t, TCGOp* first, TCGOp* second, bool alignment,
                      struct cm_instruction* in) {
    if (!in->length) cm_decode(t->bytes, t->available, cm_code_size_of(t), in);
    if (is_narrower(in)) return;
    clear_alignment(first);
    clear_alignment(second);
    mark_access(first, CM_MO_PAIR);
    if (!takes_any_alignment(in)) {
        mark_access(first, MO_ALIGN_16);
    } else if (alignment) {
        mark_access(first, MO_ALIGN_16 | CM_MO_CHECKED);
    }
}

// The last access of the instruction, and what has been written since.
struct last_access {
    TCGOp* op;
    TCGArg next_eight;  // a temporary that holds its address plus 8, or 0
};

static bool is_sum_with_eight(const TCGOp* op, TCGArg address) {
    if (op->opc != INDEX_op_add_i64 || op->args[1] != address) return false;
    const TCGOp* number = QTAILQ_PREV(op, link);
    return number->opc == INDEX_op_movi_i64 && number->args[0] == op->args[2] && number->args[1] == 8;
}

static bool is_base_of_table(const TCGOp* op) {
    return op->args[2] == offsetof(CPUX86State, gdt.base) || op->args[2] == offsetof(CPUX86State, idt.base);
}

// With RFLAGS.AC in ring 3, both of which a block's flags tell. CR0.AM is looked at when an access is
// misaligned.
static void mark_alignment(TCGOp* op) {
    const MemOp memop = get_memop((TCGMemOpIdx)op->args[2]);
    if ((memop & MO_SIZE) != MO_8 && !(memop & (MO_AMASK | CM_MO_PAIR))) mark_access(op, MO_ALIGN);
}

void cm_mark_accesses(struct cm_translator* t, TCGOp* mark) {
    const bool alignment = (t->dc->flags & AC_MASK) && t->dc->cpl == 3;
    struct cm_instruction in = {.length = 0};
    struct last_access last = {NULL, 0};
    unsigned contents = 0;
    for (TCGOp* op = QTAILQ_NEXT(mark, link); op; op = QTAILQ_NEXT(op, link)) {
        if (is_load(op) || is_store(op)) {
            if (alignment) mark_alignment(op);
            if (t->locked && is_load(op))
                mark_access(op, CM_MO_WRITTEN);  // LOCK NEG compares what it has loaded
            if (last.op && last.next_eight && op->args[1] == last.next_eight && op->opc == last.op->opc) {
                mark_pair(t, last.op, op, alignment, &in);
            } else if (last.op && is_load(last.op) && is_store(op) && op->args[1] == last.op->args[1]) {
                mark_access(last.op, CM_MO_WRITTEN);
            }
            const bool keeps_address = is_store(op) || op->args[0] != op->args[1];
            last = (struct last_access){keeps_address ? op : NULL, 0};
        } else if (op->opc == INDEX_op_call) {
            contents |= CM_CALLS;
        } else if (op->opc == INDEX_op_st_i64 && is_base_of_table(op)) {
            contents |= CM_LOADS_TABLES;
        } else if (!last.op) {
            continue;
        } else if (is_sum_with_eight(op, last.op->args[1])) {
            last.next_eight = op->args[0];
        } else if (t->tcg->tcg_op_defs[op->opc].nb_oargs > 0 &&
                   (op->args[0] == last.op->args[1] || op->args[0] == last.next_eight)) {
            last.op = NULL;  // its address is gone
        }
    }
    t->contents |= contents;
}

static void probe(CPUX86State* env, target_ulong address, unsigned size, MMUAccessType kind, int mmu_index,
                  uintptr_t from) {
    const unsigned room = TARGET_PAGE_SIZE - (address & ~TARGET_PAGE_MASK);
    const target_ulong second = address + room;
    if (size > room && (env->hflags & HF_CS64_MASK) && !cm_is_canonical(second)) {
        probe_access(env, second, 1, kind, mmu_index, from);  // goes before what the first page raises
    }
    probe_access(env, address, size < room ? size : room, kind, mmu_index, from);
    if (size > room) probe_access(env, second, size - room, kind, mmu_index, from);
}

void cm_check_access(CPUX86State* env, target_ulong address, TCGMemOpIdx oi, MMUAccessType kind,
                     uintptr_t from) {
    const MemOp op = get_memop(oi);
    const bool misaligned = address & ((1u << get_alignment_bits(op)) - 1);
    const bool is_vector = (op & (MO_AMASK | CM_MO_CHECKED)) == MO_ALIGN_16;
    const unsigned size = op & CM_MO_PAIR ? 16 : 1u << (op & MO_SIZE);
    // The order is that of the bare processor; the manual leaves it open (SDM vol. 3A, table 6-2, class 9):
    // the alignment of vectors, canonical addresses from the first byte to the last, #AC, page faults.
    if (misaligned && is_vector) raise_exception_err_ra(env, EXCP0D_GPF, 0, from);
    if (env->hflags & HF_CS64_MASK) {
        const target_ulong last = address + size - 1;
        const target_ulong wrong = cm_is_canonical(address) ? last : address;
        if (unlikely(!cm_is_canonical(wrong))) {
            probe_access(env, wrong, 1, kind, (int)get_mmuidx(oi), from);  // does not return
        }
    } else {
        cm_check_end_of_segment(env, address, size, from);
    }
    if (misaligned && cm_checks_alignment(env)) raise_exception_err_ra(env, EXCP11_ALGN, 0, from);
    if (op & CM_MO_WRITTEN) kind = MMU_DATA_STORE;
    probe(env, address, size, kind, (int)get_mmuidx(oi), from);
}

void cm_probe_write(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    probe(env, address, size, MMU_DATA_STORE, cpu_mmu_index(env, false), ra);
}

// An access that the engine's own code generator made.
static void misaligned(CPUState* cs, vaddr address, MMUAccessType kind, int mmu_index, uintptr_t from) {
    CPUX86State* env = cs->env_ptr;
    (void)address, (void)kind, (void)mmu_index;
    raise_exception_err_ra(env, cm_checks_alignment(env) ? EXCP11_ALGN : EXCP0D_GPF, 0, from);
}

void cm_accesses_attach(struct cm_engine* engine) { engine->cs->cc->do_unaligned_access = misaligned; }
