// SPDX-License-Identifier: GPL-2.0-or-later
// Code for the operations that read and write the CPU state, and branch.
#include "codegen.h"

#ifdef __x86_64__

#define EITHER(name)            \
    case INDEX_op_##name##_i32: \
    case INDEX_op_##name##_i64

static void branch_to(gen* g, TCGArg label, uint8_t* place) {
    if (g->nb_fixups == CM_MAX_FIXUPS) {
        g->overflow = true;
        return;
    }
    g->fixups[g->nb_fixups].place = place;
    g->fixups[g->nb_fixups++].label = arg_label(label)->id;
}

static void branch_on_condition(gen* g, const TCGOp* op) {
    cm_sync_all(g);
    cm_compare(g, op, 0, op->opc == INDEX_op_brcond_i64 ? WIDE : NARROW);
    branch_to(g, op->args[3], emit_jcc(&g->e, cm_conditions[op->args[2]]));
}

// The test at a block's head, «ld flag; movi zero; brcond flag, zero», is a comparison in memory.
static TCGOp* head_test(gen* g, TCGOp* load) {
    TCGOp* zero = QTAILQ_NEXT(load, link);
    if (!zero || zero->opc != INDEX_op_movi_i32 || zero->args[1] != 0) return NULL;
    TCGOp* branch = QTAILQ_NEXT(zero, link);
    if (!branch || branch->opc != INDEX_op_brcond_i32 || branch->args[0] != load->args[0] ||
        branch->args[1] != zero->args[0] || !cm_dies(branch, 0) || !cm_dies(branch, 1)) {
        return NULL;
    }
    cm_sync_all(g);
    emit_rm(&g->e, 0x83, NARROW, ALU_CMP, cm_use(g, load->args[1]), (int32_t)load->args[2]);
    emit8(&g->e, 0);
    branch_to(g, branch->args[3], emit_jcc(&g->e, cm_conditions[branch->args[2]]));
    return branch;
}

static void load(gen* g, const TCGOp* op, unsigned opcode, int size, bool zero_extended) {
    const int base = cm_use(g, op->args[1]);
    const int reg = cm_allocate(g, 0);
    emit_rm(&g->e, opcode, size, reg, base, (int32_t)op->args[2]);
    cm_define(g, op, 0, reg, zero_extended);
}

static void store(gen* g, const TCGOp* op, int bits) {
    const int base = cm_use(g, op->args[1]);
    const int32_t at = (int32_t)op->args[2];
    const int size = bits == 64 ? WIDE : bits == 16 ? HALF : NARROW;
    int32_t number;
    if (cm_immediate(g, op->args[0], size & WIDE, &number)) {
        emit_rm(&g->e, bits == 8 ? 0xc6 : 0xc7, size, 0, base, at);
        if (bits == 8) {
            emit8(&g->e, (uint8_t)number);
        } else if (bits == 16) {
            emit8(&g->e, (uint8_t)number);
            emit8(&g->e, (uint8_t)(number >> 8));
        } else {
            emit32(&g->e, (uint32_t)number);
        }
        return;
    }
    const int reg = cm_use(g, op->args[0]);
    emit_rm(&g->e, bits == 8 ? 0x88 : 0x89, bits == 8 ? BYTE_REGISTER : size, reg, base, at);
}

static void jump_to_block(gen* g, const TCGOp* op) {
    cm_sync_globals(g);
    while (((uintptr_t)g->e.at + 1) & 3) emit8(&g->e, 0x90);  // the displacement is patched in one piece
    emit8(&g->e, 0xe9);
    g->tcg->tb_jmp_insn_offset[op->args[0]] = (uintptr_t)(g->e.at - (uint8_t*)g->tcg->code_buf);
    emit32(&g->e, 0);
    g->tcg->tb_jmp_reset_offset[op->args[0]] = (uint16_t)(g->e.at - (uint8_t*)g->tcg->code_buf);
}

static void leave_block(gen* g, const TCGOp* op) {
    cm_sync_globals(g);
    if (op->args[0] == 0) {
        emit_jmp(&g->e, g->tcg->code_gen_epilogue);
        return;
    }
    const intptr_t distance = (const uint8_t*)op->args[0] - (g->e.at + 7);
    if (distance == (int32_t)distance) {
        emit8(&g->e, 0x48);
        emit8(&g->e, 0x8d);
        emit8(&g->e, 0x05);  // lea rax, [rip + distance]
        emit32(&g->e, (uint32_t)distance);
    } else {
        emit_mov_imm(&g->e, RAX, (int64_t)op->args[0]);
    }
    emit_jmp(&g->e, g->tcg->tb_ret_addr);
}

static void label_here(gen* g, const TCGOp* op) {
    cm_sync_all(g);
    cm_forget_registers(g);
    g->labels[arg_label(op->args[0])->id] = g->e.at;
}

static TCGOp* generate(gen* g, TCGOp* op) {
    const int size = cm_size_of(g, op);
    TCGOp* last = op;
    switch (op->opc) {
        EITHER(brcond) : branch_on_condition(g, op);
        break;
        EITHER(ld8u) : load(g, op, 0x0fb6, NARROW, true);
        break;
        EITHER(ld8s) : load(g, op, 0x0fbe, size, size == NARROW);
        break;
        EITHER(ld16u) : load(g, op, 0x0fb7, NARROW, true);
        break;
        EITHER(ld16s) : load(g, op, 0x0fbf, size, size == NARROW);
        break;
        case INDEX_op_ld_i32:
            if ((last = head_test(g, op)) == NULL) {
                last = op;
                load(g, op, 0x8b, NARROW, true);
            }
            break;
        case INDEX_op_ld32u_i64:
            load(g, op, 0x8b, NARROW, true);
            break;
        case INDEX_op_ld32s_i64:
            load(g, op, 0x63, WIDE, false);
            break;
        case INDEX_op_ld_i64:
            load(g, op, 0x8b, WIDE, false);
            break;
            EITHER(st8) : store(g, op, 8);
            break;
            EITHER(st16) : store(g, op, 16);
            break;
        case INDEX_op_st_i32:
        case INDEX_op_st32_i64:
            store(g, op, 32);
            break;
        case INDEX_op_st_i64:
            store(g, op, 64);
            break;
        case INDEX_op_qemu_ld_i32:
        case INDEX_op_qemu_ld_i64:
        case INDEX_op_qemu_st_i32:
        case INDEX_op_qemu_st_i64:
            cm_generate_access(g, op);
            break;
        case INDEX_op_call:
            cm_generate_call(g, op);
            break;
        case INDEX_op_discard:
            cm_release(g, cm_index(g, op->args[0]));
            cm_value(g, op->args[0])->constant = false;
            break;
        case INDEX_op_set_label:
            label_here(g, op);
            break;
        case INDEX_op_br:
            cm_sync_all(g);
            emit_jmp(&g->e, g->e.at);
            branch_to(g, op->args[0], g->e.at - 4);
            break;
        case INDEX_op_goto_tb:
            jump_to_block(g, op);
            break;
        case INDEX_op_exit_tb:
            leave_block(g, op);
            break;
        case INDEX_op_goto_ptr:
            cm_sync_globals(g);
            emit_rr(&g->e, 0xff, NARROW, 4, cm_use(g, op->args[0]));
            break;
        case INDEX_op_mb:
            if (op->args[0] & TCG_MO_ST_LD) {
                emit8(&g->e, 0xf0);
                emit_rm(&g->e, 0x83, NARROW, ALU_OR, RSP, 0);
                emit8(&g->e, 0);
            }
            break;
        default:
            if (!cm_generate_arithmetic(g, op)) g->overflow = true;  // cm_prepare lets nothing else come here
    }
    return last;
}

// A global's last value is stored before the guest's stores that follow: the address of these is known late,
// and where the host's loads have to wait for it, so would the next block's load of this global, and a loop
// with it.
static void store_final(gen* g, const TCGOp* op, int outputs) {
    for (int i = 0; i < outputs; i++) {
        if (!cm_is_final(op, i) || cm_dies(op, i)) continue;
        const int temp = cm_index(g, op->args[i]);
        if (!g->values[temp].in_memory) cm_store_home(g, temp);
    }
}

TCGOp* cm_generate_op(gen* g, TCGOp* op) {
    g->locked = 0;
    TCGOp* last = generate(g, op);
    store_final(g, op,
                op->opc == INDEX_op_call ? (int)TCGOP_CALLO(op) : g->tcg->tcg_op_defs[op->opc].nb_oargs);
    if (op->opc != INDEX_op_call) {
        const TCGOpDef* def = &g->tcg->tcg_op_defs[op->opc];
        for (int i = def->nb_oargs; i < def->nb_oargs + def->nb_iargs; i++) {
            bool is_output = false;
            for (int k = 0; k < def->nb_oargs; k++) is_output |= op->args[k] == op->args[i];
            if (!is_output) cm_release_dead_inputs(g, op, i, 1);
        }
    }
    return QTAILQ_NEXT(last, link);
}

#endif
