// SPDX-License-Identifier: GPL-2.0-or-later
// The debug registers DR0 to DR7 (SDM vol. 3B 18.2).
#ifndef DEBUG_REGISTERS_H
#define DEBUG_REGISTERS_H

#include "guest.h"

#define read_dr(number)                                             \
    ({                                                              \
        uint64_t value_;                                            \
        __asm__ volatile("mov %%db" #number ", %0" : "=r"(value_)); \
        value_;                                                     \
    })
#define write_dr(number, value) __asm__ volatile("mov %0, %%db" #number ::"r"((uint64_t)(value)) : "memory")

#endif
