// SPDX-License-Identifier: GPL-2.0-or-later
// General-purpose instructions that the engine's decoder takes for others, or executes in the wrong order.
#include "segment_limits.h"
#include "tcg/tcg-op.h"

enum { DS_PREFIX = 0x3e };  // without an effect in 64-bit code

// LAHF and SAHF name AH by themselves. The engine asks for byte register 4, which REX turns into SPL.
static enum cm_translated flags_in_ah(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->rex) cm_respell(t, in->opcode_at - 1u, DS_PREFIX);
    return CM_TO_ENGINE;
}

static void drop_operand_size_prefix(struct cm_translator* t, const struct cm_instruction* in) {
    for (unsigned at = 0; at < in->opcode_at; at++) {
        if (t->bytes[at] == 0x66) cm_respell(t, at, in->code_size == CM_CODE64 ? DS_PREFIX : 0xf3);
    }
}

// REX.W goes before 66 (SDM vol. 2A, 2.2.1.2), which the engine forgets here.
static enum cm_translated popcnt(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->operand_bytes == 8) drop_operand_size_prefix(t, in);
    return CM_TO_ENGINE;
}

// RDFSBASE to WRGSBASE: 66 has no effect.
static enum cm_translated segment_base(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->operand_bytes == 2) drop_operand_size_prefix(t, in);
    return CM_TO_ENGINE;
}

// F6 /1 and F7 /1 are TEST as well.
static enum cm_translated test_immediate(struct cm_translator* t, const struct cm_instruction* in) {
    cm_respell(t, in->opcode_at + 1u, in->modrm & ~0x38);
    return CM_TO_ENGINE;
}

// The immediate byte lies between a RIP-relative displacement and the next instruction, which the engine
// forgets for these.
static enum cm_translated double_shift(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->base != CM_RIP) return CM_TO_ENGINE;
    const int32_t displacement = (int32_t)((uint32_t)in->displacement + 1);
    memcpy(t->bytes + in->length - 5, &displacement, sizeof displacement);
    return CM_TO_ENGINE;
}

// PAUSE ends the block, and with it the engine forgets the trap flag.
static enum cm_translated pause_in_steps(struct cm_translator* t, const struct cm_instruction* in) {
    if (t->dc->tf && in->mandatory == CM_WITH_F3) {
        for (unsigned at = 0; at < in->opcode_at; at++) {
            if (t->bytes[at] == 0xf3) cm_respell(t, at, 0x66);
        }
    }
    return CM_TO_ENGINE;
}

// BSF and BSR leave the whole register alone when the source is zero (SDM vol. 2A, BSF; only old processors
// clear the upper half of it). The engine writes 32 bits of it.
static enum cm_translated scan(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    if (in->code_size != CM_CODE64 || in->operand_bytes != 4 || in->prefixes & CM_PREFIX_LOCK)
        return CM_TO_ENGINE;
    TCGv_i64 to = tcg->cpu_regs[in->reg], source = tcg_temp_new_i64(tcg);
    if (in->is_memory) {
        TCGv_i64 address = cm_emit_address(t, in);
        tcg_gen_qemu_ld_i64(tcg, source, address, t->dc->mem_index, MO_LEUL);
        tcg_temp_free_i64(tcg, address);
    } else {
        tcg_gen_ext32u_i64(tcg, source, tcg->cpu_regs[in->rm]);
    }
    tcg_gen_mov_i64(tcg, tcg->cpu_cc_dst, source);  // ZF says whether it is zero
    t->dc->cc_op = CC_OP_LOGICL;
    t->dc->cc_op_dirty = true;
    if (in->opcode == 0xbc) {
        tcg_gen_ctz_i64(tcg, to, source, to);
    } else {
        // The number of the highest bit is 63 minus the zeros above it.
        TCGv_i64 otherwise = tcg_temp_new_i64(tcg), zeros = tcg_temp_new_i64(tcg);
        tcg_gen_xori_i64(tcg, otherwise, to, 63);
        tcg_gen_clz_i64(tcg, zeros, source, otherwise);
        tcg_gen_xori_i64(tcg, to, zeros, 63);
        tcg_temp_free_i64(tcg, zeros);
        tcg_temp_free_i64(tcg, otherwise);
    }
    tcg_temp_free_i64(tcg, source);
    return CM_TRANSLATED;
}

// CLFLUSH is to its line what a load of a byte is (SDM vol. 2A, CLFLUSH), but that it reads no device.
static void check_flushed(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)in;
    probe_read(env, address, 1, cpu_mmu_index(env, false), GETPC());
}

static void store(CPUX86State* env, target_ulong address, unsigned size, uint64_t value, uintptr_t ra) {
    cm_check_alignment(env, address, size, ra);
    if (size == 8) {
        cpu_stq_data_ra(env, address, value, ra);
    } else if (size == 4) {
        cpu_stl_data_ra(env, address, (uint32_t)value, ra);
    } else {
        cpu_stw_data_ra(env, address, (uint32_t)value, ra);
    }
}

static uint64_t load(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    cm_check_alignment(env, address, size, ra);
    if (size == 8) return cpu_ldq_data_ra(env, address, ra);
    return size == 4 ? cpu_ldl_data_ra(env, address, ra) : cpu_lduw_data_ra(env, address, ra);
}

static target_ulong on_stack(const CPUX86State* env, target_ulong offset) {
    if (env->hflags & HF_CS64_MASK) return offset;
    return (uint32_t)(env->segs[R_SS].base + offset);
}

// Of the stack, in its segment.
static void push_at(CPUX86State* env, target_ulong offset, unsigned size, uint64_t value, uintptr_t ra) {
    cm_check_segment(env, R_SS, on_stack(env, offset), size, true, ra);
    store(env, on_stack(env, offset), size, value, ra);
}

static uint64_t merged(uint64_t old, uint64_t value, uint64_t mask) { return (old & ~mask) | (value & mask); }

// ENTER (SDM vol. 2A): the pushes, then a look at whether the new top of the stack can be written, and only
// then the registers. The nesting level is where another instruction has its ModRM byte.
static void enter(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)address;
    const bool code64 = env->hflags & HF_CS64_MASK;
    const uint64_t stack = code64 ? UINT64_MAX : env->segs[R_SS].flags & DESC_B_MASK ? UINT32_MAX : 0xffff;
    const unsigned size = code64 && in.operand_bytes == 4 ? 8 : in.operand_bytes, level = in.modrm & 31;
    const uint64_t operand = size == 8 ? UINT64_MAX : size == 4 ? UINT32_MAX : 0xffff;
    uint64_t top = (env->regs[R_ESP] - size) & stack, frame = top, from = env->regs[R_EBP];
    push_at(env, top, size, env->regs[R_EBP], GETPC());
    for (unsigned outer = 1; outer < level; outer++) {
        from = (from - size) & stack, top = (top - size) & stack;
        cm_check_segment(env, R_SS, on_stack(env, from), size, false, GETPC());
        push_at(env, top, size, load(env, on_stack(env, from), size, GETPC()), GETPC());
    }
    if (level) {
        top = (top - size) & stack;
        push_at(env, top, size, frame, GETPC());
    }
    top = (top - (uint16_t)in.immediate) & stack;
    cm_check_segment(env, R_SS, on_stack(env, top), size, true, GETPC());
    cm_probe_write(env, on_stack(env, top), size, GETPC());
    env->regs[R_ESP] = code64 ? top : stack == UINT32_MAX ? top : merged(env->regs[R_ESP], top, stack);
    env->regs[R_EBP] = size == 4 ? (uint32_t)frame : merged(env->regs[R_EBP], frame, operand);
}

static enum cm_translated translate_enter(struct cm_translator* t, const struct cm_instruction* in) {
    struct cm_instruction with_level = *in;
    with_level.modrm = t->bytes[in->length - 1];
    return cm_emit_execute(t, &with_level, enter, 0);
}

// LOOPE and LOOPNE jump over the look at ZF when the count runs out. The engine computes the flags behind
// that jump, and takes them as computed on both ways.
static void compute_flags(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)address, (void)in;
    env->cc_src = cm_arithmetic_flags(env);
}

static enum cm_translated loop_while(struct cm_translator* t, const struct cm_instruction* in) {
    if (!(in->prefixes & CM_PREFIX_LOCK)) {
        cm_emit_execute(t, in, compute_flags, CM_READS_FLAGS | CM_WRITES_FLAGS);
        cm_store_flags_kind(t);
    }
    return CM_TO_ENGINE;
}

// BOUND reads both bounds in a call of the engine.
static void check_bounds(CPUX86State* env, target_ulong address, union cm_operands in) {
    cm_check_alignment(env, address, in.operand_bytes, GETPC());
}

// ARPL writes its operand when it changes it (SDM vol. 2A); the engine always does.
static void arpl(CPUX86State* env, target_ulong address, union cm_operands in) {
    uint32_t flags = cm_arithmetic_flags(env) & ~(uint32_t)CC_Z;
    const unsigned old = (unsigned)load(env, address, 2, GETPC()), level = env->regs[in.reg] & 3;
    if ((old & 3) < level) {
        store(env, address, 2, (old & ~3u) | level, GETPC());
        flags |= CC_Z;
    }
    env->cc_src = flags;
}

static enum cm_translated translate_arpl(struct cm_translator* t, const struct cm_instruction* in) {
    const bool is_undefined = !t->dc->pe || t->dc->vm86 || (in->prefixes & CM_PREFIX_LOCK);
    return is_undefined ? CM_TO_ENGINE : cm_emit_execute(t, in, arpl, CM_READS_FLAGS | CM_WRITES_FLAGS);
}

static void swap_bytes(TCGContext* tcg, TCGv_i64 to, TCGv_i64 from, unsigned size) {
    if (size == 8) {
        tcg_gen_bswap64_i64(tcg, to, from);
    } else if (size == 4) {
        tcg_gen_ext32u_i64(tcg, to, from);
        tcg_gen_bswap32_i64(tcg, to, to);
    } else {
        tcg_gen_ext16u_i64(tcg, to, from);
        tcg_gen_bswap16_i64(tcg, to, to);
    }
}

// MOVBE. The engine's access swaps the bytes itself, of which our code generator knows nothing: it would
// leave the whole block to the engine's own, and that one nothing of what accesses.c asks for.
static enum cm_translated move_swapped(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    const unsigned size = in->operand_bytes;
    const MemOp access = size == 8 ? MO_LEQ : size == 4 ? MO_LEUL : MO_LEUW;
    TCGv_i64 reg = tcg->cpu_regs[in->reg], address, value;
    if (in->prefixes & CM_PREFIX_LOCK) return CM_TO_ENGINE;
    address = cm_emit_address(t, in), value = tcg_temp_new_i64(tcg);
    if (in->opcode == 0xf1) {
        swap_bytes(tcg, value, reg, size);
        tcg_gen_qemu_st_i64(tcg, value, address, t->dc->mem_index, access);
    } else {
        tcg_gen_qemu_ld_i64(tcg, value, address, t->dc->mem_index, access);
        swap_bytes(tcg, value, value, size);
        if (size == 2) {
            tcg_gen_deposit_i64(tcg, reg, reg, value, 0, 16);
        } else {
            tcg_gen_mov_i64(tcg, reg, value);
        }
    }
    tcg_temp_free_i64(tcg, value);
    tcg_temp_free_i64(tcg, address);
    return CM_TRANSLATED;
}

const struct cm_row cm_integer_rows[15] = {
    {CM_MAP_1, 0x62, .form = CM_MEMORY, .modes = CM_IN_16 | CM_IN_32, .check = check_bounds},
    {CM_MAP_1, 0x63, .form = CM_MEMORY, .modes = CM_IN_16 | CM_IN_32, .translate = translate_arpl},
    {CM_MAP_1, 0x6c, 0x6f, .check = cm_check_string_port},
    {CM_MAP_1, 0x90, .translate = pause_in_steps},
    {CM_MAP_1, 0x9e, 0x9f, .modes = CM_IN_64, .translate = flags_in_ah},
    {CM_MAP_1, 0xc8, .translate = translate_enter},
    {CM_MAP_1, 0xe0, 0xe1, .translate = loop_while},
    {CM_MAP_1, 0xf6, 0xf7, .groups = 1 << 1, .translate = test_immediate},
    {CM_MAP_0F, 0xa4, .form = CM_MEMORY, .modes = CM_IN_64, .translate = double_shift},
    {CM_MAP_0F, 0xac, .form = CM_MEMORY, .modes = CM_IN_64, .translate = double_shift},
    {CM_MAP_0F, 0xae, .groups = 1 << 7, .form = CM_MEMORY, .prefixes = CM_IF_NONE, .check = check_flushed},
    {CM_MAP_0F, 0xae, .groups = 15, .form = CM_REGISTER, .modes = CM_IN_64, .prefixes = CM_IF_F3,
     .translate = segment_base},
    {CM_MAP_0F, 0xb8, .prefixes = CM_IF_F3, .translate = popcnt},
    {CM_MAP_0F, 0xbc, 0xbd, .translate = scan},
    {CM_MAP_0F38, 0xf0, 0xf1, .form = CM_MEMORY, .prefixes = CM_IF_NONE | CM_IF_66,
     .translate = move_swapped},
};
