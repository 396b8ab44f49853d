// SPDX-License-Identifier: GPL-2.0-or-later
#include "coverage.h"

#include "translator.h"
#include "exec/helper-gen.h"

bool cm_coverage_on;

// Written by any engine's thread, bit by bit.
static uint64_t seen[CM_INSTRUCTION_NUMBERS / 64];

void cm_engine_note_instructions(bool on) { __atomic_store_n(&cm_coverage_on, on, __ATOMIC_RELAXED); }

size_t cm_engine_instructions_seen(uint16_t* out) {
    size_t count = 0;
    for (unsigned number = 0; number < CM_INSTRUCTION_NUMBERS; number++) {
        if (__atomic_load_n(&seen[number / 64], __ATOMIC_RELAXED) >> (number % 64) & 1) {
            out[count++] = (uint16_t)number;
        }
    }
    return count;
}

// The opcodes of which ModRM.reg is a part (SDM vol. 2D, table A-6, and the x87 escapes).
static bool is_group(const struct cm_instruction* in) {
    switch (in->map) {
        case CM_MAP_1:
            switch (in->opcode) {
                case 0x80 ... 0x83:
                case 0x8f:
                case 0xc0 ... 0xc1:
                case 0xc6 ... 0xc7:
                case 0xd0 ... 0xd3:
                case 0xd8 ... 0xdf:
                case 0xf6 ... 0xf7:
                case 0xfe ... 0xff:
                    return true;
                default:
                    return false;
            }
        case CM_MAP_0F:
            switch (in->opcode) {
                case 0x00 ... 0x01:
                case 0x18:
                case 0x71 ... 0x73:
                case 0xae:
                case 0xba:
                case 0xc7:
                    return true;
                default:
                    return false;
            }
        default:
            return false;
    }
}

static bool raises_undefined(const TCGOp* mark) {
    for (const TCGOp* op = QTAILQ_NEXT(mark, link); op; op = QTAILQ_NEXT(op, link)) {
        if (op->opc != INDEX_op_call) continue;
        const void* function = (const void*)(uintptr_t)op->args[TCGOP_CALLO(op) + TCGOP_CALLI(op)];
        const TCGOp* number = QTAILQ_PREV(op, link);
        if (function == HELPER(raise_exception) && number->opc == INDEX_op_movi_i32 &&
            number->args[1] == EXCP06_ILLOP) {
            return true;
        }
    }
    return false;
}

void cm_note_instruction(const struct cm_translator* t, const TCGOp* mark) {
    struct cm_instruction in;
    if (cm_decode(t->bytes, t->available, cm_code_size_of(t), &in) != CM_DECODED || raises_undefined(mark))
        return;
    const unsigned reg = is_group(&in) ? in.modrm >> 3 & 7 : 0;
    const unsigned prefix = in.map == CM_MAP_1 ? 0 : in.mandatory;
    const bool is_register = in.has_modrm && !in.is_memory;
    const unsigned number =
        (unsigned)in.map << 14 | (unsigned)in.opcode << 6 | prefix << 4 | reg << 1 | is_register;
    __atomic_fetch_or(&seen[number / 64], UINT64_C(1) << (number % 64), __ATOMIC_RELAXED);
}
