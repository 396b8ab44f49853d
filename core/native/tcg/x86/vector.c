// SPDX-License-Identifier: GPL-2.0-or-later
// Vector instructions whose helper of the engine writes a part of its destination before it has read all of
// its source. When one register is both, the source is read from a copy.
#include "../internals.h"

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
