// SPDX-License-Identifier: GPL-2.0-or-later
// Which instructions are ours, and why (translator.h says how a row works).
#include "translator.h"

// INT1: #DB as a trap, behind the instruction, that no debug register asked for (SDM vol. 2A, INT n/INTO/
// INT3/INT1). No gate's DPL is looked at.
static enum cm_translated int1(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->prefixes & CM_PREFIX_LOCK) return cm_emit_exception(t, EXCP06_ILLOP);
    const target_ulong pc = t->pc;
    t->pc += in->length;
    cm_emit_exception(t, EXCP01_DB);
    t->pc = pc;
    return CM_TRANSLATED_RAISE;
}

// Without LOCK the engine reads before it writes, and reports a read that faults.
static void check_compared_pair(CPUX86State* env, target_ulong address, union cm_operands in) {
    const unsigned size = in.operand_bytes == 8 ? 16 : 8;
    if (size == 16 && address & 15) raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    cm_probe_write(env, address, size, GETPC());
}

static const struct cm_row encodings[] = {
    {CM_MAP_1, 0xf1, .translate = int1},
    // MOVBE is a move from or to memory; CRC32 has the same opcodes with F2 (SDM vol. 2B, MOVBE).
    {CM_MAP_0F38, 0xf0, 0xf1, .form = CM_REGISTER, .prefixes = CM_IF_NONE | CM_IF_66 | CM_IF_F3,
     .vector = EXCP06_ILLOP},
    {CM_MAP_0F, 0xc7, .groups = 1 << 1, .form = CM_MEMORY, .check = check_compared_pair},  // CMPXCHG8B, 16B
};

#define TABLE(rows) \
    { rows, sizeof(rows) / sizeof *(rows) }

const struct cm_table cm_tables[] = {
    TABLE(encodings),
    TABLE(cm_integer_rows),
    TABLE(cm_vector_rows),
};
const size_t cm_table_count = sizeof cm_tables / sizeof *cm_tables;
