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

static void emit_sum(emitter* e, int reg, int address, int32_t displacement) {
    if (displacement) {
        emit_rm(e, 0x8d, WIDE, reg, address, displacement);
    } else {
        emit_mov(e, WIDE, reg, address);
    }
}

// What is looked up: the bytes from `low` up to, but not with, `high` about the address of an access.
struct extent {
    int32_t low, high;
    int32_t alignment, phase;  // of the address `phase` bytes from that of the access; 1: none
    bool write;
};

// The last address in it that has to be aligned, or its last byte: one comparison tells whether it lies on
// the page of the first, and is aligned.
static int32_t last_aligned(const struct extent* x) {
    return x->phase + ((x->high - 1 - x->phase) & -x->alignment);
}

// Leaves the host address of the guest's page 0 in `host_base`. Another page at the end of the extent misses.
static uint8_t* emit_look_up(gen* g, const struct cm_access* access, const struct extent* x, int host_base) {
    emitter* e = &g->e;
    const int mmu_index = (int)get_mmuidx(access->oi);
    emit_sum(e, RDI, access->address, access->displacement + x->low);
    emit_shift_imm(e, SHIFT_SHR, WIDE, RDI, TARGET_PAGE_BITS - CPU_TLB_ENTRY_BITS);
    emit_rm(e, 0x23, WIDE, RDI, RBP, tlb_field(mmu_index, offsetof(CPUTLBDescFast, mask)));
    emit_rm(e, 0x03, WIDE, RDI, RBP, tlb_field(mmu_index, offsetof(CPUTLBDescFast, table)));
    emit_sum(e, RSI, access->address, access->displacement + last_aligned(x));
    emit_alu_imm(e, ALU_AND, WIDE, RSI, (int32_t)TARGET_PAGE_MASK | (x->alignment - 1));
    emit_rm(e, 0x3b, WIDE, RSI, RDI,
            x->write ? offsetof(CPUTLBEntry, addr_write) : offsetof(CPUTLBEntry, addr_read));
    uint8_t* jump = emit_jcc(e, IF_NE);
    emit_rm(e, 0x8b, WIDE, host_base, RDI, offsetof(CPUTLBEntry, addend));
    return jump;
}

static struct extent own_extent(const struct cm_access* access) {
    const MemOp op = get_memop(access->oi);
    return (struct extent){.high = cm_bytes_checked(op),
                           .alignment = 1 << get_alignment_bits(op),
                           .write = !access->load || (op & CM_MO_WRITTEN)};
}

static void save_state(gen* g, struct cm_access* access) {
    access->first_save = (uint16_t)g->nb_saves;
    for (uint64_t left = cm_changed_globals(g); left; left &= left - 1) {
        const int i = __builtin_ctzll(left);
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

static void emit_fast_load(gen* g, const struct cm_access* access, int host_base) {
    const MemOp op = get_memop(access->oi);
    const bool wide = access->wide;
    static const unsigned opcodes[8] = {
        [MO_UB] = 0x0fb6, [MO_UW] = 0x0fb7, [MO_UL] = 0x8b, [MO_Q] = 0x8b,
        [MO_SB] = 0x0fbe, [MO_SW] = 0x0fbf, [MO_SL] = 0x63,
    };
    const bool is_signed = (op & MO_SIGN) != 0;
    unsigned opcode = opcodes[op & MO_SSIZE];
    if ((op & MO_SSIZE) == MO_SL && !wide) opcode = 0x8b;
    const int size = (op & MO_SIZE) == MO_64 || (is_signed && wide) ? WIDE : NARROW;
    emit_rmx(&g->e, opcode, size, access->data, host_base, access->address, 0, access->displacement);
}

static void emit_fast_store(gen* g, const struct cm_access* access, int host_base) {
    const int bits = get_memop(access->oi) & MO_SIZE;
    const int size = bits == MO_64 ? WIDE : bits == MO_16 ? HALF : NARROW;
    if (!access->constant) {
        emit_rmx(&g->e, bits == MO_8 ? 0x88 : 0x89, bits == MO_8 ? BYTE_REGISTER : size, access->data,
                 host_base, access->address, 0, access->displacement);
        return;
    }
    emit_rmx(&g->e, bits == MO_8 ? 0xc6 : 0xc7, size, 0, host_base, access->address, 0, access->displacement);
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

static void emit_fast(gen* g, const struct cm_access* access, int host_base) {
    if (access->load) {
        emit_fast_load(g, access, host_base);
    } else {
        emit_fast_store(g, access, host_base);
    }
}

// The first access of a group looks the page up for all of it: for writing, if one of them writes, which
// includes reading (memory.c). It leaves where the page is in a register, or 0 there when it could not, with
// which the others look it up for themselves behind the block. No TLB entry is kept, only what it said; that
// may be used until the guest or a helper could have asked for it to be forgotten.
static void emit_in_line(gen* g, struct cm_access* access, const struct cm_near* near) {
    const struct cm_group* group = access->role == ALONE ? NULL : &g->groups[near->group];
    if (access->role == NEXT_OF_GROUP) {
        emit_rr(&g->e, 0x85, WIDE, access->host_base, access->host_base);
        access->jump = emit_jcc(&g->e, IF_E);
    } else if (group) {
        const struct extent all = {group->low - near->offset, group->high - near->offset, group->alignment,
                                   (group->phase - near->offset) & (group->alignment - 1), group->writes};
        access->jump = emit_look_up(g, access, &all, access->host_base);
    } else {
        const struct extent own = own_extent(access);
        access->jump = emit_look_up(g, access, &own, RSI);
    }
    emit_fast(g, access, access->host_base);
    access->resume = g->e.at;
}

void cm_generate_access(gen* g, TCGOp* op) {
    if (g->nb_accesses == CM_MAX_ACCESSES) {
        g->overflow = true;
        return;
    }
    const int number = g->nb_accesses++;
    struct cm_access* access = &g->accesses[number];
    *access = (struct cm_access){.oi = (TCGMemOpIdx)op->args[2], .host_base = RSI};
    access->load = op->opc == INDEX_op_qemu_ld_i32 || op->opc == INDEX_op_qemu_ld_i64;
    access->wide = op->opc == INDEX_op_qemu_ld_i64 || op->opc == INDEX_op_qemu_st_i64;
    const MemOp memop = get_memop(access->oi);
    struct cm_group* group = cm_group_of(g, number);
    if (group && group->reg >= 0) {
        access->role = NEXT_OF_GROUP;
        access->host_base = group->reg;
        g->locked |= 1u << group->reg;
    } else if (group && group->last != number) {
        access->role = FIRST_OF_GROUP;
    }
    const int address = cm_use(g, op->args[1]);
    access->address = (int8_t)address;
    access->displacement = cm_value(g, op->args[1])->displacement;
    if (access->load) {
        // The datum's register may be the address's, but not one that the slow path has still to store.
        const int address_temp = cm_index(g, op->args[1]);
        const bool reuse = cm_dies(op, 1) && !arg_temp(op->args[1])->fixed_reg && g->holders[address] == 1 &&
                           address_temp >= g->tcg->nb_globals;
        access->data = (int8_t)(reuse ? address : cm_allocate(g, 0));
    } else {
        const struct cm_value* v = cm_value(g, op->args[0]);
        access->number = v->number;
        access->constant = v->constant && ((memop & MO_SIZE) != MO_64 || v->number == (int32_t)v->number);
        if (!access->constant) access->data = (int8_t)cm_use(g, op->args[0]);
    }
    if (access->role == FIRST_OF_GROUP) {
        access->host_base = (int8_t)cm_allocate(g, 0);
        cm_hold_for_group(g, group, access->host_base);
    }
    save_state(g, access);
    if (access->load) {
        cm_release_dead_inputs(g, op, 1, 1);
    } else {
        cm_release_dead_inputs(g, op, 0, 2);
    }
    if (group && group->last == number) cm_release_group(g, group);
    access->live = held_across_call(g);
    if (access->load) access->live &= (uint16_t) ~(1u << access->data);
    emit_in_line(g, access, &g->near[number]);
    if (!access->load) return;
    const bool is_signed = (memop & MO_SIGN) != 0 && (memop & MO_SIZE) != MO_64;
    cm_define(g, op, 0, access->data, (memop & MO_SIZE) != MO_64 && !(is_signed && access->wide));
}

// Before the engine's helpers: what the access asks for beyond its size, and what an operand over two pages
// needs that the engine does not look at.
static inline void check_first(CPUArchState* env, target_ulong address, unsigned size, TCGMemOpIdx oi,
                               MMUAccessType kind, uintptr_t from) {
    const bool asks = get_memop(oi) & (MO_AMASK | CM_MO_WRITTEN | CM_MO_PAIR);
    if (likely(!asks && (address & ~TARGET_PAGE_MASK) + size <= TARGET_PAGE_SIZE)) return;
    cm_check_access(env, address, oi, kind, from);
}

// The engine's helpers would raise a fault of their own for a misaligned access that may be made: RFLAGS.AC
// asks for the check, and CR0.AM says that there is none.
static inline TCGMemOpIdx checked(TCGMemOpIdx oi) {
    return make_memop_idx(get_memop(oi) & ~MO_AMASK, get_mmuidx(oi));
}

#define LOAD(bits, helper)                                                                                 \
    static uint64_t load_##bits(CPUArchState* env, target_ulong address, TCGMemOpIdx oi, uintptr_t from) { \
        check_first(env, address, (bits) / 8, oi, MMU_DATA_LOAD, from);                                    \
        return helper(env, address, checked(oi), from);                                                    \
    }

LOAD(8, helper_ret_ldub_mmu)
LOAD(16, helper_le_lduw_mmu)
LOAD(32, helper_le_ldul_mmu)
LOAD(64, helper_le_ldq_mmu)

#define STORE(bits, type, helper)                                                                 \
    static void store_##bits(CPUArchState* env, target_ulong address, type datum, TCGMemOpIdx oi, \
                             uintptr_t from) {                                                    \
        check_first(env, address, (bits) / 8, oi, MMU_DATA_STORE, from);                          \
        cm_begin_store(env, address, (bits) / 8, (int)get_mmuidx(oi), from);                      \
        helper(env, address, datum, checked(oi), from);                                           \
        cm_end_store(env);                                                                        \
    }

STORE(8, uint8_t, helper_ret_stb_mmu)
STORE(16, uint16_t, helper_le_stw_mmu)
STORE(32, uint32_t, helper_le_stl_mmu)
STORE(64, uint64_t, helper_le_stq_mmu)

static const void* const load_helpers[4] = {load_8, load_16, load_32, load_64};
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

// Where the look-up of a group does not serve an access, it has one of its own. Before every place that a
// branch out of a fast path leads to stands the distance from there to the slow path: a store that the host
// refuses goes on with the latter (memory.c).
static void own_look_up(gen* g, struct cm_access* access) {
    emitter* e = &g->e;
    uint8_t* distance = e->at;
    emit32(e, 0);
    emit_patch(access->jump, e->at);
    if (access->role == FIRST_OF_GROUP) emit_alu(e, ALU_XOR, NARROW, access->host_base, access->host_base);
    const struct extent own = own_extent(access);
    access->jump = emit_look_up(g, access, &own, RSI);
    emit_fast(g, access, RSI);
    emit_jmp(e, access->resume);
    emit_patch(distance, e->at + 4);
}

static void slow_path(gen* g, struct cm_access* access) {
    emitter* e = &g->e;
    const MemOp op = get_memop(access->oi);
    if (access->role != ALONE) own_look_up(g, access);
    emit32(e, 0);
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
    emit_sum(e, RSI, access->address, access->displacement);
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
