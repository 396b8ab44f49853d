// SPDX-License-Identifier: GPL-2.0-or-later
// Instructions that fault and are executed again (restart.c).
#ifndef COREMESH_TCG_X86_RESTART_H
#define COREMESH_TCG_X86_RESTART_H

#include "translator.h"

enum { CM_RESTART_ROWS = 5 };
extern const struct cm_row cm_restart_rows[CM_RESTART_ROWS];

// Computes the flags out of their lazy form before the instruction, so that none of it does. To be called
// before anything else is emitted for it.
void cm_compute_flags_before(struct cm_translator* t);

#endif
