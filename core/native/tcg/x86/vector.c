// SPDX-License-Identifier: GPL-2.0-or-later
// Vector instructions whose helpers of the engine are wrong.
#include "translator.h"

#include "segment_limits.h"

// These write a part of the destination before they have read all of the source. When one register is both,
// the source is read from a copy.

#define WRAP_ALIASED(name, reg)                                        \
    void CM_REAL(helper_##name)(CPUX86State * env, reg * d, reg * s);  \
    void CM_WRAP(helper_##name)(CPUX86State * env, reg * d, reg * s) { \
        CM_HIT(helper_##name);                                         \
        reg copy = *s;                                                 \
        CM_REAL(helper_##name)(env, d, d == s ? &copy : s);            \
    }
#define WRAP_BOTH(name)              \
    WRAP_ALIASED(name##_mmx, MMXReg) \
    WRAP_ALIASED(name##_xmm, ZMMReg)

WRAP_BOTH(phaddw)
WRAP_BOTH(phaddd)
WRAP_BOTH(phaddsw)
WRAP_BOTH(phsubw)
WRAP_BOTH(phsubd)
WRAP_BOTH(phsubsw)

// MASKMOVQ and MASKMOVDQU store byte by byte. All bytes are looked at first, those that are not stored too
// (SDM vol. 2B, MASKMOVDQU: which faults these have is the processor's own affair).
static void check_masked(CPUX86State* env, target_ulong address, union cm_operands in) {
    const unsigned size = in.mandatory == CM_WITH_66 ? 16 : 8;
    // The second half is asked for behind the first one's page.
    const unsigned step = env->hflags & HF_CS64_MASK ? size : 8;
    for (unsigned done = 0; done < size; done += step) {
        cm_check_segment(env, in.immediate, address + done, step, true, GETPC());
        cm_check_alignment(env, address + done, 8, GETPC());
        cm_probe_write(env, address + done, step, GETPC());
    }
}

static enum cm_translated masked_move(struct cm_translator* t, const struct cm_instruction* in) {
    struct cm_instruction with_operand = *in;
    with_operand.is_memory = true;
    with_operand.base = R_EDI;
    with_operand.index = CM_NO_REGISTER;
    with_operand.displacement = 0;
    with_operand.operand_segment = in->segment == CM_NO_SEGMENT ? CM_DS : in->segment;
    with_operand.immediate = with_operand.operand_segment;
    cm_emit_execute(t, &with_operand, check_masked, 0);
    return CM_TO_ENGINE;
}

const struct cm_row cm_vector_rows[1] = {
    {CM_MAP_0F, 0xf7, .form = CM_REGISTER, .prefixes = CM_IF_NONE | CM_IF_66, .translate = masked_move},
};
