// SPDX-License-Identifier: GPL-2.0-or-later
// Which instructions have been translated in this process: for tests that say how much of the processor they
// reached. Off, it costs one test for each instruction that is translated.
#ifndef COREMESH_TCG_X86_COVERAGE_H
#define COREMESH_TCG_X86_COVERAGE_H

#include <stdbool.h>

// An instruction's number: map (2 bits), opcode (8), mandatory prefix (2, enum cm_mandatory), ModRM.reg where
// it is part of the opcode (3), and whether the operand is a register (1).
enum { CM_INSTRUCTION_NUMBERS = 1 << 16 };

extern bool cm_coverage_on;

struct cm_translator;
struct TCGOp;
// The engine's thread: the instruction of `t` was translated to the ops behind `mark`.
void cm_note_instruction(const struct cm_translator* t, const struct TCGOp* mark);

#endif
