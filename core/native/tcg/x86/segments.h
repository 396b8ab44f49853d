// SPDX-License-Identifier: GPL-2.0-or-later
// Descriptors, stacks and their faults: what far transfers, returns, task switches and the delivery of events
// share (SDM vol. 3A chapters 3, 5, 6, 8).
//
// Each memory access is made with the privilege that the manual gives it: descriptor tables and the TSS are
// read as the system (vol. 3A 4.6.1), a stack as the ring that it belongs to. Registers change only after the
// last access that may fault.
#ifndef COREMESH_TCG_X86_SEGMENTS_H
#define COREMESH_TCG_X86_SEGMENTS_H

#include "../internals.h"

// The access rights of a descriptor cache as struct cm_segment has them, and back.
static inline uint32_t cm_segment_access(const SegmentCache* cache) {
    return (cache->flags >> 8 & 0xff) | (cache->flags >> 12 & 0xf00);
}
static inline uint32_t cm_segment_flags(uint32_t access) {
    return (access & 0xff) << 8 | (access & 0xf00) << 12;
}
#include "platform.h"

// What is under way, for its faults.
struct cm_transfer {
    CPUX86State* env;
    uintptr_t ra;  // in the block that asks, whose instruction is undone; 0: the state is complete
    uint32_t ext;  // 1: the delivery of an event that the program did not ask for (SDM vol. 3A 6.13)
};

struct cm_descriptor {
    uint32_t low, high;    // SDM vol. 3A figure 3-8
    uint32_t upper;        // bits 32-63 of a 16-byte descriptor's base or offset; else 0
    target_ulong address;  // linear
};

// Types of system descriptors (SDM vol. 3A table 3-2).
enum {
    CM_TSS16 = 1,
    CM_LDT = 2,
    CM_TSS16_BUSY = 3,
    CM_CALL_GATE16 = 4,
    CM_TASK_GATE = 5,
    CM_INTERRUPT_GATE16 = 6,
    CM_TRAP_GATE16 = 7,
    CM_TSS32 = 9,  // a 64-bit one in IA-32e mode
    CM_TSS32_BUSY = 11,
    CM_CALL_GATE32 = 12,
    CM_INTERRUPT_GATE32 = 14,
    CM_TRAP_GATE32 = 15,
};

static inline bool cm_is_null(uint32_t selector) { return (selector & 0xfffc) == 0; }
static inline unsigned cm_rpl(uint32_t selector) { return selector & 3; }
static inline unsigned cm_cpl(const CPUX86State* env) { return env->hflags & HF_CPL_MASK; }
static inline bool cm_long_mode(const CPUX86State* env) { return (env->hflags & HF_LMA_MASK) != 0; }

static inline unsigned cm_dpl(const struct cm_descriptor* d) { return d->high >> DESC_DPL_SHIFT & 3; }
static inline unsigned cm_system_type(const struct cm_descriptor* d) {
    return d->high >> DESC_TYPE_SHIFT & 0xf;
}
static inline bool cm_is_system(const struct cm_descriptor* d) { return !(d->high & DESC_S_MASK); }
static inline bool cm_is_code(const struct cm_descriptor* d) {
    return (d->high & (DESC_S_MASK | DESC_CS_MASK)) == (DESC_S_MASK | DESC_CS_MASK);
}
static inline bool cm_is_conforming(const struct cm_descriptor* d) {
    return cm_is_code(d) && (d->high & DESC_C_MASK);
}
static inline bool cm_is_writable_data(const struct cm_descriptor* d) {
    return (d->high & (DESC_S_MASK | DESC_CS_MASK | DESC_W_MASK)) == (DESC_S_MASK | DESC_W_MASK);
}
static inline bool cm_is_present(const struct cm_descriptor* d) { return (d->high & DESC_P_MASK) != 0; }
static inline bool cm_is_64bit_code(const CPUX86State* env, const struct cm_descriptor* d) {
    return cm_long_mode(env) && (d->high & DESC_L_MASK);
}

static inline uint32_t cm_limit(const struct cm_descriptor* d) {
    uint32_t limit = (d->low & 0xffff) | (d->high & 0xf0000);
    return d->high & DESC_G_MASK ? limit << 12 | 0xfff : limit;
}
static inline target_ulong cm_base(const struct cm_descriptor* d) {
    return d->low >> 16 | (d->high & 0xff) << 16 | (d->high & 0xff000000) | (target_ulong)d->upper << 32;
}
static inline target_ulong cm_gate_offset(const struct cm_descriptor* d) {
    return (d->low & 0xffff) | (d->high & 0xffff0000) | (target_ulong)d->upper << 32;
}

_Noreturn void cm_fault(const struct cm_transfer* t, int vector, uint32_t code);
_Noreturn void cm_selector_fault(const struct cm_transfer* t, int vector, uint32_t selector);

// ---- memory as the system sees it: descriptor tables, the TSS
target_ulong cm_linear(const CPUX86State* env, target_ulong address);  // 32 bits outside IA-32e mode
uint16_t cm_system_read16(const struct cm_transfer* t, target_ulong address);
uint32_t cm_system_read32(const struct cm_transfer* t, target_ulong address);
uint64_t cm_system_read64(const struct cm_transfer* t, target_ulong address);
void cm_system_write16(const struct cm_transfer* t, target_ulong address, uint32_t value);
void cm_system_write32(const struct cm_transfer* t, target_ulong address, uint32_t value);

// The descriptor of a selector that is not null. Beyond its table: `vector` with the selector.
void cm_read_descriptor(const struct cm_transfer* t, uint32_t selector, int vector,
                        struct cm_descriptor* out);
// The same for a system descriptor that has sixteen bytes in IA-32e mode.
void cm_read_wide_descriptor(const struct cm_transfer* t, uint32_t selector, int vector,
                             struct cm_descriptor* out);
// Sets the accessed bit of a code or data segment (SDM vol. 3A 3.4.5.1).
void cm_mark_accessed(const struct cm_transfer* t, struct cm_descriptor* d);
void cm_set_tss_busy(const struct cm_transfer* t, uint32_t selector, bool busy);

// #GP when `eip` is no place of the code segment.
void cm_check_eip(const struct cm_transfer* t, const struct cm_descriptor* code, target_ulong eip);
// #GP or #NP, with the selector, when CS may not be loaded with it by a jump, a call or a gate. `gate`: of a
// gate, which may lead inwards and whose selector's RPL is not looked at.
void cm_check_code(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* code,
                   bool gate);

// ---- a stack
struct cm_stack {
    target_ulong base, pointer, mask;  // mask: all ones in 64-bit mode
    uint32_t flags, limit;             // of its segment, outside 64-bit mode
    int mmu_index;
    uint32_t code;  // the error code of its #SS
};
// The one in use.
struct cm_stack cm_current_stack(const CPUX86State* env);
void cm_push(const struct cm_transfer* t, struct cm_stack* stack, unsigned size, target_ulong value);
target_ulong cm_pop(const struct cm_transfer* t, struct cm_stack* stack, unsigned size);
void cm_set_stack_pointer(CPUX86State* env, const struct cm_stack* stack);
// The stack of an inner ring, from the TSS: #TS, #NP or #SS when there is none. `ist`: 0, or an entry of the
// interrupt stack table. Gives the selector and descriptor for SS; in IA-32e mode a null one.
struct cm_stack cm_inner_stack(const struct cm_transfer* t, unsigned dpl, unsigned ist, bool to_64bit,
                               uint32_t* selector, struct cm_descriptor* ss);

// ---- registers
void cm_load_segment(CPUX86State* env, int reg, uint32_t selector, const struct cm_descriptor* d);
void cm_load_null_stack_segment(CPUX86State* env, uint32_t selector, unsigned cpl);
void cm_load_virtual_8086_segment(CPUX86State* env, int reg, uint32_t selector);
void cm_set_cpl(CPUX86State* env, unsigned cpl);
// Bits of hflags that the engine leaves alone: which segments have to be checked (segment_limits.c,
// code_limit.c). DS, ES and SS are used by any code; FS and GS are often null.
enum {
    CM_CHECK_CODE = 1 << 27,
    CM_CHECK_DATA = 1 << 28,
    CM_CHECK_FS = 1 << 29,
    CM_CHECK_GS = 1 << 30,
    CM_CHECK_ACCESSES = CM_CHECK_DATA | CM_CHECK_FS | CM_CHECK_GS,
    CM_CHECK_ANY = CM_CHECK_CODE | CM_CHECK_ACCESSES,
};
// After a change of a segment register by anything but the functions above: whether accesses have to be
// checked (segment_limits.c).
void cm_note_segments_anew(CPUX86State* env);
static inline void cm_note_segments(CPUX86State* env) {
    // From 64-bit code to 64-bit code, as at each system call, there is nothing to note.
    if ((env->hflags & (HF_CS64_MASK | CM_CHECK_ANY)) != HF_CS64_MASK) cm_note_segments_anew(env);
}
void cm_enter_code(CPUX86State* env, uint32_t selector, const struct cm_descriptor* code, unsigned cpl,
                   target_ulong eip);
// After a return to an outer ring: segments that it may not use become null (SDM vol. 2B, RET).
void cm_drop_inner_segments(CPUX86State* env, unsigned cpl);

// ---- tasks.c
enum cm_task_source { CM_TASK_JUMP, CM_TASK_CALL, CM_TASK_RETURN };
// `tss`: of a selector whose privilege was checked. Goes on at the new task's instruction; its faults are the
// new task's from there on.
void cm_switch_task(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* tss,
                    enum cm_task_source source, uint32_t next_eip);
// The TSS behind a task gate: #GP or #NP when there is none to switch to.
uint32_t cm_read_task_gate(const struct cm_transfer* t, const struct cm_descriptor* gate,
                           struct cm_descriptor* tss);
// After a switch: the T flag of the new task's TSS asks for #DB.
void cm_check_task_trap(CPUX86State* env);

// ---- delivery.c
enum cm_event { CM_EVENT_EXTERNAL, CM_EVENT_EXCEPTION, CM_EVENT_SOFTWARE };
// Enters the handler of a vector. `eip`: to be saved. `error_code` only for exceptions that have one.
void cm_deliver(CPUX86State* env, enum cm_event event, unsigned vector, uint32_t error_code,
                target_ulong eip);

#endif
