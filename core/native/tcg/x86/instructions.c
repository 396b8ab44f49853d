// SPDX-License-Identifier: GPL-2.0-or-later
// Which instructions are ours (translator.h says how a row works): the list of tables, and the rows that have
// no file of their own.
#include "branches.h"
#include "encodings.h"
#include "restart.h"

// Without LOCK the engine reads before it writes, and reports a read that faults.
static void check_compared_pair(CPUX86State* env, target_ulong address, union cm_operands in) {
    const unsigned size = in.operand_bytes == 8 ? 16 : 8;
    if (size == 16 && address & 15) raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    cm_check_alignment(env, address, 8, GETPC());
    cm_probe_write(env, address, size, GETPC());
}

// WRFSBASE and WRGSBASE of 64 bits (SDM vol. 2D, WRFSBASE/WRGSBASE). Without CR4.FSGSBASE it is the engine's
// #UD.
static void check_base(CPUX86State* env, target_ulong address, union cm_operands in) {
    (void)address;
    if (in.operand_bytes == 8 && (env->cr[4] & CR4_FSGSBASE_MASK) && !cm_is_canonical(env->regs[in.rm])) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
}

static const struct cm_row rows[] = {
    {CM_MAP_0F, 0xae, .groups = 1 << 2 | 1 << 3, .form = CM_REGISTER, .modes = CM_IN_64, .prefixes = CM_IF_F3,
     .check = check_base},
    {CM_MAP_0F, 0xc7, .groups = 1 << 1, .form = CM_MEMORY, .check = check_compared_pair},  // CMPXCHG8B, 16B
};

#if defined(__x86_64__)
// The host's own x87 (x87.h).
static const struct cm_row floating_point[] = {
    {CM_MAP_1, 0xd8, 0xdf, .translate = cm_translate_x87},
    {CM_MAP_0F, 0xae, .groups = 1 << 0 | 1 << 1, .form = CM_MEMORY, .translate = cm_translate_fxsave},
    // MMX (SDM vol. 2D, table A-3), and what converts from and to its registers.
    {CM_MAP_0F, 0x2a, .prefixes = CM_IF_NONE | CM_IF_66, .translate = cm_translate_mmx},
    {CM_MAP_0F, 0x2c, 0x2d, .prefixes = CM_IF_NONE | CM_IF_66, .translate = cm_translate_mmx},
    {CM_MAP_0F, 0x60, 0x7f, .prefixes = CM_IF_NONE, .translate = cm_translate_mmx},
    {CM_MAP_0F, 0xc4, 0xc5, .prefixes = CM_IF_NONE, .translate = cm_translate_mmx},
    {CM_MAP_0F, 0xd0, 0xff, .prefixes = CM_IF_NONE, .translate = cm_translate_mmx},
    {CM_MAP_0F, 0xd6, .prefixes = CM_IF_F2 | CM_IF_F3, .translate = cm_translate_mmx},
    {CM_MAP_0F38, 0x00, 0x1e, .prefixes = CM_IF_NONE, .translate = cm_translate_mmx},
    {CM_MAP_0F3A, 0x0f, .prefixes = CM_IF_NONE, .translate = cm_translate_mmx},
};
#endif

#define TABLE(rows) \
    { rows, sizeof(rows) / sizeof *(rows) }

const struct cm_table cm_tables[] = {
    TABLE(cm_encoding_rows), TABLE(cm_restart_rows), TABLE(cm_branch_rows), TABLE(rows),
    TABLE(cm_integer_rows),  TABLE(cm_vector_rows),
#if defined(__x86_64__)
    TABLE(floating_point),
#endif
};
const size_t cm_table_count = sizeof cm_tables / sizeof *cm_tables;
