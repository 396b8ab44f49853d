// SPDX-License-Identifier: GPL-2.0-or-later
// Operands of host instructions: immediates, values still in memory, registers; comparisons of them.
#include "codegen.h"

#ifdef __x86_64__

int cm_size_of(const gen* g, const TCGOp* op) {
    return (g->tcg->tcg_op_defs[op->opc].flags & TCG_OPF_64BIT) && !cm_is_narrow(op) ? WIDE : NARROW;
}

bool cm_immediate(gen* g, TCGArg arg, int size, int32_t* number) {
    const struct cm_value* v = cm_value(g, arg);
    if (!v->constant) return false;
    *number = (int32_t)v->number;
    return size == NARROW || v->number == (int32_t)v->number;
}

// Only in memory, and not read again: an instruction may as well take it from there.
bool cm_at_home(gen* g, const TCGOp* op, int arg) {
    const struct cm_value* v = cm_value(g, op->args[arg]);
    return v->reg < 0 && !v->constant && v->in_memory && !cm_used_later(op, arg) &&
           !arg_temp(op->args[arg])->fixed_reg;
}

struct cm_operand cm_operand(gen* g, const TCGOp* op, int arg, int size) {
    struct cm_operand o = {.kind = IMMEDIATE};
    if (cm_immediate(g, op->args[arg], size, &o.number)) return o;
    if (cm_at_home(g, op, arg)) {
        o.kind = MEMORY;
        o.number = cm_home(g, cm_index(g, op->args[arg]), &o.base);
        return o;
    }
    o.kind = REGISTER;
    o.reg = cm_use(g, op->args[arg]);
    return o;
}

void cm_emit_operand(gen* g, int kind, int size, int reg, const struct cm_operand* o) {
    switch (o->kind) {
        case IMMEDIATE:
            emit_alu_imm(&g->e, kind, size, reg, o->number);
            break;
        case MEMORY:
            emit_rm(&g->e, (unsigned)kind << 3 | 3, size, reg, o->base, o->number);
            break;
        default:
            emit_alu(&g->e, kind, size, reg, o->reg);
    }
}

bool cm_can_take(gen* g, const TCGOp* op, int arg) {
    const struct cm_value* v = cm_value(g, op->args[arg]);
    return v->reg >= 0 && cm_dies(op, arg) && g->holders[v->reg] == 1;
}

const uint8_t cm_conditions[16] = {
    [TCG_COND_EQ] = IF_E,   [TCG_COND_NE] = IF_NE, [TCG_COND_LT] = IF_L,  [TCG_COND_GE] = IF_GE,
    [TCG_COND_LE] = IF_LE,  [TCG_COND_GT] = IF_G,  [TCG_COND_LTU] = IF_B, [TCG_COND_GEU] = IF_AE,
    [TCG_COND_LEU] = IF_BE, [TCG_COND_GTU] = IF_A,
};

void cm_emit_compare(gen* g, int size, int first, const struct cm_operand* second) {
    if (second->kind == IMMEDIATE && second->number == 0) {
        emit_rr(&g->e, 0x85, size, first, first);
    } else {
        cm_emit_operand(g, ALU_CMP, size, first, second);
    }
}

void cm_compare(gen* g, const TCGOp* op, int first, int size) {
    int32_t number;
    if (cm_at_home(g, op, first) && cm_immediate(g, op->args[first + 1], size, &number)) {
        int base;
        const int32_t at = cm_home(g, cm_index(g, op->args[first]), &base);
        const bool is_byte = number == (int8_t)number;
        emit_rm(&g->e, is_byte ? 0x83 : 0x81, size, ALU_CMP, base, at);
        if (is_byte) {
            emit8(&g->e, (uint8_t)number);
        } else {
            emit32(&g->e, (uint32_t)number);
        }
        return;
    }
    const struct cm_operand second = cm_operand(g, op, first + 1, size);
    cm_emit_compare(g, size, cm_use(g, op->args[first]), &second);
}

#endif
