// SPDX-License-Identifier: GPL-2.0-or-later
// The segment selectors and bases as they are now: read alike on the bare processor and in the guest.
#ifndef COREMESH_DIFFERENTIAL_SEGMENT_READS_H
#define COREMESH_DIFFERENTIAL_SEGMENT_READS_H

#include <stdint.h>

static uint64_t read_fs(void) {
    uint64_t base;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    return base;
}
static uint64_t read_gs(void) {
    uint64_t base;
    __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}
#define SELECTOR(name)                                             \
    static uint16_t read_##name##_selector(void) {                 \
        uint16_t selector;                                         \
        __asm__ volatile("mov %%" #name ", %w0" : "=r"(selector)); \
        return selector;                                           \
    }
SELECTOR(ds)
SELECTOR(es)
SELECTOR(fs)
SELECTOR(gs)

#undef SELECTOR
#endif
