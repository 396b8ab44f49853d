// SPDX-License-Identifier: GPL-2.0-or-later
// Which instructions are ours (translator.h says how a row works): the list of tables, and the rows that have
// no file of their own.
#include "encodings.h"

// Without LOCK the engine reads before it writes, and reports a read that faults.
static void check_compared_pair(CPUX86State* env, target_ulong address, union cm_operands in) {
    const unsigned size = in.operand_bytes == 8 ? 16 : 8;
    if (size == 16 && address & 15) raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    cm_probe_write(env, address, size, GETPC());
}

static const struct cm_row rows[] = {
    {CM_MAP_0F, 0xc7, .groups = 1 << 1, .form = CM_MEMORY, .check = check_compared_pair},  // CMPXCHG8B, 16B
};

#define TABLE(rows) \
    { rows, sizeof(rows) / sizeof *(rows) }

const struct cm_table cm_tables[] = {
    TABLE(cm_encoding_rows),
    TABLE(rows),
    TABLE(cm_integer_rows),
    TABLE(cm_vector_rows),
};
const size_t cm_table_count = sizeof cm_tables / sizeof *cm_tables;
