// SPDX-License-Identifier: GPL-2.0-or-later
// What the files of the guest «smc» share.
#ifndef SMC_H
#define SMC_H

#include "guest.h"

#define CODE 0x700000u  // frames for code written by this guest

void own_block(void);  // smc_block.c

#endif
