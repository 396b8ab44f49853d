// SPDX-License-Identifier: GPL-2.0-or-later
// All cores access one register for a while: how many accesses they make, and the least and most of one core.
//
// Options: post, ioapic, doorbell or disk, which is accessed; ms=N for how long (default 1000).
#include "guest.h"

#define BATCH 16u
#define VIRTIO 0x1af4u
#define NOTIFY_CFG 2u

static uint64_t begin, end;
static volatile uint64_t done[MAX_CORES];
static volatile uint32_t* bell;

static uint32_t config(uint32_t slot, uint32_t at) {
    out32(0xcf8, 0x80000000u | slot << 11 | (at & ~3u));
    return in32(0xcfc) >> 8 * (at & 3);
}

// Virtio 1.2, 4.1.4: where the first virtio device has its first queue's notifications.
static volatile uint32_t* find_bell(void) {
    for (uint32_t slot = 0; slot < 32; slot++) {
        if ((config(slot, 0) & 0xffff) != VIRTIO) continue;
        for (uint32_t at = config(slot, 0x34) & 0xff; at; at = config(slot, at + 1) & 0xff) {
            if ((config(slot, at) & 0xff) != 9 || (config(slot, at + 3) & 0xff) != NOTIFY_CFG) continue;
            uint32_t bar = config(slot, at + 4) & 0xff, offset = config(slot, at + 8);
            return (volatile uint32_t*)(uint64_t)((config(slot, 0x10 + 4 * bar) & ~15u) + offset);
        }
    }
    return 0;
}

static void post(void) { out8(0x80, 1); }
static void ioapic(void) { (void)*(volatile uint32_t*)0xfec00010; }
static void doorbell(void) { *(volatile uint16_t*)bell = 0; }
static void disk(void) { (void)in8(0x3f6); }  // alternate status: reading it ends no interrupt

static void (*load)(void);

static void work(uint32_t core) {
    uint64_t count = 0;
    while (read_tsc() < begin) pause();
    while (read_tsc() < end) {
        for (unsigned i = 0; i < BATCH; i++) load();
        count += BATCH;
    }
    done[core] = count;
}

void guest_main(void) {
    cores_start();
    load = option("ioapic") ? ioapic : option("doorbell") ? doorbell : option("disk") ? disk : post;
    if (load == doorbell && !check((bell = find_bell()) != 0, "no virtio device")) finish();
    uint64_t ms = option_number("ms", 1000), each = tsc_hz() / 1000;
    load();
    begin = read_tsc() + 20 * each + cores_running * each;  // all are there by then
    end = begin + ms * each;
    cores_run(work, cores_running);
    uint64_t sum = 0, least = ~0ull, most = 0;
    for (uint32_t core = 0; core < cores_running; core++) {
        sum += done[core];
        if (done[core] < least) least = done[core];
        if (done[core] > most) most = done[core];
    }
    print("cores=%u a_second=%lu least=%lu most=%lu\n", cores_running, sum * 1000 / ms, least, most);
    finish();
}
