// SPDX-License-Identifier: GPL-2.0-or-later
// A triple fault: an exception with no IDT to deliver it, on the first core or (option "other") on another.
#include "guest.h"

static void fall(uint32_t core) {
    if (option("other") && core != 1) return;
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } none = {0, 0};
    __asm__ volatile("lidt %0; ud2" ::"m"(none));
}

void guest_main(void) {
    print("triple fault next\n");
    if (!option("other")) fall(0);
    cores_start();
    cores_run(fall, cores_running);
    check(false, "a triple fault went by");
    finish();
}
