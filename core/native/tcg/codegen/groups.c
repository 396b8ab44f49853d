// SPDX-License-Identifier: GPL-2.0-or-later
// Guest accesses of a block that lie a constant distance from each other: fields of one object, words of one
// stack frame, the load and the store of one operand. Found before code is generated.
//
// Their addresses are computed anew for each. Here values are numbered: two temporaries with the same base
// and offset hold the same address, whatever computed it. A base is one number for each value that is not
// understood, and one for each expression of others.
#include "codegen.h"
#include "shared_blocks.h"

#ifdef __x86_64__

// Bases are counted on from block to block, and anew behind a label: those below the first of them are of
// values that are not known any more. The first itself is the base of constants.
enum { UNKNOWN };

static bool is_constant(const gen* g, struct cm_linear v) { return v.base == g->first_base; }

static struct cm_linear constant(const gen* g, int64_t number) {
    return (struct cm_linear){g->first_base, number};
}

static struct cm_linear fresh(gen* g) { return (struct cm_linear){g->next_base++, 0}; }

static struct cm_linear linear(gen* g, TCGArg arg) {
    struct cm_linear* v = &g->linear[cm_index(g, arg)];
    if (v->base < g->first_base) *v = fresh(g);
    return *v;
}

// The base that stands for an expression: the same one for the same operands. One that was pushed out of the
// table gets another, which is as good as not understood.
static uint32_t base_of(gen* g, TCGOpcode opc, uint32_t a, uint64_t b) {
    const size_t hash = (a * 31 + (size_t)b * 7 + (size_t)opc) % CM_EXPRESSIONS;
    struct cm_expression* e = &g->expressions[hash];
    if (e->base < g->first_base || e->opc != opc || e->a != a || e->b != b) {
        *e = (struct cm_expression){opc, a, b, g->next_base++};
    }
    return e->base;
}

static struct cm_linear sum(gen* g, struct cm_linear x, struct cm_linear y) {
    const int64_t offset = (int64_t)((uint64_t)x.offset + (uint64_t)y.offset);
    if (is_constant(g, x)) return (struct cm_linear){y.base, offset};
    if (is_constant(g, y)) return (struct cm_linear){x.base, offset};
    const uint32_t low = x.base < y.base ? x.base : y.base, high = x.base < y.base ? y.base : x.base;
    return (struct cm_linear){base_of(g, INDEX_op_add_i64, low, high), offset};
}

static struct cm_linear result(gen* g, const TCGOp* op) {
    struct cm_linear x, y;
    switch (op->opc) {
        case INDEX_op_movi_i32:
        case INDEX_op_movi_i64:
            return constant(g, (int64_t)op->args[1]);
        case INDEX_op_ld_i64:  // the code base is the same throughout a block
            if (op->args[2] != (TCGArg)(tcg_target_long)CM_CODE_BASE_OFFSET) break;
            return (struct cm_linear){base_of(g, op->opc, 0, op->args[2]), 0};
        case INDEX_op_mov_i32:
        case INDEX_op_mov_i64:
            return linear(g, op->args[1]);
        case INDEX_op_add_i64:
            x = linear(g, op->args[1]);
            return sum(g, x, linear(g, op->args[2]));
        case INDEX_op_sub_i64:
            y = linear(g, op->args[2]);
            if (!is_constant(g, y)) break;
            return sum(g, linear(g, op->args[1]), constant(g, (int64_t)(0 - (uint64_t)y.offset)));
        case INDEX_op_shl_i64:
            x = linear(g, op->args[1]);
            y = linear(g, op->args[2]);
            if (!is_constant(g, y) || y.offset < 0 || y.offset > 63) break;
            x.offset = (int64_t)((uint64_t)x.offset << y.offset);
            if (!is_constant(g, x)) x.base = base_of(g, op->opc, x.base, (uint64_t)y.offset);
            return x;
        case INDEX_op_ext32u_i64:  // addresses of 32 bits: the sum wraps before it is extended
            x = linear(g, op->args[1]);
            if (is_constant(g, x)) return constant(g, (uint32_t)x.offset);
            x.base = base_of(g, op->opc, x.base, (uint64_t)x.offset);
            x.offset = 0;
            return x;
        default:
            break;
    }
    return fresh(g);
}

// One look-up checks one alignment: an access that needs another stays alone.
static bool align(struct cm_group* group, int32_t offset, int32_t alignment) {
    if (alignment == 1) return true;
    const uint8_t phase = (uint8_t)(offset & (alignment - 1));
    if (group->alignment != 1) return group->alignment == alignment && group->phase == phase;
    group->alignment = (uint8_t)alignment;
    group->phase = phase;
    return true;
}

static bool join(struct cm_group* group, const struct cm_linear* address, int size, int32_t alignment,
                 unsigned mmu_index) {
    if (group->first.base != address->base || group->mmu_index != mmu_index) return false;
    const uint64_t distance = (uint64_t)address->offset - (uint64_t)group->first.offset;
    if (distance + CM_GROUP_SPAN > 2 * CM_GROUP_SPAN) return false;
    const int32_t from = (int32_t)distance, to = from + size;
    const int32_t low = from < group->low ? from : group->low, high = to > group->high ? to : group->high;
    if (high - low > CM_GROUP_SPAN || !align(group, from, alignment)) return false;
    group->low = low;
    group->high = high;
    return true;
}

static void note_access(gen* g, const TCGOp* op, int access, int first_open) {
    const TCGMemOpIdx oi = (TCGMemOpIdx)op->args[2];
    const MemOp memop = get_memop(oi);
    const int size = cm_bytes_checked(memop);
    const int32_t alignment = 1 << get_alignment_bits(memop);
    const struct cm_linear address = linear(g, op->args[1]);
    struct cm_near* near = &g->near[access];
    near->group = -1;
    const int oldest = g->nb_groups - 8 > first_open ? g->nb_groups - 8 : first_open;
    int i = g->nb_groups - 1;
    while (i >= oldest && !join(&g->groups[i], &address, size, alignment, get_mmuidx(oi))) i--;
    if (i < oldest) {
        if (g->nb_groups == CM_MAX_GROUPS) return;
        i = g->nb_groups++;
        g->groups[i] = (struct cm_group){.first = address,
                                         .high = size,
                                         .reg = -1,
                                         .mmu_index = (uint8_t)get_mmuidx(oi),
                                         .alignment = (uint8_t)alignment};
    }
    struct cm_group* group = &g->groups[i];
    near->group = (int16_t)i;
    near->offset = (int32_t)((uint64_t)address.offset - (uint64_t)group->first.offset);
    group->last = (int16_t)access;
    group->writes |= op->opc == INDEX_op_qemu_st_i32 || op->opc == INDEX_op_qemu_st_i64;
}

static void forget_all(gen* g) {
    if (unlikely(g->next_base > UINT32_MAX / 2)) {  // far more are left than a block can need
        memset(g->expressions, 0, sizeof g->expressions);
        memset(g->linear, 0, sizeof g->linear);
        g->next_base = UNKNOWN;
    }
    if (g->next_base == UNKNOWN) g->next_base++;
    g->first_base = g->next_base++;
}

void cm_find_groups(gen* g) {
    const TCGContext* tcg = g->tcg;
    int access = 0, first_open = 0;
    g->nb_groups = 0;
    if (g->accesses_found < 2) {  // a block's one access is alone
        g->near[0].group = -1;
        return;
    }
    forget_all(g);
    const TCGOp* op;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        const TCGOpDef* def = &tcg->tcg_op_defs[op->opc];
        int outputs = def->nb_oargs;
        switch (op->opc) {
            case INDEX_op_set_label:  // code that jumps here has other values, and has looked nothing up
                forget_all(g);
                first_open = g->nb_groups;
                continue;
            case INDEX_op_call: {
                outputs = TCGOP_CALLO(op);
                const unsigned flags = (unsigned)op->args[outputs + TCGOP_CALLI(op) + 1];
                if (!(flags & (TCG_CALL_NO_WRITE_GLOBALS | TCG_CALL_NO_READ_GLOBALS))) {
                    memset(g->linear, 0, (size_t)tcg->nb_globals * sizeof *g->linear);
                }
                // Any other helper may change what is mapped.
                if (!(flags & TCG_CALL_NO_SIDE_EFFECTS)) first_open = g->nb_groups;
                break;
            }
            case INDEX_op_qemu_ld_i32:
            case INDEX_op_qemu_ld_i64:
            case INDEX_op_qemu_st_i32:
            case INDEX_op_qemu_st_i64:
                if (access < CM_MAX_ACCESSES) note_access(g, op, access++, first_open);
                if (access == g->accesses_found) return;
                break;
            default:
                break;
        }
        if (outputs == 1 && op->opc != INDEX_op_call) {
            g->linear[cm_index(g, op->args[0])] = result(g, op);
            continue;
        }
        for (int i = 0; i < outputs; i++) g->linear[cm_index(g, op->args[i])] = fresh(g);
    }
}

struct cm_group* cm_group_of(gen* g, int access) {
    const int group = g->near[access].group;
    return group < 0 ? NULL : &g->groups[group];
}

#endif
