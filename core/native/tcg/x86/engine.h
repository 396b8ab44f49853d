// SPDX-License-Identifier: GPL-2.0-or-later
// What the engine of an x86 core asks of that core, and what it offers beside ../engine.h.
#ifndef COREMESH_TCG_X86_ENGINE_H
#define COREMESH_TCG_X86_ENGINE_H

#include "tcg/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

// The platform behind the instructions. On the vCPU's thread; `core` is the first argument of each.
struct cm_x86_core_ops {
    // True when a non-maskable interrupt waits; taking it clears it.
    bool (*take_nmi)(void* core);
    // Vector of the interrupt to deliver now, acknowledged, or -1. Called only if the guest can take one.
    int (*take_interrupt)(void* core);
    uint32_t (*port_read)(void* core, uint32_t port, unsigned size);
    void (*port_write)(void* core, uint32_t port, unsigned size, uint32_t value);
    // 1: handled, 0: not an MSR of the platform (the engine's own list follows), -1: #GP(0).
    int (*read_msr)(void* core, uint32_t msr, uint64_t* value);
    int (*write_msr)(void* core, uint32_t msr, uint64_t value);
    uint64_t (*read_cr8)(void* core);
    void (*write_cr8)(void* core, uint64_t value);
    uint64_t (*read_tsc)(void* core);
    bool (*cpuid)(void* core, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
};

// A segment register as the descriptor cache holds it (SDM vol. 3A 3.4.3). `access` is the descriptor's
// access byte (bits 0-7) with AVL, L, D/B, G in bits 8-11; `limit` is in bytes.
struct cm_segment {
    uint32_t selector;
    uint32_t access;
    uint64_t base;
    uint32_t limit;
};

// The architectural state that a person or a loader sees.
struct cm_registers {
    uint64_t gpr[16];  // rax rcx rdx rbx rsp rbp rsi rdi r8..r15, the order of their encodings
    uint64_t rip, rflags, cr0, cr2, cr3, cr4, efer;
    struct cm_segment es, cs, ss, ds, fs, gs, ldtr, tr;
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
};

void cm_engine_reset(cm_engine*);                 // power-on (SDM vol. 3A 10.1.1)
void cm_engine_init(cm_engine*);                  // INIT: the same, but x87, MMX and SSE state stay
void cm_engine_sipi(cm_engine*, uint8_t vector);  // start-up IPI: real mode at vector << 12
void cm_engine_get_registers(cm_engine*, struct cm_registers*);
void cm_engine_set_registers(cm_engine*, const struct cm_registers*);
bool cm_engine_interrupts_enabled(const cm_engine*);  // RFLAGS.IF, outside an interrupt shadow
bool cm_engine_nmi_blocked(const cm_engine*);

// Which instructions were translated in this process, for tests (coverage.h has their numbers). Any thread.
// What was noted stays; from now on, or no longer, more is noted.
void cm_engine_note_instructions(bool on);
// Fills `out`, of CM_INSTRUCTION_NUMBERS, with the numbers that were translated to something else than #UD,
// and returns how many there are. Any thread.
size_t cm_engine_instructions_seen(uint16_t* out);

#define CM_X86_FUNCTIONS(X) \
    X(reset)                \
    X(init)                 \
    X(sipi)                 \
    X(get_registers)        \
    X(set_registers)        \
    X(interrupts_enabled)   \
    X(nmi_blocked)          \
    X(note_instructions)    \
    X(instructions_seen)

struct cm_x86_functions {
    CM_X86_FUNCTIONS(CM_ENGINE_FUNCTION)
};

// What this target has beside ../engine.h, and that file's functions of it.
extern const struct cm_x86_functions cm_x86_functions_x86_64;
extern const struct cm_engine_functions cm_engine_functions_x86_64;

#ifdef __cplusplus
}
#endif

#endif
