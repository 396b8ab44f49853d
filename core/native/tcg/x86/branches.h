// SPDX-License-Identifier: GPL-2.0-or-later
// Near branches to addresses that are not canonical (branches.c).
#ifndef COREMESH_TCG_X86_BRANCHES_H
#define COREMESH_TCG_X86_BRANCHES_H

#include "translator.h"

enum { CM_BRANCH_ROWS = 2 };
extern const struct cm_row cm_branch_rows[CM_BRANCH_ROWS];

#endif
