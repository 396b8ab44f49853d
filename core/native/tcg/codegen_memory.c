// SPDX-License-Identifier: GPL-2.0-or-later
// Code for guest loads and stores: the look-up in the software TLB in line, the call of the engine's helper
// behind the block.
//
// An access may raise an exception, which needs the CPU state in memory. It is not written before each
// access, but in the slow path: the fast one cannot fault, but for the host's page protection
// (cm_engine_self_write).
#include "codegen.h"

#ifdef __x86_64__

enum { TLB_OFFSET_BIAS = -(int)offsetof(ArchCPU, env) };

static int32_t tlb_field(int mmu_index, size_t field) {
    return (int32_t)(offsetof(ArchCPU, neg.tlb) + offsetof(CPUTLB, f) +
                     sizeof(CPUTLBDescFast) * (size_t)mmu_index + field) +
           TLB_OFFSET_BIAS;
}

// Leaves the host address of the guest's page 0 in RSI.
static uint8_t* emit_look_up(gen* g, int address, TCGMemOpIdx oi, size_t comparator) {
    emitter* e = &g->e;
    const MemOp op = get_memop(oi);
    const int mmu_index = (int)get_mmuidx(oi);
    const int32_t size = 1 << (op & MO_SIZE), alignment = 1 << get_alignment_bits(op);
    emit_mov(e, WIDE, RDI, address);
    emit_shift_imm(e, SHIFT_SHR, WIDE, RDI, TARGET_PAGE_BITS - CPU_TLB_ENTRY_BITS);
    emit_rm(e, 0x23, WIDE, RDI, RBP, tlb_field(mmu_index, offsetof(CPUTLBDescFast, mask)));
    emit_rm(e, 0x03, WIDE, RDI, RBP, tlb_field(mmu_index, offsetof(CPUTLBDescFast, table)));
    if (size > alignment) {  // an access across the page's end misses
        emit_rm(e, 0x8d, WIDE, RSI, address, size - alignment);
    } else {
        emit_mov(e, WIDE, RSI, address);
    }
    emit_alu_imm(e, ALU_AND, WIDE, RSI, (int32_t)TARGET_PAGE_MASK | (alignment - 1));
    emit_rm(e, 0x3b, WIDE, RSI, RDI, (int32_t)comparator);
    uint8_t* jump = emit_jcc(e, IF_NE);
    emit_rm(e, 0x8b, WIDE, RSI, RDI, offsetof(CPUTLBEntry, addend));
    return jump;
}

static void save_state(gen* g, struct cm_access* access) {
    access->first_save = (uint16_t)g->nb_saves;
    for (int i = 0; i < g->tcg->nb_globals; i++) {
        const struct cm_value* v = &g->values[i];
        if (v->in_memory || (v->reg < 0 && !v->constant)) continue;
        if (g->nb_saves == CM_MAX_SAVES) {
            g->overflow = true;
            break;
        }
        g->saves[g->nb_saves++] = (struct cm_save){.temp = (int16_t)i, .reg = v->reg, .number = v->number};
    }
    access->saves = (uint16_t)(g->nb_saves - access->first_save);
}

static void emit_fast_load(gen* g, MemOp op, bool wide, int reg, int address) {
    static const unsigned opcodes[8] = {
        [MO_UB] = 0x0fb6, [MO_UW] = 0x0fb7, [MO_UL] = 0x8b, [MO_Q] = 0x8b,
        [MO_SB] = 0x0fbe, [MO_SW] = 0x0fbf, [MO_SL] = 0x63,
    };
    const bool is_signed = (op & MO_SIGN) != 0;
    unsigned opcode = opcodes[op & MO_SSIZE];
    if ((op & MO_SSIZE) == MO_SL && !wide) opcode = 0x8b;
    const int size = (op & MO_SIZE) == MO_64 || (is_signed && wide) ? WIDE : NARROW;
    emit_rmx(&g->e, opcode, size, reg, RSI, address, 0, 0);
}

static void emit_fast_store(gen* g, const struct cm_access* access, MemOp op) {
    const int bits = op & MO_SIZE;
    const int size = bits == MO_64 ? WIDE : bits == MO_16 ? HALF : NARROW;
    if (!access->constant) {
        emit_rmx(&g->e, bits == MO_8 ? 0x88 : 0x89, bits == MO_8 ? BYTE_REGISTER : size, access->data, RSI,
                 access->address, 0, 0);
        return;
    }
    emit_rmx(&g->e, bits == MO_8 ? 0xc6 : 0xc7, size, 0, RSI, access->address, 0, 0);
    emit8(&g->e, (uint8_t)access->number);
    if (bits >= MO_16) emit8(&g->e, (uint8_t)(access->number >> 8));
    if (bits >= MO_32) {
        emit8(&g->e, (uint8_t)(access->number >> 16));
        emit8(&g->e, (uint8_t)(access->number >> 24));
    }
}

static uint16_t held_across_call(const gen* g) {
    uint16_t live = 0;
    for (int reg = 0; reg < 16; reg++) {
        if (g->holders[reg] && (CM_CALL_CLOBBERED >> reg & 1)) live |= (uint16_t)(1u << reg);
    }
    return live;
}

void cm_generate_access(gen* g, TCGOp* op) {
    if (g->nb_accesses == CM_MAX_ACCESSES) {
        g->overflow = true;
        return;
    }
    struct cm_access* access = &g->accesses[g->nb_accesses++];
    *access = (struct cm_access){.oi = (TCGMemOpIdx)op->args[2]};
    access->load = op->opc == INDEX_op_qemu_ld_i32 || op->opc == INDEX_op_qemu_ld_i64;
    access->wide = op->opc == INDEX_op_qemu_ld_i64 || op->opc == INDEX_op_qemu_st_i64;
    const MemOp memop = get_memop(access->oi);
    const int address = cm_use(g, op->args[1]);
    access->address = (int8_t)address;
    if (!access->load) {
        const struct cm_value* v = cm_value(g, op->args[0]);
        access->number = v->number;
        access->constant = v->constant && ((memop & MO_SIZE) != MO_64 || v->number == (int32_t)v->number);
        if (!access->constant) access->data = (int8_t)cm_use(g, op->args[0]);
        save_state(g, access);
        cm_release_dead_inputs(g, op, 0, 2);
        access->live = held_across_call(g);
        access->jump = emit_look_up(g, address, access->oi, offsetof(CPUTLBEntry, addr_write));
        emit_fast_store(g, access, memop);
        access->resume = g->e.at;
        return;
    }
    // The datum's register may be the address's, but not one that the slow path has still to store.
    const int address_temp = cm_index(g, op->args[1]);
    const bool reuse = cm_dies(op, 1) && !arg_temp(op->args[1])->fixed_reg && g->holders[address] == 1 &&
                       address_temp >= g->tcg->nb_globals;
    const int reg = reuse ? address : cm_allocate(g, 0);
    save_state(g, access);
    cm_release_dead_inputs(g, op, 1, 1);
    access->live = held_across_call(g) & (uint16_t) ~(1u << reg);
    access->data = (int8_t)reg;
    access->jump = emit_look_up(g, address, access->oi, offsetof(CPUTLBEntry, addr_read));
    emit_fast_load(g, memop, access->wide, reg, address);
    access->resume = g->e.at;
    const bool is_signed = (memop & MO_SIGN) != 0 && (memop & MO_SIZE) != MO_64;
    cm_define(g, op, 0, reg, (memop & MO_SIZE) != MO_64 && !(is_signed && access->wide));
}

// The engine's helpers, and before a store a look whether the block has to be left (cm_engine_self_write).
static void restart_if_asked(CPUArchState* env, uintptr_t return_address) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    if (likely(!engine->restart_at_store)) return;
    engine->restart_at_store = false;
    engine->counters.self_restarts++;
    cpu_restore_state(engine->cs, return_address, true);
    engine->cs->cflags_next_tb = 1;
    cpu_loop_exit_noexc(engine->cs);
}

static void store_8(CPUArchState* env, target_ulong address, uint8_t datum, TCGMemOpIdx oi, uintptr_t from) {
    restart_if_asked(env, from);
    helper_ret_stb_mmu(env, address, datum, oi, from);
}

static void store_16(CPUArchState* env, target_ulong address, uint16_t datum, TCGMemOpIdx oi,
                     uintptr_t from) {
    restart_if_asked(env, from);
    helper_le_stw_mmu(env, address, datum, oi, from);
}

static void store_32(CPUArchState* env, target_ulong address, uint32_t datum, TCGMemOpIdx oi,
                     uintptr_t from) {
    restart_if_asked(env, from);
    helper_le_stl_mmu(env, address, datum, oi, from);
}

static void store_64(CPUArchState* env, target_ulong address, uint64_t datum, TCGMemOpIdx oi,
                     uintptr_t from) {
    restart_if_asked(env, from);
    helper_le_stq_mmu(env, address, datum, oi, from);
}

static const void* const load_helpers[4] = {helper_ret_ldub_mmu, helper_le_lduw_mmu, helper_le_ldul_mmu,
                                            helper_le_ldq_mmu};
static const void* const store_helpers[4] = {store_8, store_16, store_32, store_64};

static void save_registers(gen* g, uint16_t live, bool restore) {
    for (int reg = 0; reg < 16; reg++) {
        if (live >> reg & 1) emit_rm(&g->e, restore ? 0x8b : 0x89, WIDE, reg, RSP, cm_slot_offset(g, reg));
    }
}

static void emit_return_address(gen* g, int reg, const uint8_t* resume) {
    emit_opcode(&g->e, 0x8d, WIDE, reg, 0, 0);
    emit8(&g->e, 5u | (unsigned)(reg & 7) << 3);
    emit32(&g->e, (uint32_t)(resume - (g->e.at + 4)));
}

static void emit_loaded(gen* g, const struct cm_access* access) {
    static const unsigned opcodes[8] = {
        [MO_UB] = 0x0fb6, [MO_UW] = 0x0fb7, [MO_UL] = 0x8b, [MO_Q] = 0x8b,
        [MO_SB] = 0x0fbe, [MO_SW] = 0x0fbf, [MO_SL] = 0x63,
    };
    const MemOp op = get_memop(access->oi);
    const bool is_signed = (op & MO_SIGN) != 0;
    unsigned opcode = opcodes[op & MO_SSIZE];
    if ((op & MO_SSIZE) == MO_SL && !access->wide) opcode = 0x8b;
    const int size = (op & MO_SIZE) == MO_64 || (is_signed && access->wide) ? WIDE : NARROW;
    emit_rr(&g->e, opcode, size | BYTE_REGISTER, access->data, RAX);
}

static void slow_path(gen* g, const struct cm_access* access) {
    emitter* e = &g->e;
    const MemOp op = get_memop(access->oi);
    emit_patch(access->jump, e->at);
    for (int i = 0; i < access->saves; i++) {
        const struct cm_save* save = &g->saves[access->first_save + i];
        if (save->reg < 0) {
            cm_store_number(g, save->temp, save->number);
            continue;
        }
        const TCGTemp* ts = &g->tcg->temps[save->temp];
        emit_rm(e, 0x89, ts->type != TCG_TYPE_I32, save->reg, RBP, (int32_t)ts->mem_offset);
    }
    save_registers(g, access->live, false);
    emit_mov(e, WIDE, RSI, access->address);
    if (!access->load) {
        if (access->constant) {
            emit_mov_imm(e, RDX, access->number);
        } else {
            emit_mov(e, WIDE, RDX, access->data);
        }
    }
    emit_mov_imm(e, access->load ? RDX : RCX, access->oi);
    emit_return_address(g, access->load ? RCX : R8, access->resume);
    emit_mov(e, WIDE, RDI, RBP);
    emit_call(e, (access->load ? load_helpers : store_helpers)[op & MO_SIZE]);
    if (access->load) emit_loaded(g, access);
    save_registers(g, access->live, true);
    emit_jmp(e, access->resume);
}

bool cm_generate_slow_paths(gen* g) {
    for (int i = 0; i < g->nb_accesses; i++) {
        slow_path(g, &g->accesses[i]);
        if (unlikely((void*)g->e.at > g->tcg->code_gen_highwater)) return false;
    }
    return true;
}

#endif
