// SPDX-License-Identifier: GPL-2.0-or-later
// Which register holds what, while the code of a block is generated.
#include "codegen.h"

#ifdef __x86_64__

// Those that calls leave alone come first.
static const int8_t order[] = {RBX, R12, R13, R14, R15, R10, R11, R9, R8, RAX, RDX, RCX};

static bool is_wide(const gen* g, int temp) { return g->tcg->temps[temp].type != TCG_TYPE_I32; }

int32_t cm_home(gen* g, int temp, int* base) {
    if (temp < g->tcg->nb_globals) {
        *base = RBP;
        return (int32_t)g->tcg->temps[temp].mem_offset;
    }
    struct cm_value* v = &g->values[temp];
    if (v->slot < 0) {
        if (g->frame_used >= CM_SLOTS) {
            g->overflow = true;
            g->frame_used = CM_FIRST_SLOT;
        }
        v->slot = (int16_t)g->frame_used++;
    }
    *base = RSP;
    return cm_slot_offset(g, v->slot);
}

void cm_values_start(gen* g) {
    const TCGContext* tcg = g->tcg;
    g->clock = 0;
    g->frame_used = CM_FIRST_SLOT;
    g->locked = 0;
    g->changed = 0;
    g->overflow = false;
    memset(g->holders, 0, sizeof g->holders);
    memset(g->last_use, 0, sizeof g->last_use);
    for (int i = 0; i < tcg->nb_temps; i++) {
        g->values[i] = (struct cm_value){.reg = -1, .slot = -1, .in_memory = i < tcg->nb_globals};
    }
}

void cm_release(gen* g, int temp) {
    struct cm_value* v = &g->values[temp];
    if (v->reg < 0) return;
    g->holders[v->reg]--;
    v->reg = -1;
    v->scale = 0;
    v->displacement = 0;
}

static void note_change(gen* g, int temp) {
    if (temp < CM_MAX_GLOBALS) g->changed |= UINT64_C(1) << temp;
}

uint64_t cm_changed_globals(const gen* g) {
    return g->changed & (UINT64_MAX >> (CM_MAX_GLOBALS - g->tcg->nb_globals));
}

static void hold(gen* g, int temp, int reg) {
    note_change(g, temp);
    g->values[temp].reg = (int8_t)reg;
    g->holders[reg]++;
    g->last_use[reg] = ++g->clock;
}

void cm_hold_for_group(gen* g, struct cm_group* group, int reg) {
    group->reg = (int8_t)reg;
    g->holders[reg]++;
    g->last_use[reg] = ++g->clock;
}

void cm_release_group(gen* g, struct cm_group* group) {
    if (group->reg < 0) return;
    g->holders[group->reg]--;
    group->reg = -1;
}

// The group looks its page up again.
static void release_groups(gen* g, uint32_t registers) {
    for (int i = 0; i < g->nb_groups; i++) {
        if (g->groups[i].reg >= 0 && (registers >> g->groups[i].reg & 1)) cm_release_group(g, &g->groups[i]);
    }
}

// Drops a value that no later op reads.
static void forget(gen* g, int temp) {
    cm_release(g, temp);
    g->values[temp].constant = false;
    g->values[temp].in_memory = false;
}

void cm_release_dead_inputs(gen* g, const TCGOp* op, int first, int count) {
    for (int i = first; i < first + count; i++) {
        if (!cm_dies(op, i)) continue;
        const TCGTemp* ts = arg_temp(op->args[i]);
        if (ts && !ts->fixed_reg) forget(g, cm_index(g, op->args[i]));
    }
}

void cm_store_number(gen* g, int temp, int64_t number) {
    int base;
    const int32_t at = cm_home(g, temp, &base);
    if (!is_wide(g, temp) || number == (int32_t)number) {
        emit_rm(&g->e, 0xc7, is_wide(g, temp), 0, base, at);
        emit32(&g->e, (uint32_t)number);
    } else {
        emit_mov_imm(&g->e, RDI, number);
        emit_rm(&g->e, 0x89, WIDE, RDI, base, at);
    }
}

void cm_store_home(gen* g, int temp) {
    struct cm_value* v = &g->values[temp];
    if (v->reg >= 0) {
        int base;
        const int32_t at = cm_home(g, temp, &base);
        int reg = v->reg;
        if (v->scale || v->displacement) {
            emit_rmx(&g->e, 0x8d, WIDE, reg = RDI, -1, v->reg, v->scale, v->displacement);
        }
        emit_rm(&g->e, 0x89, is_wide(g, temp), reg, base, at);
    } else if (v->constant) {
        cm_store_number(g, temp, v->number);
    } else {
        return;
    }
    v->in_memory = true;
}

static void spill(gen* g, int reg) {
    for (int i = 0; i < g->tcg->nb_temps && g->holders[reg]; i++) {
        if (g->values[i].reg != reg) continue;
        if (!g->values[i].in_memory && !g->values[i].constant) cm_store_home(g, i);
        cm_release(g, i);
    }
    if (g->holders[reg]) release_groups(g, 1u << reg);
}

// Spill victim: prefer registers whose values also exist elsewhere, then least recently used.
static int victim(const gen* g, uint32_t forbidden) {
    uint32_t dirty = 0;
    for (int i = 0; i < g->tcg->nb_temps; i++) {
        const struct cm_value* v = &g->values[i];
        if (v->reg >= 0 && !v->in_memory && !v->constant) dirty |= 1u << v->reg;
    }
    int best = -1;
    for (unsigned i = 0; i < sizeof order; i++) {
        const int reg = order[i];
        if (forbidden >> reg & 1) continue;
        const bool better =
            best < 0 || (dirty >> best & 1) > (dirty >> reg & 1) ||
            ((dirty >> best & 1) == (dirty >> reg & 1) && g->last_use[reg] < g->last_use[best]);
        if (better) best = reg;
    }
    return best;
}

static int free_register(const gen* g, uint32_t forbidden) {
    for (unsigned i = 0; i < sizeof order; i++) {
        if (!g->holders[order[i]] && !(forbidden >> order[i] & 1)) return order[i];
    }
    return -1;
}

int cm_allocate(gen* g, uint32_t forbidden) {
    forbidden |= g->locked;
    int reg = free_register(g, forbidden);
    if (reg < 0) {
        reg = victim(g, forbidden);
        spill(g, reg);
    }
    g->locked |= 1u << reg;
    g->last_use[reg] = ++g->clock;
    return reg;
}

void cm_vacate(gen* g, int reg) {
    if (!g->holders[reg]) return;
    const int other = free_register(g, g->locked | 1u << reg);
    if (other < 0) {
        spill(g, reg);
        return;
    }
    emit_mov(&g->e, WIDE, other, reg);
    for (int i = 0; i < g->tcg->nb_temps && g->holders[reg]; i++) {
        if (g->values[i].reg != reg) continue;
        const struct cm_value was = g->values[i];
        cm_release(g, i);
        hold(g, i, other);
        g->values[i].scale = was.scale;
        g->values[i].displacement = was.displacement;
    }
    for (int i = 0; i < g->nb_groups && g->holders[reg]; i++) {
        if (g->groups[i].reg != reg) continue;
        cm_release_group(g, &g->groups[i]);
        cm_hold_for_group(g, &g->groups[i], other);
    }
}

void cm_load_into(gen* g, int reg, TCGArg arg) {
    const TCGTemp* ts = arg_temp(arg);
    const int temp = cm_index(g, arg);
    const struct cm_value* v = &g->values[temp];
    if (ts->fixed_reg) {
        emit_mov(&g->e, WIDE, reg, ts->reg);
    } else if (v->reg >= 0) {
        if (v->reg != reg) emit_mov(&g->e, is_wide(g, temp), reg, v->reg);
    } else if (v->constant) {
        emit_mov_imm(&g->e, reg, is_wide(g, temp) ? v->number : (int64_t)(uint32_t)v->number);
    } else if (v->in_memory) {
        int base;
        const int32_t at = cm_home(g, temp, &base);
        emit_rm(&g->e, 0x8b, is_wide(g, temp), reg, base, at);
    }
}

int cm_use(gen* g, TCGArg arg) {
    const TCGTemp* ts = arg_temp(arg);
    if (ts->fixed_reg) return ts->reg;
    const int temp = cm_index(g, arg);
    struct cm_value* v = &g->values[temp];
    if (v->reg < 0) {
        const int reg = cm_allocate(g, 0);
        cm_load_into(g, reg, arg);
        if (v->constant) v->zero_extended = !is_wide(g, temp) || (uint64_t)v->number <= UINT32_MAX;
        hold(g, temp, reg);
    }
    g->locked |= 1u << v->reg;
    g->last_use[v->reg] = ++g->clock;
    return v->reg;
}

int cm_take(gen* g, const TCGOp* op, int arg, int size, uint32_t forbidden) {
    const TCGTemp* ts = arg_temp(op->args[arg]);
    const int temp = cm_index(g, op->args[arg]);
    const struct cm_value* v = &g->values[temp];
    if (!ts->fixed_reg && v->reg >= 0 && cm_dies(op, arg) && g->holders[v->reg] == 1 &&
        !(forbidden >> v->reg & 1)) {
        const int reg = v->reg;
        forget(g, temp);
        g->locked |= 1u << reg;
        return reg;
    }
    if (!ts->fixed_reg && v->reg < 0 && !v->constant && cm_used_later(op, arg)) cm_use(g, op->args[arg]);
    const int reg = cm_allocate(g, forbidden);
    if (v->reg >= 0) {
        emit_mov(&g->e, size & WIDE, reg, v->reg);
    } else {
        cm_load_into(g, reg, op->args[arg]);
    }
    return reg;
}

void cm_define(gen* g, const TCGOp* op, int output, int reg, bool zero_extended) {
    const int temp = cm_index(g, op->args[output]);
    forget(g, temp);
    if (cm_dies(op, output)) return;
    g->values[temp].zero_extended = zero_extended;
    hold(g, temp, reg);
}

void cm_define_sum(gen* g, const TCGOp* op, int reg, int scale, int32_t displacement) {
    const int temp = cm_index(g, op->args[0]);
    forget(g, temp);
    g->values[temp].zero_extended = false;
    hold(g, temp, reg);
    g->values[temp].scale = (uint8_t)scale;
    g->values[temp].displacement = displacement;
}

void cm_define_constant(gen* g, const TCGOp* op, int output, int64_t number) {
    const int temp = cm_index(g, op->args[output]);
    forget(g, temp);
    if (cm_dies(op, output)) return;
    struct cm_value* v = &g->values[temp];
    note_change(g, temp);
    v->constant = true;
    v->number = is_wide(g, temp) ? number : (int32_t)number;
    v->zero_extended = (uint64_t)v->number <= UINT32_MAX;
}

void cm_alias(gen* g, const TCGOp* op, bool zero_extended) {
    const TCGTemp* source = arg_temp(op->args[1]);
    if (source->fixed_reg) {
        const int reg = cm_allocate(g, 0);
        emit_mov(&g->e, WIDE, reg, source->reg);
        cm_define(g, op, 0, reg, false);
        return;
    }
    const int from = cm_index(g, op->args[1]), to = cm_index(g, op->args[0]);
    const struct cm_value was = g->values[from];
    if (was.reg < 0 && was.constant) {
        if (cm_dies(op, 1)) forget(g, from);
        cm_define_constant(g, op, 0, was.number);
        return;
    }
    const int reg = cm_use(g, op->args[1]);
    if (cm_dies(op, 1) && from != to) forget(g, from);
    forget(g, to);
    if (cm_dies(op, 0)) return;
    g->values[to].zero_extended = zero_extended;
    hold(g, to, reg);
    if (was.constant) {
        g->values[to].constant = true;
        g->values[to].number = is_wide(g, to) ? was.number : (int32_t)was.number;
    }
}

static bool is_dirty(const struct cm_value* v) { return !v->in_memory && (v->reg >= 0 || v->constant); }

void cm_sync_globals(gen* g) {
    for (uint64_t left = cm_changed_globals(g); left; left &= left - 1) {
        const int i = __builtin_ctzll(left);
        if (is_dirty(&g->values[i])) cm_store_home(g, i);
    }
    g->changed = 0;
}

void cm_sync_all(gen* g) {
    cm_sync_globals(g);
    for (int i = 0; i < g->nb_locals; i++) {
        if (is_dirty(&g->values[g->locals[i]])) cm_store_home(g, g->locals[i]);
    }
}

void cm_forget_registers(gen* g) {
    for (int i = 0; i < g->tcg->nb_temps; i++) {
        struct cm_value* v = &g->values[i];
        v->reg = -1;
        v->scale = 0;
        v->displacement = 0;
        v->constant = v->zero_extended = false;
        v->in_memory = i < g->tcg->nb_globals || g->tcg->temps[i].temp_local;
    }
    release_groups(g, UINT32_MAX);
    memset(g->holders, 0, sizeof g->holders);
}

void cm_spill_for_call(gen* g, bool writes_globals) {
    for (int i = 0; i < g->tcg->nb_temps; i++) {
        struct cm_value* v = &g->values[i];
        if (v->reg >= 0 && (CM_CALL_CLOBBERED >> v->reg & 1)) {
            if (is_dirty(v) && !v->constant) cm_store_home(g, i);
            cm_release(g, i);
        }
        if (writes_globals && i < g->tcg->nb_globals) {
            cm_release(g, i);
            v->constant = v->zero_extended = false;
            v->in_memory = true;
        }
    }
    release_groups(g, CM_CALL_CLOBBERED);
}

#endif
