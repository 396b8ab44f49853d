// SPDX-License-Identifier: GPL-2.0-or-later
// Runs blocks in ring 3 of a guest. The batch lies in RAM, where the test reads and writes it; each block
// ends in an exception, whose handler notes the frame and writes the next block's state over it.
#include "guest.h"

#include "block.h"
#include "segment_reads.h"

// Where the test keeps the batch, and the pages behind the data of the block's world: block_runners.py.
#define BATCH 0x2000000ul
#define DATA_PHYSICAL 0x1800000ul
// With the word `other`: at home on the other one of two hosts, whose core reads and restores the data after
// each block. So every block finds its data elsewhere.
#define DATA_ELSEWHERE 0x6000000ul

#define CR0_AM (1ul << 18)
#define CR4_FSGSBASE (1ul << 16)
#define START 0x81
#define VECTOR_SYSCALL 0x100

static struct batch* const batch = (struct batch*)BATCH;
static uint32_t current, running;
static uint64_t* data;
static struct trap_frame home;
static uint8_t float_state[512] __attribute__((aligned(16)));

static bool elsewhere;
static uint32_t asked, answered;
static struct outcome changes;

static void note_on_other_core(uint32_t core) {
    if (core == 0) return;
    for (uint32_t served = 0;;) {
        while (__atomic_load_n(&asked, __ATOMIC_ACQUIRE) == served) pause();
        note_changes(data, (const uint64_t*)batch->image, &changes);
        __atomic_store_n(&answered, ++served, __ATOMIC_RELEASE);
    }
}

static void note_elsewhere(struct outcome* out) {
    const uint32_t number = __atomic_add_fetch(&asked, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&answered, __ATOMIC_ACQUIRE) != number) pause();
    out->changes = changes.changes;
    out->changes_hash = changes.changes_hash;
    const uint32_t listed = changes.changes < MAX_CHANGES ? changes.changes : MAX_CHANGES;
    memcpy(out->change, changes.change, listed * sizeof *out->change);
}

static uint64_t* gpr_of(struct trap_frame* frame, unsigned number) {
    uint64_t* const places[16] = {&frame->rax, &frame->rcx, &frame->rdx, &frame->rbx,
                                  &frame->rsp, &frame->rbp, &frame->rsi, &frame->rdi,
                                  &frame->r8,  &frame->r9,  &frame->r10, &frame->r11,
                                  &frame->r12, &frame->r13, &frame->r14, &frame->r15};
    return places[number];
}

static void load(struct trap_frame* frame) {
    const struct block* block = &batch->block[current];
    memset(&batch->outcome[current], 0, sizeof batch->outcome[current]);
    for (unsigned number = 0; number < 16; number++) *gpr_of(frame, number) = block->gpr[number];
    frame->rip = block->rip;
    frame->rflags = block->rflags;
    frame->cs = block->cs;
    frame->ss = SELECTOR_DATA;
    memcpy(float_state, block->fxsave, sizeof block->fxsave);
    __asm__ volatile("fxrstor64 %0" ::"m"(float_state));
    uint32_t segment = block->cs == SELECTOR_CODE32 ? SELECTOR_DATA : 0;
    __asm__ volatile("mov %w0, %%ds\n\tmov %w0, %%es\n\tmov %w1, %%fs\n\tmov %w1, %%gs" ::"r"(segment),
                     "r"(0));
    __asm__ volatile("wrfsbase %0" ::"r"(block->fs_base));
    __asm__ volatile("wrgsbase %0" ::"r"(block->gs_base));
}

static void on_trap(struct trap_frame* frame) {
    uint64_t cr2 = read_cr2();
    if ((frame->cs & 3) == 0) {
        print("FAIL vector %lu in the kernel at %lx, block %u\n", frame->vector, frame->rip, current);
        debug_exit(2);
    }
    struct outcome* out = &batch->outcome[current];
    for (unsigned number = 0; number < 16; number++) out->gpr[number] = *gpr_of(frame, number);
    out->rip = frame->rip;
    out->rflags = frame->rflags;
    out->vector = frame->vector;
    out->error = frame->error;
    if (out->vector == 1 && note_step(out, out->gpr, out->rip, out->rflags)) return;
    out->cr2 = cr2;
    out->cs = frame->cs;
    out->ss = frame->ss;
    out->ds = read_ds_selector(), out->es = read_es_selector();
    out->fs = read_fs_selector(), out->gs = read_gs_selector();
    out->fs_base = read_fs(), out->gs_base = read_gs();
    __asm__ volatile("fxsave64 %0" : "=m"(float_state));
    memcpy(out->fxsave, float_state, sizeof out->fxsave);
    if (elsewhere)
        note_elsewhere(out);
    else
        note_changes(data, (const uint64_t*)batch->image, out);
    batch->done = ++current;
    if (current < batch->count) {
        load(frame);
        return;
    }
    *frame = home;
    running = 0;
}

static void on_start(struct trap_frame* frame) {
    home = *frame;
    running = 1;
    load(frame);
}

static uint64_t segment(uint64_t type_and_flags) { return 0x000f00000000fffful | type_and_flags << 40; }

// The selectors of 64-bit Linux, in the order that its programs see (arch/x86/include/asm/segment.h).
static void linux_segments(void) {
    uint64_t* gdt = this_core()->gdt;
    gdt[3] = segment(0xc093);  // kernel data
    gdt[SELECTOR_CODE32 >> 3] = segment(0xc0fb);
    gdt[SELECTOR_DATA >> 3] = segment(0xc0f3);
    gdt[SELECTOR_CODE64 >> 3] = segment(0xa0fb);
}

static void map_world(uint64_t alias) {
    for (unsigned page = 0; page < CODE_PAGES; page++) {
        if (page % CODE_GAP == CODE_GAP - 1) continue;
        page_map(alias + CODE_BASE + page * 4096, (uint64_t)&batch->code[page * 4096],
                 PAGE_PRESENT | PAGE_USER);
    }
    for (unsigned page = 0; page < DATA_PAGES; page++) {
        if (!(DATA_READABLE >> page & 1)) continue;
        uint64_t writable = DATA_WRITABLE >> page & 1 ? PAGE_WRITE : 0;
        page_map(alias + DATA_BASE + page * 4096, (uint64_t)data + page * 4096,
                 PAGE_PRESENT | PAGE_USER | PAGE_NX | writable);
    }
}

void guest_main(void) {
    write_cr0(read_cr0() | CR0_AM);
    write_cr4(read_cr4() | CR4_FSGSBASE);
    linux_segments();
    // As Linux has it; after a reset the LDT is what lies at address 0 (SDM vol. 3A, table 10-1).
    __asm__ volatile("lldt %w0" ::"r"(0));
    elsewhere = option("other");
    if (elsewhere) {
        cores_start();
        cores_post(note_on_other_core, 2);
    }
    for (unsigned vector = 0; vector < 32; vector++) trap_handlers[vector] = on_trap;
    trap_handlers[START] = on_start;
    data = (uint64_t*)(elsewhere ? DATA_ELSEWHERE : DATA_PHYSICAL);
    // Nothing is mapped between RAM and the devices, as in a process; what a block's wild address finds.
    for (uint64_t large = 0x8000000; large < 0xc0000000; large += 0x200000) page_clear_large(large);
    map_world(0);
    map_world(ALIAS);
    print("ready\n");
    for (uint32_t served = 0;;) {
        while (__atomic_load_n(&batch->go, __ATOMIC_ACQUIRE) == served) pause();
        served = batch->go;
        memcpy(data, batch->image, sizeof batch->image);
        current = 0;
        __asm__ volatile("int %0" ::"i"(START) : "memory");
        __atomic_store_n(&batch->served, served, __ATOMIC_RELEASE);
    }
}
