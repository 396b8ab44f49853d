// SPDX-License-Identifier: GPL-2.0-or-later
// A data breakpoint that was hit, on its way to #DB. All on the engine's thread.
#ifndef COREMESH_TCG_X86_WATCHPOINTS_H
#define COREMESH_TCG_X86_WATCHPOINTS_H

#include <stdbool.h>

struct cm_engine;

// In the main loop, at an instruction boundary, when engine->target.data_trap is set: raises #DB with DR6
// set, and returns only if the breakpoint is gone.
void cm_data_trap_raise(struct cm_engine* engine);

// An exception is about to be delivered: the hit of its own instruction is in DR6 (single step), or the
// instruction has not completed.
void cm_data_trap_forget(struct cm_engine* engine);

// Whether the next instruction stands in the shadow of MOV SS or POP SS, not of STI (debug_registers.c).
bool cm_is_behind_stack_load(const struct cm_engine* engine);

#endif
