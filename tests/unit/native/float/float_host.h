// SPDX-License-Identifier: GPL-2.0-or-later
// Rows of cases and what the bare host makes of them: the reference that the engine and the guest are held
// to.
#ifndef COREMESH_TESTS_FLOAT_HOST_H
#define COREMESH_TESTS_FLOAT_HOST_H

#include <stddef.h>

#include "float_blocks.h"

enum { XM = 19 };  // the vector of a SIMD floating-point exception

extern const Block float_blocks[];
extern const size_t float_block_count;

void float_seed(uint64_t seed);

// Fills the inputs of `count` rows for a block, and clears the rest.
void float_fill_rows(const Block* block, Row* rows, long count);

// Runs the block here. Unmasked exceptions arrive as SIGFPE, are noted in the row, and the instruction is
// skipped.
void float_run_on_host(const Block* block, Row* rows, long count);

#endif
