// SPDX-License-Identifier: GPL-2.0-or-later
// Calls of the engine's helper functions from generated code (System V ABI for AMD64, 3.2).
#include "codegen.h"

#ifdef __x86_64__

static const int8_t argument_registers[6] = {RDI, RSI, RDX, RCX, R8, R9};

struct argument {
    bool pending, in_register, constant, wide;
    int8_t from;
    int8_t base;
    int32_t at;
    int64_t number;
};

static struct argument place_of(gen* g, TCGArg arg) {
    const TCGTemp* ts = arg_temp(arg);
    struct argument a = {.pending = true, .wide = ts->type != TCG_TYPE_I32};
    const struct cm_value* v = cm_value(g, arg);
    if (ts->fixed_reg || v->reg >= 0) {
        a.in_register = true;
        a.from = ts->fixed_reg ? (int8_t)ts->reg : v->reg;
    } else if (v->constant) {
        a.constant = true;
        a.number = a.wide ? v->number : (int64_t)(uint32_t)v->number;
    } else {
        int base;
        a.at = cm_home(g, cm_index(g, arg), &base);
        a.base = (int8_t)base;
    }
    return a;
}

static bool is_source(const struct argument* arguments, int count, int reg) {
    for (int i = 0; i < count; i++) {
        if (arguments[i].pending && arguments[i].in_register && arguments[i].from == reg &&
            argument_registers[i] != reg) {
            return true;
        }
    }
    return false;
}

// All register moves at once: what is still a source is not overwritten; circles are turned by exchanges.
static void move_registers(gen* g, struct argument* arguments, int count) {
    for (;;) {
        bool progress = false;
        int left = -1;
        for (int i = 0; i < count; i++) {
            struct argument* a = &arguments[i];
            if (!a->pending || !a->in_register) continue;
            if (a->from != argument_registers[i]) {
                if (is_source(arguments, count, argument_registers[i])) {
                    left = i;
                    continue;
                }
                emit_mov(&g->e, WIDE, argument_registers[i], a->from);
            }
            a->pending = false;
            progress = true;
        }
        if (left < 0) return;
        if (progress) continue;
        const int to = argument_registers[left], from = arguments[left].from;
        emit_rr(&g->e, 0x87, WIDE, to, from);
        arguments[left].pending = false;
        for (int i = 0; i < count; i++) {
            if (!arguments[i].pending || !arguments[i].in_register) continue;
            if (arguments[i].from == to) {
                arguments[i].from = (int8_t)from;
            } else if (arguments[i].from == from) {
                arguments[i].from = (int8_t)to;
            }
        }
    }
}

void cm_generate_call(gen* g, TCGOp* op) {
    const int outputs = TCGOP_CALLO(op), inputs = TCGOP_CALLI(op);
    const void* function = (const void*)(uintptr_t)op->args[outputs + inputs];
    const unsigned flags = (unsigned)op->args[outputs + inputs + 1];
    if (!(flags & TCG_CALL_NO_READ_GLOBALS)) cm_sync_globals(g);
    struct argument arguments[6] = {0};
    for (int i = 0; i < inputs; i++) {
        const TCGArg arg = op->args[outputs + i];
        if (arg != TCG_CALL_DUMMY_ARG) arguments[i] = place_of(g, arg);
    }
    cm_release_dead_inputs(g, op, outputs, inputs);
    cm_spill_for_call(g, !(flags & (TCG_CALL_NO_WRITE_GLOBALS | TCG_CALL_NO_READ_GLOBALS)));
    move_registers(g, arguments, inputs);
    for (int i = 0; i < inputs; i++) {
        const struct argument* a = &arguments[i];
        if (!a->pending) continue;
        if (a->constant) {
            emit_mov_imm(&g->e, argument_registers[i], a->number);
        } else {
            emit_rm(&g->e, 0x8b, a->wide, argument_registers[i], a->base, a->at);
        }
    }
    emit_call(&g->e, function);
    if (outputs) cm_define(g, op, 0, RAX, false);
}

#endif
