// SPDX-License-Identifier: GPL-2.0-or-later
// Every replacement of an engine function goes through the linker's --wrap, which catches nothing, silently,
// when the library does not call the symbol across translation units. So each wrap records that it ran:
// tests read the set with cm_engine_wrap_hits() and fail for a wrap that was never reached.
#ifndef COREMESH_TCG_WRAPS_H
#define COREMESH_TCG_WRAPS_H

#include <stddef.h>

struct cm_wrap_hit {
    const char* name;
    unsigned char hit;
};

// The loads stay in a shared cache line; only the first run of each wrap writes.
#define CM_HIT(symbol)                                                                                   \
    do {                                                                                                 \
        static struct cm_wrap_hit cm_hit_ __attribute__((section("cm_wrap_hits"), used)) = {#symbol, 0}; \
        if (__builtin_expect(!cm_hit_.hit, 0)) cm_hit_.hit = 1;                                          \
    } while (0)

extern struct cm_wrap_hit __start_cm_wrap_hits[] __attribute__((visibility("hidden")));
extern struct cm_wrap_hit __stop_cm_wrap_hits[] __attribute__((visibility("hidden")));

#endif
