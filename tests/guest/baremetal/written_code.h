// SPDX-License-Identifier: GPL-2.0-or-later
// A function that a guest writes into memory, and runs.
#ifndef WRITTEN_CODE_H
#define WRITTEN_CODE_H

#include "guest.h"

typedef uint32_t function(void);

// mov eax, value; ret
static void write_function(uint64_t at, uint32_t value) {
    uint8_t code[6] = {
        0xb8, (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24), 0xc3};
    for (unsigned i = 0; i < 6; i++) ((volatile uint8_t*)at)[i] = code[i];
}

static uint32_t run(uint64_t at) {
    __asm__ volatile("" ::: "memory");
    return ((function*)at)();
}

#endif
