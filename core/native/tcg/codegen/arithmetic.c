// SPDX-License-Identifier: GPL-2.0-or-later
// Code for the operations that compute.
#include "codegen.h"

#ifdef __x86_64__

#define EITHER(name)            \
    case INDEX_op_##name##_i32: \
    case INDEX_op_##name##_i64

// A sum with an addend that is still to be shifted.
static void add_scaled(gen* g, const TCGOp* op, int scaled) {
    const int size = cm_size_of(g, op);
    const int index = cm_use(g, op->args[scaled]);
    const int scale = cm_value(g, op->args[scaled])->scale;
    const TCGArg other = op->args[3 - scaled];
    int32_t number = 0;
    int base = -1;
    if (cm_value(g, other)->scale) {
        const int shifted = cm_use(g, other);
        base = cm_allocate(g, 0);
        emit_rmx(&g->e, 0x8d, size, base, -1, shifted, cm_value(g, other)->scale, 0);
    } else if (!cm_immediate(g, other, size, &number)) {
        base = cm_use(g, other);
    }
    const int reg = cm_allocate(g, 0);
    emit_rmx(&g->e, 0x8d, size, reg, base, index, scale, base < 0 ? number : 0);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void binary(gen* g, const TCGOp* op, int kind) {
    const int size = cm_size_of(g, op);
    for (int i = 1; i <= 2; i++) {
        if (kind != ALU_ADD || !cm_value(g, op->args[i])->scale) continue;
        add_scaled(g, op, i);
        return;
    }
    int a = 1, b = 2;
    if (kind != ALU_SUB &&
        (cm_value(g, op->args[1])->constant || (cm_can_take(g, op, 2) && !cm_can_take(g, op, 1))) &&
        !cm_value(g, op->args[2])->constant) {
        a = 2, b = 1;
    }
    const struct cm_operand second = cm_operand(g, op, b, size);
    int reg;
    if (kind == ALU_ADD && cm_is_address(op) && second.kind == IMMEDIATE &&
        !cm_value(g, op->args[a])->constant && second.number > -CM_MAX_DISPLACEMENT &&
        second.number < CM_MAX_DISPLACEMENT) {
        cm_define_sum(g, op, cm_use(g, op->args[a]), 0, second.number);
        return;
    }
    if (kind == ALU_ADD && second.kind != MEMORY && !cm_can_take(g, op, a) && !cm_at_home(g, op, a)) {
        const int first = cm_use(g, op->args[a]);
        reg = cm_allocate(g, 0);
        const bool is_register = second.kind == REGISTER;
        emit_rmx(&g->e, 0x8d, size, reg, first, is_register ? second.reg : -1, 0,
                 is_register ? 0 : second.number);
    } else {
        reg = cm_take(g, op, a, size, 0);
        cm_emit_operand(g, kind, size, reg, &second);
    }
    cm_define(g, op, 0, reg, size == NARROW);
}

static void multiply(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    int32_t number;
    int reg;
    if (cm_immediate(g, op->args[2], size, &number)) {
        const int first = cm_use(g, op->args[1]);
        reg = cm_allocate(g, 0);
        emit_rr(&g->e, 0x69, size, reg, first);
        emit32(&g->e, (uint32_t)number);
    } else {
        const int second = cm_use(g, op->args[2]);
        reg = cm_take(g, op, 1, size, 0);
        emit_rr(&g->e, 0x0faf, size, reg, second);
    }
    cm_define(g, op, 0, reg, size == NARROW);
}

static void shift(gen* g, const TCGOp* op, int kind, unsigned vex_prefix) {
    const int size = cm_size_of(g, op);
    const struct cm_value* count = cm_value(g, op->args[2]);
    int reg;
    if (count->constant) {
        const unsigned by = (unsigned)count->number & (size == WIDE ? 63 : 31);
        if (cm_is_addend(op) && by >= 1 && by <= 3 && !cm_value(g, op->args[1])->constant) {
            cm_define_sum(g, op, cm_use(g, op->args[1]), (int)by, 0);
            return;
        }
        reg = cm_take(g, op, 1, size, 0);
        if (by) emit_shift_imm(&g->e, kind, size, reg, by);
        if (!by && size == NARROW) emit_mov(&g->e, NARROW, reg, reg);
    } else if (vex_prefix && __builtin_cpu_supports("bmi2")) {
        const int by = cm_use(g, op->args[2]), from = cm_use(g, op->args[1]);
        reg = cm_allocate(g, 0);
        emit_vex(&g->e, 0xf7, vex_prefix, size, reg, by, from);
    } else {
        if (count->reg != RCX) cm_vacate(g, RCX);
        g->locked |= 1u << RCX;
        const int by = cm_use(g, op->args[2]);
        reg = cm_take(g, op, 1, size, 1u << RCX);
        if (by != RCX) emit_mov(&g->e, NARROW, RCX, by);
        emit_rr(&g->e, 0xd3, size, kind, reg);
        // A count of zero need not write the register.
        if (size == NARROW) emit_mov(&g->e, NARROW, reg, reg);
    }
    cm_define(g, op, 0, reg, size == NARROW);
}

// The result is in `opcode reg, source`: an extension or another unary operation that has a destination.
static void extend(gen* g, const TCGOp* op, unsigned opcode, int size, bool zero_extended) {
    int reg;
    if (cm_at_home(g, op, 1)) {
        int base;
        const int32_t at = cm_home(g, cm_index(g, op->args[1]), &base);
        reg = cm_allocate(g, 0);
        emit_rm(&g->e, opcode, size & WIDE, reg, base, at);
    } else {
        const int from = cm_use(g, op->args[1]);
        reg = cm_can_take(g, op, 1) ? from : cm_allocate(g, 0);
        emit_rr(&g->e, opcode, size, reg, from);
        if (reg == from) cm_release(g, cm_index(g, op->args[1]));
    }
    cm_define(g, op, 0, reg, zero_extended);
}

static void extend_word(gen* g, const TCGOp* op, bool is_signed) {
    const struct cm_value* v = cm_value(g, op->args[1]);
    if (v->constant) {
        const int64_t number = is_signed ? (int64_t)(int32_t)v->number : (int64_t)(uint32_t)v->number;
        if (cm_dies(op, 1)) cm_release(g, cm_index(g, op->args[1]));
        cm_define_constant(g, op, 0, number);
    } else if (cm_is_narrow(op)) {
        cm_alias(g, op, v->zero_extended);
    } else if (is_signed) {
        extend(g, op, 0x63, WIDE, false);
    } else if (v->zero_extended) {
        cm_alias(g, op, true);
    } else {
        extend(g, op, 0x8b, NARROW, true);
    }
}

static void unary(gen* g, const TCGOp* op, unsigned opcode, int extension) {
    const int size = cm_size_of(g, op);
    const int reg = cm_take(g, op, 1, size, 0);
    emit_rr(&g->e, opcode, size, extension, reg);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void swap_bytes(gen* g, const TCGOp* op, int bits) {
    const bool zero_extended = cm_value(g, op->args[1])->zero_extended;
    const int reg = cm_take(g, op, 1, WIDE, 0);
    if (bits == 16) {
        emit_rr(&g->e, 0xc1, HALF, SHIFT_ROL, reg);
        emit8(&g->e, 8);
    } else {
        emit_opcode(&g->e, 0x0fc8 + (unsigned)(reg & 7), bits == 64 ? WIDE : NARROW, 0, 0, reg);
    }
    cm_define(g, op, 0, reg, bits == 32 || (bits == 16 && zero_extended));
}

static void set_condition(gen* g, const TCGOp* op) {
    cm_compare(g, op, 1, cm_size_of(g, op));
    cm_release_dead_inputs(g, op, 1, 2);
    g->locked = 0;
    const int reg = cm_allocate(g, 0);
    emit_rr(&g->e, 0x0f90 | cm_conditions[op->args[3]], BYTE_REGISTER, 0, reg);
    emit_rr(&g->e, 0x0fb6, BYTE_REGISTER, reg, reg);
    cm_define(g, op, 0, reg, true);
}

static void move_on_condition(gen* g, const TCGOp* op) {
    const bool is_wide = (g->tcg->tcg_op_defs[op->opc].flags & TCG_OPF_64BIT) != 0;
    const int size = cm_size_of(g, op), compare_size = is_wide ? WIDE : NARROW;
    const struct cm_operand second = cm_operand(g, op, 2, compare_size);
    const int first = cm_use(g, op->args[1]), chosen = cm_use(g, op->args[3]);
    const int reg = cm_take(g, op, 4, size, 0);
    cm_emit_compare(g, compare_size, first, &second);
    emit_rr(&g->e, 0x0f40 | cm_conditions[op->args[5]], size, reg, chosen);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void deposit(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    const bool zero_extended = cm_value(g, op->args[1])->zero_extended;
    const int from = cm_use(g, op->args[2]);
    const int reg = cm_take(g, op, 1, WIDE, 1u << from);
    if (op->args[4] == 16) {
        emit_rr(&g->e, 0x89, HALF, from, reg);
    } else if (op->args[3] == 0) {
        emit_rr(&g->e, 0x88, BYTE_REGISTER, from, reg);
    } else if (from < 4 && reg < 4) {
        emit_rr(&g->e, 0x88, NARROW, from, reg + 4);  // AH to BH
    } else {
        emit_shift_imm(&g->e, SHIFT_ROR, size, reg, 8);
        emit_rr(&g->e, 0x88, BYTE_REGISTER, from, reg);
        emit_shift_imm(&g->e, SHIFT_ROL, size, reg, 8);
    }
    cm_define(g, op, 0, reg, zero_extended);
}

static void extract(gen* g, const TCGOp* op, bool is_signed) {
    if (!is_signed && op->args[2] + op->args[3] == 32) {
        const int whole = cm_take(g, op, 1, NARROW, 0);
        if (op->args[2]) {
            emit_shift_imm(&g->e, SHIFT_SHR, NARROW, whole, (unsigned)op->args[2]);
        } else {
            emit_mov(&g->e, NARROW, whole, whole);
        }
        cm_define(g, op, 0, whole, true);
        return;
    }
    const unsigned opcode = is_signed ? 0x0fbe : 0x0fb6;
    int reg;
    if (cm_at_home(g, op, 1)) {
        int base;
        const int32_t at = cm_home(g, cm_index(g, op->args[1]), &base);
        reg = cm_allocate(g, 0);
        emit_rm(&g->e, opcode, NARROW, reg, base, at + 1);
    } else {
        const int from = cm_use(g, op->args[1]);
        reg = cm_allocate(g, 0);
        if (from < 4 && reg < 8) {
            emit_rr(&g->e, opcode, NARROW, reg, from + 4);  // AH to BH
        } else {
            emit_rr(&g->e, opcode + 1, NARROW, reg, from);
            emit_shift_imm(&g->e, is_signed ? SHIFT_SAR : SHIFT_SHR, NARROW, reg, 8);
        }
    }
    cm_define(g, op, 0, reg, true);
}

static void extract_double(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    const int high = cm_use(g, op->args[2]);
    const int reg = cm_take(g, op, 1, size, 1u << high);
    emit_rr(&g->e, 0x0fac, size, high, reg);
    emit8(&g->e, (unsigned)op->args[3]);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void add_double(gen* g, const TCGOp* op, int kind, int kind_with_carry) {
    const int size = cm_size_of(g, op);
    const struct cm_operand low = cm_operand(g, op, 4, size), high = cm_operand(g, op, 5, size);
    const int low_reg = cm_allocate(g, 0), high_reg = cm_allocate(g, 0);
    cm_load_into(g, low_reg, op->args[2]);
    cm_load_into(g, high_reg, op->args[3]);
    cm_emit_operand(g, kind, size, low_reg, &low);
    cm_emit_operand(g, kind_with_carry, size, high_reg, &high);
    cm_define(g, op, 0, low_reg, size == NARROW);
    cm_define(g, op, 1, high_reg, size == NARROW);
}

// MUL, IMUL, DIV, IDIV: RDX:RAX is one operand and both results.
static void double_width(gen* g, const TCGOp* op, int extension, bool divides) {
    const int size = cm_size_of(g, op);
    g->locked |= 1u << RAX | 1u << RDX;
    cm_vacate(g, RAX);
    cm_vacate(g, RDX);
    const int by = cm_use(g, op->args[divides ? 4 : 3]);
    cm_load_into(g, RAX, op->args[2]);
    if (divides) cm_load_into(g, RDX, op->args[3]);
    emit_rr(&g->e, 0xf7, size, extension, by);
    cm_define(g, op, 0, RAX, size == NARROW);
    cm_define(g, op, 1, RDX, size == NARROW);
}

static void count_zeros(gen* g, const TCGOp* op, unsigned opcode) {
    const int size = cm_size_of(g, op);
    const struct cm_value* otherwise = cm_value(g, op->args[2]);
    const bool natural = otherwise->constant && otherwise->number == (size == WIDE ? 64 : 32);
    const int from = cm_use(g, op->args[1]);
    const int other = natural ? -1 : cm_use(g, op->args[2]);
    const int reg = cm_allocate(g, 0);
    emit_rr(&g->e, opcode, size, reg, from);
    if (!natural) emit_rr(&g->e, 0x0f40 | IF_B, size, reg, other);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void and_not(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    const int from = cm_use(g, op->args[1]), mask = cm_use(g, op->args[2]);
    const int reg = cm_allocate(g, 0);
    emit_vex(&g->e, 0xf2, 0, size, reg, mask, from);
    cm_define(g, op, 0, reg, size == NARROW);
}

static void population(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    const int from = cm_use(g, op->args[1]);
    const int reg = cm_allocate(g, 0);
    emit_rr(&g->e, 0xf30fb8, size, reg, from);
    cm_define(g, op, 0, reg, true);
}

bool cm_generate_arithmetic(gen* g, const TCGOp* op) {
    const int size = cm_size_of(g, op);
    switch (op->opc) {
        EITHER(mov) : cm_alias(g, op, cm_value(g, op->args[1])->zero_extended);
        return true;
        EITHER(movi) : cm_define_constant(g, op, 0, (int64_t)op->args[1]);
        return true;
        EITHER(add) : binary(g, op, ALU_ADD);
        return true;
        EITHER(sub) : binary(g, op, ALU_SUB);
        return true;
        EITHER(and) : binary(g, op, ALU_AND);
        return true;
        EITHER(or) : binary(g, op, ALU_OR);
        return true;
        EITHER(xor) : binary(g, op, ALU_XOR);
        return true;
        EITHER(mul) : multiply(g, op);
        return true;
        EITHER(shl) : shift(g, op, SHIFT_SHL, 1);
        return true;
        EITHER(shr) : shift(g, op, SHIFT_SHR, 3);
        return true;
        EITHER(sar) : shift(g, op, SHIFT_SAR, 2);
        return true;
        EITHER(rotl) : shift(g, op, SHIFT_ROL, 0);
        return true;
        EITHER(rotr) : shift(g, op, SHIFT_ROR, 0);
        return true;
        EITHER(neg) : unary(g, op, 0xf7, 3);
        return true;
        EITHER(not ) : unary(g, op, 0xf7, 2);
        return true;
        EITHER(andc) : and_not(g, op);
        return true;
        EITHER(ctpop) : population(g, op);
        return true;
        EITHER(ctz) : count_zeros(g, op, 0xf30fbc);
        return true;
        EITHER(clz) : count_zeros(g, op, 0xf30fbd);
        return true;
        EITHER(ext8u) : extend(g, op, 0x0fb6, BYTE_REGISTER, true);
        return true;
        EITHER(ext8s) : extend(g, op, 0x0fbe, size | BYTE_REGISTER, size == NARROW);
        return true;
        EITHER(ext16u) : extend(g, op, 0x0fb7, NARROW, true);
        return true;
        EITHER(ext16s) : extend(g, op, 0x0fbf, size, size == NARROW);
        return true;
        case INDEX_op_ext32u_i64:
        case INDEX_op_extu_i32_i64:
            extend_word(g, op, false);
            return true;
        case INDEX_op_ext32s_i64:
        case INDEX_op_ext_i32_i64:
            extend_word(g, op, true);
            return true;
            EITHER(bswap16) : swap_bytes(g, op, 16);
            return true;
            EITHER(bswap32) : swap_bytes(g, op, 32);
            return true;
        case INDEX_op_bswap64_i64:
            swap_bytes(g, op, 64);
            return true;
            EITHER(setcond) : set_condition(g, op);
            return true;
            EITHER(movcond) : move_on_condition(g, op);
            return true;
            EITHER(deposit) : deposit(g, op);
            return true;
            EITHER(extract) : extract(g, op, false);
            return true;
        case INDEX_op_sextract_i32:
            extract(g, op, true);
            return true;
            EITHER(extract2) : extract_double(g, op);
            return true;
            EITHER(add2) : add_double(g, op, ALU_ADD, ALU_ADC);
            return true;
            EITHER(sub2) : add_double(g, op, ALU_SUB, ALU_SBB);
            return true;
            EITHER(mulu2) : double_width(g, op, 4, false);
            return true;
            EITHER(muls2) : double_width(g, op, 5, false);
            return true;
            EITHER(divu2) : double_width(g, op, 6, true);
            return true;
            EITHER(div2) : double_width(g, op, 7, true);
            return true;
        default:
            return false;
    }
}

#endif
