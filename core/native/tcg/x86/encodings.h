// SPDX-License-Identifier: GPL-2.0-or-later
// Encodings that the processor refuses, or reads in another way than the engine (encodings.c).
#ifndef COREMESH_TCG_X86_ENCODINGS_H
#define COREMESH_TCG_X86_ENCODINGS_H

#include "translator.h"

enum { CM_ENCODING_ROWS = 37 };
extern const struct cm_row cm_encoding_rows[CM_ENCODING_ROWS];

// Whether the prefixes alone make it #UD: LOCK before what it cannot lock.
bool cm_is_refused(const struct cm_instruction* in);
// Of prefixes that exclude each other, lets the engine see the one that counts.
void cm_respell_prefixes(struct cm_translator* t, const struct cm_instruction* in);

#endif
