// SPDX-License-Identifier: GPL-2.0-or-later
// Traps: each core's GDT and TSS, the one IDT, and what happens at a vector.
#include "guest.h"

struct __attribute__((packed)) gate {
    uint16_t offset0, selector;
    uint8_t ist, access;
    uint16_t offset1;
    uint32_t offset2, reserved;
};
struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};

extern char trap_entries[], trap_caught[];
extern const uint64_t boot_gdt[7];
trap_handler* trap_handlers[256];
static struct gate idt[256] __attribute__((aligned(16)));

uint64_t trap_entry(uint8_t vector) { return (uint64_t)trap_entries + 16u * vector; }

void gate_set(uint8_t vector, uint64_t entry, uint16_t selector, uint8_t access, uint8_t ist) {
    idt[vector] = (struct gate){
        .offset0 = (uint16_t)entry,
        .selector = selector,
        .ist = ist,
        .access = access,
        .offset1 = (uint16_t)(entry >> 16),
        .offset2 = (uint32_t)(entry >> 32),
    };
}

void traps_start(struct core* core) {
    uint64_t tss = (uint64_t)&core->tss;
    memset(core->gdt, 0, sizeof core->gdt);
    memcpy(core->gdt, boot_gdt, sizeof boot_gdt);
    // An available 64-bit TSS (type 9), its base in four pieces: SDM 3A, figure 8-4.
    core->gdt[TSS_SELECTOR / 8] =
        (sizeof core->tss - 1) | (tss & 0xffffff) << 16 | 0x89ull << 40 | (tss >> 24 & 0xff) << 56;
    core->gdt[TSS_SELECTOR / 8 + 1] = tss >> 32;
    memset(&core->tss, 0, sizeof core->tss);
    core->tss.io_map = sizeof core->tss;
    core->tss.ist[0] = (uint64_t)core + 0x3000;  // #DF
    core->tss.ist[1] = (uint64_t)core + 0x4000;  // NMI
    core->tss.ist[2] = (uint64_t)core + 0x5000;  // for tests
    core->tss.rsp[0] = (uint64_t)core + 0x6000;
    if (core->index == 0) {
        for (unsigned vector = 0; vector < 256; vector++) {
            bool user = vector == 3 || vector == 4 || vector == 0x80;
            uint8_t ist = vector == 8 ? 1 : vector == 2 ? 2 : 0;
            gate_set((uint8_t)vector, trap_entry((uint8_t)vector), KERNEL_CODE, user ? 0xee : 0x8e, ist);
        }
    }
    struct table_pointer gdtr = {sizeof core->gdt - 1, (uint64_t)core->gdt};
    struct table_pointer idtr = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile(
        "lgdt %0\n lidt %1\n ltr %w2\n"
        "mov %w3, %%ds\n mov %w3, %%es\n mov %w3, %%ss\n xor %%eax, %%eax\n mov %%eax, %%fs\n mov %%eax, "
        "%%gs\n"
        "pushq %4\n leaq 1f(%%rip), %%rax\n pushq %%rax\n lretq\n 1:" ::"m"(gdtr),
        "m"(idtr), "r"(TSS_SELECTOR), "r"(KERNEL_DATA), "i"(KERNEL_CODE)
        : "rax", "memory");
}

static void dump(const struct trap_frame* f, uint64_t cr2) {
    print("UNEXPECTED trap vector=%lu error=%lx core=%u rip=%lx cs=%lx rflags=%lx rsp=%lx ss=%lx cr2=%lx\n",
          f->vector, f->error, this_core()->index, f->rip, f->cs, f->rflags, f->rsp, f->ss, cr2);
    print("  rax=%lx rbx=%lx rcx=%lx rdx=%lx rsi=%lx rdi=%lx rbp=%lx r8=%lx\n", f->rax, f->rbx, f->rcx,
          f->rdx, f->rsi, f->rdi, f->rbp, f->r8);
}

void trap_dispatch(struct trap_frame* frame) {
    uint64_t cr2 = read_cr2();
    struct core* core = this_core();
    if (trap_handlers[frame->vector]) {
        trap_handlers[frame->vector](frame);
        return;
    }
    if (!core->catch_rsp) {
        dump(frame, cr2);
        debug_exit(2);
    }
    core->trap = (struct trap){
        .vector = frame->vector,
        .error = frame->error,
        .rip = frame->rip,
        .cs = frame->cs,
        .rflags = frame->rflags,
        .rsp = frame->rsp,
        .ss = frame->ss,
        .cr2 = cr2,
        .rax = frame->rax,
        .stack = (uint64_t)(frame + 1),
        .handler_flags = read_flags(),
    };
    frame->rax = frame->vector;
    frame->rip = (uint64_t)trap_caught;
    frame->cs = KERNEL_CODE;
    frame->ss = KERNEL_DATA;
    frame->rsp = core->catch_rsp;
    frame->rflags = 2;
}
