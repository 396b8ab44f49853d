// SPDX-License-Identifier: GPL-2.0-or-later
// Limits, types and presence of segments outside 64-bit code (segment_limits.c, code_limit.c).
#ifndef COREMESH_TCG_X86_SEGMENT_LIMITS_H
#define COREMESH_TCG_X86_SEGMENT_LIMITS_H

#include "translator.h"

// Emits checks before the accesses among the ops of the instruction at t->pc, which are those behind
// t->before. Of code that is not 64-bit.
void cm_emit_segment_checks(struct cm_translator* t);

// The limit of CS (code_limit.c): whether an instruction at t->pc may be refused for it; emits what asks, in
// front of the instruction's ops.
bool cm_may_leave_code(const struct cm_translator* t);
void cm_emit_code_checks(struct cm_translator* t, const struct cm_instruction* in);

// #GP(0) when the byte lies in another page than its instruction and beyond the limit: that page is not
// looked at.
void cm_require_code_byte(const struct cm_translator* t, target_ulong at);

// #GP(0), or #SS(0) for SS, unless `size` bytes at a linear address of the segment may be accessed now.
void cm_check_segment(CPUX86State* env, int segment, target_ulong linear, unsigned size, bool write,
                      uintptr_t ra);

#endif
