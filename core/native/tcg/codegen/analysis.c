// SPDX-License-Identifier: GPL-2.0-or-later
// What is known of a block's operations before code is generated: which can be, which are never reached,
// where each value is used for the last time, and which results are wanted in their low 32 bits alone.
#include "codegen.h"

#ifdef __x86_64__

enum cm_future {
    LIVE = 1,         // read later, or kept in memory at the end
    HIGH_HALF = 2,    // bits 32 to 63 are read by a later operation
    HIGH_KEPT = 4,    // they are part of what the block leaves behind
    READ = 8,         // read by a later operation of this basic block
    REPLACED = 16,    // another value takes its place before this one has to be in memory
    NO_ADDRESS = 32,  // read for anything but the address of a guest access
    NO_ADDEND = 64,   // ... but an addition of 64 bits
};

#define EITHER(name)            \
    case INDEX_op_##name##_i32: \
    case INDEX_op_##name##_i64

// Deposits and extractions come in the forms that the engine's own generator has instructions for.
static bool is_known(const TCGOp* op) {
    switch (op->opc) {
        EITHER(deposit)
            : return op->args[4] == 8
            ? op->args[3] == 0 || op->args[3] == 8
            : op->args[4] == 16 && op->args[3] == 0;
        case INDEX_op_extract_i64:
            if (op->args[2] + op->args[3] == 32) return true;
            // fall through
        case INDEX_op_extract_i32:
        case INDEX_op_sextract_i32:
            return op->args[2] == 8 && op->args[3] == 8;
            EITHER(ctz) : return __builtin_cpu_supports("bmi");
            EITHER(clz) : return __builtin_cpu_supports("lzcnt");
        case INDEX_op_call:
            return TCGOP_CALLI(op) <= 6 && TCGOP_CALLO(op) <= 1;
        case INDEX_op_qemu_ld_i32:
            return !(get_memop((TCGMemOpIdx)op->args[2]) & MO_BSWAP);
        case INDEX_op_qemu_ld_i64:
            return !(get_memop((TCGMemOpIdx)op->args[2]) & MO_BSWAP);
        case INDEX_op_qemu_st_i32:
        case INDEX_op_qemu_st_i64:
            return !(get_memop((TCGMemOpIdx)op->args[2]) & MO_BSWAP);
            EITHER(mov)
                : EITHER(movi)
                : EITHER(setcond)
                : EITHER(movcond)
                : EITHER(ld8u)
                : EITHER(ld8s)
                : EITHER(ld16u)
                : EITHER(ld16s)
                : EITHER(ld)
                : EITHER(st8)
                : EITHER(st16)
                : EITHER(st)
                : EITHER(add)
                : EITHER(sub)
                : EITHER(mul)
                : EITHER(and)
                : EITHER(or)
                : EITHER(xor)
                : EITHER(andc)
                : EITHER(shl)
                : EITHER(shr)
                : EITHER(sar)
                : EITHER(rotl)
                : EITHER(rotr)
                : EITHER(neg)
                : EITHER(not )
                : EITHER(ext8u)
                : EITHER(ext8s)
                : EITHER(ext16u)
                : EITHER(ext16s)
                : EITHER(bswap16)
                : EITHER(bswap32)
                : EITHER(extract2)
                : EITHER(brcond)
                : EITHER(add2)
                : EITHER(sub2)
                : EITHER(mulu2)
                : EITHER(muls2)
                : EITHER(div2)
                : EITHER(divu2)
                : EITHER(ctpop)
                : case INDEX_op_ld32u_i64 : case INDEX_op_ld32s_i64 : case INDEX_op_st32_i64
                : case INDEX_op_ext32u_i64 : case INDEX_op_ext32s_i64 : case INDEX_op_ext_i32_i64
                : case INDEX_op_extu_i32_i64 : case INDEX_op_bswap64_i64 : case INDEX_op_discard
                : case INDEX_op_set_label : case INDEX_op_br : case INDEX_op_mb : case INDEX_op_insn_start
                : case INDEX_op_exit_tb : case INDEX_op_goto_tb : case INDEX_op_goto_ptr : return true;
        default:
            return false;
    }
}

bool cm_prepare(TCGContext* tcg) {
    TCGOp *op, *next;
    bool dead = false;
    target_ulong flags = 0;
    QTAILQ_FOREACH_SAFE(op, &tcg->ops, link, next) {
        op->output_pref[0] = 0;
        op->output_pref[1] = (TCGRegSet)flags;
        if (op->opc == INDEX_op_set_label) {
            if (arg_label(op->args[0])->refs) {
                dead = false;
            } else {
                tcg_op_remove(tcg, op);
            }
            continue;
        }
        if (op->opc == INDEX_op_insn_start) {
            flags = op->args[1];
            continue;
        }
        if (dead) {
            tcg_op_remove(tcg, op);
            continue;
        }
        if (!is_known(op)) return false;
        dead = op->opc == INDEX_op_br || op->opc == INDEX_op_exit_tb || op->opc == INDEX_op_goto_ptr ||
               (op->opc == INDEX_op_call &&
                (op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op) + 1] & TCG_CALL_NO_RETURN));
    }
    return true;
}

// The lazily kept flags CC_DST, CC_SRC and CC_SRC2 count in their low half alone for these operations.
static bool flags_are_narrow(uint32_t cc_op) {
    return cc_op >= CC_OP_ADDB && cc_op <= CC_OP_BMILGQ && ((cc_op - CC_OP_ADDB) & 3) != 3;
}

struct flag_words {
    int dst, src, src2, op;
};

// Eight globals at a time: this is done for every guest access.
static void change_globals(gen* g, uint8_t set, uint8_t clear) {
    const uint64_t each = UINT64_C(0x0101010101010101);
    const int count = g->tcg->nb_globals;
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        memcpy(&word, &g->future[i], sizeof word);
        word = (word & ~(each * clear)) | each * set;
        memcpy(&g->future[i], &word, sizeof word);
    }
    for (; i < count; i++) g->future[i] = (uint8_t)((g->future[i] & ~clear) | set);
}

static void end_temporaries(gen* g, bool locals_live) {
    const TCGContext* tcg = g->tcg;
    for (int i = tcg->nb_globals & ~7; i < tcg->nb_temps; i += 8) memset(&g->future[i], 0, 8);
    change_globals(g, LIVE | HIGH_KEPT, UINT8_MAX);
    if (!locals_live) return;
    for (int i = 0; i < g->nb_locals; i++) g->future[g->locals[i]] = LIVE | HIGH_KEPT;
}

static void find_locals(gen* g) {
    const TCGContext* tcg = g->tcg;
    g->nb_locals = 0;
    for (int i = tcg->nb_globals; i < tcg->nb_temps; i++) {
        if (tcg->temps[i].temp_local) g->locals[g->nb_locals++] = (int16_t)i;
    }
}

static void keep_globals(gen* g, const struct flag_words* flags, uint32_t cc_op) {
    const bool narrow = flags_are_narrow(cc_op);
    uint8_t* const words[] = {&g->future[flags->dst], &g->future[flags->src], &g->future[flags->src2]};
    const uint8_t kept[] = {*words[0], *words[1], *words[2]};
    change_globals(g, LIVE | HIGH_KEPT, 0);
    for (int i = 0; narrow && i < 3; i++) *words[i] = kept[i] | LIVE;
}

// What is in a global now has to be in memory here.
static void keep_in_memory(gen* g) { change_globals(g, LIVE | HIGH_KEPT, REPLACED); }

// Whether the low half of the result needs no more than the low halves of what goes in.
static bool is_modular(TCGOpcode opc) {
    switch (opc) {
        case INDEX_op_mov_i64:
        case INDEX_op_add_i64:
        case INDEX_op_sub_i64:
        case INDEX_op_mul_i64:
        case INDEX_op_and_i64:
        case INDEX_op_or_i64:
        case INDEX_op_xor_i64:
        case INDEX_op_andc_i64:
        case INDEX_op_neg_i64:
        case INDEX_op_not_i64:
        case INDEX_op_deposit_i64:
            return true;
        default:
            return false;
    }
}

// Whether argument `arg` is read beyond its low half by this operation.
static bool reads_high_half(const TCGOp* op, int arg, bool narrow) {
    if (is_modular(op->opc)) return !narrow;
    switch (op->opc) {
        case INDEX_op_shl_i64:
            return arg == 2 || !narrow;
        case INDEX_op_movcond_i64:
            return arg < 3 || !narrow;
        case INDEX_op_ext8u_i64:
        case INDEX_op_ext8s_i64:
        case INDEX_op_ext16u_i64:
        case INDEX_op_ext16s_i64:
        case INDEX_op_ext32u_i64:
        case INDEX_op_ext32s_i64:
        case INDEX_op_ext_i32_i64:
        case INDEX_op_extu_i32_i64:
        case INDEX_op_mov_i32:
            return false;
        case INDEX_op_extract_i64:
            return op->args[2] + op->args[3] > 32;
        case INDEX_op_st8_i64:
        case INDEX_op_st16_i64:
        case INDEX_op_st32_i64:
            return arg != 0;
        case INDEX_op_qemu_st_i64:
            return arg != 0 || (get_memop((TCGMemOpIdx)op->args[2]) & MO_SIZE) == MO_64;
        default:
            return true;
    }
}

static bool has_narrow_form(const TCGOp* op) {
    if (is_modular(op->opc)) return true;
    switch (op->opc) {
        case INDEX_op_movcond_i64:
        case INDEX_op_ext32u_i64:
        case INDEX_op_ext32s_i64:
        case INDEX_op_ext_i32_i64:
        case INDEX_op_extu_i32_i64:
            return true;
        default:
            return false;
    }
}

static bool is_removable(const gen* g, const TCGOp* op, int outputs) {
    if (op->opc == INDEX_op_call) {
        if (!(op->args[outputs + TCGOP_CALLI(op) + 1] & TCG_CALL_NO_SIDE_EFFECTS)) return false;
    } else if (outputs == 0 || (g->tcg->tcg_op_defs[op->opc].flags & TCG_OPF_SIDE_EFFECTS)) {
        return false;
    }
    for (int i = 0; i < outputs; i++) {
        if (g->future[cm_index(g, op->args[i])] & LIVE) return false;
    }
    return true;
}

// The high part of a double-width operation is often dead: then the single one does.
static void shorten(gen* g, TCGOp* op) {
    TCGOpcode single;
    int second = 3;  // the argument that the single one has last
    switch (op->opc) {
        case INDEX_op_add2_i32:
            single = INDEX_op_add_i32, second = 4;
            break;
        case INDEX_op_add2_i64:
            single = INDEX_op_add_i64, second = 4;
            break;
        case INDEX_op_sub2_i32:
            single = INDEX_op_sub_i32, second = 4;
            break;
        case INDEX_op_sub2_i64:
            single = INDEX_op_sub_i64, second = 4;
            break;
        case INDEX_op_mulu2_i32:
        case INDEX_op_muls2_i32:
            single = INDEX_op_mul_i32;
            break;
        case INDEX_op_mulu2_i64:
        case INDEX_op_muls2_i64:
            single = INDEX_op_mul_i64;
            break;
        default:
            return;
    }
    if (g->future[cm_index(g, op->args[1])] & LIVE) return;
    op->opc = single;
    op->args[1] = op->args[2];
    op->args[2] = op->args[second];
}

// What is defined here is read by operations of one kind alone.
static bool is_read_only_as(const gen* g, TCGArg arg, uint8_t otherwise) {
    const int temp = cm_index(g, arg);
    return temp >= g->tcg->nb_globals && !g->tcg->temps[temp].temp_local &&
           (g->future[temp] & (READ | otherwise)) == READ;
}

void cm_analyse(gen* g) {
    TCGContext* tcg = g->tcg;
    const struct flag_words flags = {
        .dst = cm_index(g, tcgv_i64_arg(tcg, tcg->cpu_cc_dst)),
        .src = cm_index(g, tcgv_i64_arg(tcg, tcg->cpu_cc_src)),
        .src2 = cm_index(g, tcgv_i64_arg(tcg, tcg->cpu_cc_src2)),
        .op = cm_index(g, tcgv_i32_arg(tcg, tcg->cpu_cc_op)),
    };
    bool last_flags =
        true;  // the operation that says what the flags are at the end of the block is still to come
    bool store_follows = false;
    g->accesses_found = 0;
    find_locals(g);
    end_temporaries(g, false);
    TCGOp *op, *before;
    QTAILQ_FOREACH_REVERSE_SAFE(op, &tcg->ops, link, before) {
        if (op->opc == INDEX_op_insn_start) continue;
        if (op->opc == INDEX_op_discard) {
            g->future[cm_index(g, op->args[0])] = 0;
            continue;
        }
        const TCGOpDef* def = &tcg->tcg_op_defs[op->opc];
        const bool is_call = op->opc == INDEX_op_call;
        if (!is_call) shorten(g, op);
        def = &tcg->tcg_op_defs[op->opc];
        const int outputs = is_call ? TCGOP_CALLO(op) : def->nb_oargs;
        const int inputs = is_call ? TCGOP_CALLI(op) : def->nb_iargs;
        if (is_removable(g, op, outputs)) {
            tcg_op_remove(tcg, op);
            continue;
        }
        unsigned life = 0, final = 0;
        const bool is_access = cm_is_access(op);
        g->accesses_found += is_access;
        const bool address = op->opc == INDEX_op_add_i64 && is_read_only_as(g, op->args[0], NO_ADDRESS);
        const bool addend = op->opc == INDEX_op_shl_i64 && is_read_only_as(g, op->args[0], NO_ADDEND);
        bool narrow = has_narrow_form(op);
        for (int i = 0; i < outputs; i++) {
            const int temp = cm_index(g, op->args[i]);
            if (!(g->future[temp] & LIVE)) life |= 1u << i;
            if (g->future[temp] & (HIGH_HALF | HIGH_KEPT)) narrow = false;
            if (store_follows && temp < tcg->nb_globals && !(g->future[temp] & REPLACED)) final |= 1u << i;
            g->future[temp] = REPLACED;
            if (temp != flags.op || !last_flags) continue;
            last_flags = false;
            if (op->opc == INDEX_op_movi_i32 && flags_are_narrow((uint32_t)op->args[1])) {
                g->future[flags.dst] &= ~HIGH_KEPT;
                g->future[flags.src] &= ~HIGH_KEPT;
                g->future[flags.src2] &= ~HIGH_KEPT;
            }
        }
        if (is_call) {
            const unsigned call_flags = (unsigned)op->args[outputs + inputs + 1];
            if (!(call_flags & TCG_CALL_NO_READ_GLOBALS)) keep_in_memory(g);
        } else if (op->opc == INDEX_op_brcond_i32 || op->opc == INDEX_op_brcond_i64) {
            keep_in_memory(g);
            for (int i = 0; i < g->nb_locals; i++) g->future[g->locals[i]] |= LIVE | HIGH_KEPT;
        } else if (def->flags & TCG_OPF_BB_EXIT) {
            end_temporaries(g, false);
        } else if (def->flags & TCG_OPF_BB_END) {
            end_temporaries(g, true);
        } else if (def->flags & TCG_OPF_SIDE_EFFECTS) {
            keep_globals(g, &flags, (uint32_t)op->output_pref[1]);
            store_follows |= outputs == 0;
        }
        for (int i = outputs; i < outputs + inputs; i++) {
            const TCGTemp* ts = arg_temp(op->args[i]);
            if (!ts) continue;
            const uint8_t future = g->future[cm_index(g, op->args[i])];
            if (!(future & LIVE)) life |= 1u << i;
            if (future & READ) life |= 1u << (8 + i);
        }
        for (int i = outputs; i < outputs + inputs; i++) {
            const TCGTemp* ts = arg_temp(op->args[i]);
            if (!ts) continue;
            uint8_t* future = &g->future[cm_index(g, op->args[i])];
            *future |= LIVE | READ;
            if (!is_access || i != 1) *future |= NO_ADDRESS;
            if (op->opc != INDEX_op_add_i64) *future |= NO_ADDEND;
            if (is_call || reads_high_half(op, i, narrow)) *future |= HIGH_HALF;
        }
        op->life = life;
        op->output_pref[0] = (narrow ? CM_NARROW : 0) | (address ? CM_ADDRESS : 0) | (addend ? CM_ADDEND : 0);
        op->output_pref[1] = final;
    }
}

#endif
