// SPDX-License-Identifier: GPL-2.0-or-later
// What an instruction asks of its memory accesses beyond their size (accesses.c).
#ifndef COREMESH_TCG_X86_ACCESSES_H
#define COREMESH_TCG_X86_ACCESSES_H

#include "translator.h"

// Marks the accesses among the ops behind `mark`, which the engine has just emitted for the instruction at
// t->pc.
void cm_mark_accesses(struct cm_translator* t, TCGOp* mark);

#endif
