// SPDX-License-Identifier: GPL-2.0-or-later
// How a part of the machine lists its state: words by name, so that a reader needs neither the part's layout
// nor its version of the code. C and C++.
#ifndef COREMESH_BASE_STATE_ENTRY_H
#define COREMESH_BASE_STATE_ENTRY_H

#include <stdint.h>

// `count` words of 64 bits under one name, of which the low `bits` may be set. count 0: one word, which a
// person sees as a number and not as a list.
struct cm_state_entry {
    const char* name;
    uint16_t count;
    uint8_t bits;
};

static inline unsigned cm_state_words(const struct cm_state_entry* entry) {
    return entry->count ? entry->count : 1;
}

static inline int cm_state_fits(const struct cm_state_entry* entry, uint64_t word) {
    return entry->bits >= 64 || word >> entry->bits == 0;
}

#endif
