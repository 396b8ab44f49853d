// SPDX-License-Identifier: GPL-2.0-or-later
// Guest x87 on host x87.
//
// Each instruction of opcodes D8-DF is one call of ours, and computes with the same instruction of the host:
// values, rounding, precision control, flags and condition codes are then the processor's own. There are two
// roads:
//
// - x87_quick.h: while no register is used that is empty (or pushed on that is full), an instruction needs
// its
//   operands alone. They are loaded into the host's x87 stack, and the result is stored back. All exceptions
//   are masked there; where one comes that is not masked for the guest, the result is dropped.
// - x87_whole.c: otherwise the host's x87 takes over all of the guest's state for this one instruction, with
//   the guest's masks. An unmasked exception then is pending in the host's status word for a moment; nothing
//   that waits for it (SDM vol. 1, 8.6) runs before the state has been saved and the host's x87 initialised,
//   so the host never takes SIGFPE.
//
// The state is the engine's: fpregs (physical registers R0-R7), fptags (1: empty), fpstt (TOP), fpus (status
// without TOP), fpuc (control), fpip, fpcs, fpdp, fpds, fpop (of the last instruction that is not a control
// instruction: SDM vol. 1, 8.1.8). ES and B of fpus always say whether an unmasked flag is set.
//
// Between two instructions the host's x87 has an empty stack and its control word of always (37FH), so that
// C++ and Python code need not know. Only its sticky flags may be set, and each is then set in the guest's
// fpus too: FNCLEX is too slow to go before each instruction. Whatever clears flags of fpus must therefore
// call x87_forget_flags(), and host code that may set some stands between cm_float_leave() and
// cm_float_return() (float.h).
#ifndef COREMESH_TCG_X86_X87_H
#define COREMESH_TCG_X86_X87_H

#include "../internals.h"

// Status word (SDM vol. 1, 8.1.3)
enum {
    FSW_IE = 1 << 0,
    FSW_DE = 1 << 1,
    FSW_PE = 1 << 5,
    FSW_FLAGS = 0x3f,
    FSW_SF = 1 << 6,
    FSW_STICKY = FSW_FLAGS | FSW_SF,
    FSW_ES = 1 << 7,
    FSW_C0 = 1 << 8,
    FSW_C1 = 1 << 9,
    FSW_C2 = 1 << 10,
    FSW_C3 = 1 << 14,
    FSW_CONDITIONS = FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3,
    FSW_TOP_SHIFT = 11,
    FSW_B = 1 << 15,
};

// Control word (SDM vol. 1, 8.1.5)
enum {
    FCW_MASKS = 0x3f,
    FCW_UM = 1 << 4,
    FCW_RESERVED_1 = 0x40,  // reads as 1
    FCW_ROUNDING_AND_PRECISION = 0xf00,
    FCW_SETTABLE = 0x1f3f,
    FCW_DEFAULT = 0x37f,
};

enum { VECTOR_MF = 16 };

// What a call is told of its instruction, a constant of the translated code: the low 11 bits are FOP (SDM
// vol. 1, 8.1.9), the operand's segment register follows, then whether operands are 16 bits wide and whether
// whether REX.W was there, and whether the segment's base is part of the linear address.
typedef uint32_t x87_op;
enum { OP_SEGMENT_SHIFT = 12, OP_NARROW = 1 << 15, OP_BASED = 1 << 16 };

// The ModRM.reg field and the low three bits of the opcode.
static inline unsigned x87_group(x87_op op) { return (op >> 5 & 0x38) | (op >> 3 & 7); }

typedef void (*x87_function)(CPUX86State* env, target_ulong address, x87_op op);

// x87_instructions.c: the function that executes an instruction with or without a memory operand, NULL for an
// encoding that is undefined.
extern const x87_function cm_x87_memory_functions[64];
x87_function cm_x87_register_function(x87_op op);
// Once, before the first of them is called.
void cm_x87_learn_host(void);
// A control instruction does not become the one that FIP, FCS and FOP name.
bool cm_x87_is_control(x87_op op);

// x87_whole.c. Both raise #MF first if an exception is pending. FCMOVcc looks at `flags`, FCOMI and its
// relatives change them.
uint32_t cm_x87_whole(CPUX86State* env, x87_op op, uint32_t flags, uintptr_t ra);
void cm_x87_whole_memory(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);
// Bytes that an arithmetic, load or store instruction reads or writes; 0: it is not one.
unsigned cm_x87_operand_bytes(x87_op op);
bool cm_x87_stores(x87_op op);

// x87_state.c: FNINIT's state (SDM vol. 1, table 8-1), and the instructions that load and store state.
void cm_x87_initialise(CPUX86State* env);
void cm_x87_load_control(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);
void cm_x87_load_environment(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);
void cm_x87_store_environment(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);
void cm_x87_restore(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);
void cm_x87_set_words(CPUX86State* env, uint16_t control, uint16_t status);
void cm_x87_save(CPUX86State* env, target_ulong address, x87_op op, uintptr_t ra);

// x87_memory.c
void cm_x87_load_slowly(CPUX86State* env, target_ulong address, void* into, unsigned size, uintptr_t ra);
void cm_x87_store_slowly(CPUX86State* env, target_ulong address, const void* bytes, unsigned size,
                         uintptr_t ra);
void cm_x87_probe_store(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra);
void cm_x87_probe_fxsave(CPUX86State* env, target_ulong address, bool stores, uintptr_t ra);

// Where the bytes are, or NULL: flags in the low bits (MMIO, watchpoint, invalid) make the comparison fail.
static inline void* x87_in_tlb(const CPUTLBEntry* entry, target_ulong entry_address, target_ulong address,
                               unsigned size) {
    const bool one_page = (address & ~TARGET_PAGE_MASK) + size <= TARGET_PAGE_SIZE;
    if (unlikely(!one_page || entry_address != (address & TARGET_PAGE_MASK))) return NULL;
    return (void*)(uintptr_t)(address + entry->addend);
}

// #AC (SDM vol. 3A, 6.15): programs at privilege level 3 may ask for it.
void cm_x87_check_alignment(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra);

// Memory operands of up to 512 bytes.
static inline __attribute__((always_inline)) void x87_load(CPUX86State* env, target_ulong address, void* to,
                                                           unsigned size, uintptr_t ra) {
    const CPUTLBEntry* entry = tlb_entry(env, (uintptr_t)cpu_mmu_index(env, false), address);
    const void* host = x87_in_tlb(entry, entry->addr_read, address, size);
    if (unlikely(env->eflags & AC_MASK)) cm_x87_check_alignment(env, address, size, ra);
    if (likely(host)) {
        memcpy(to, host, size);
    } else {
        cm_x87_load_slowly(env, address, to, size, ra);
    }
}

// A fault comes before the first byte is written. A store into the block that runs ends it, and the
// instruction is executed again, alone (cm_engine_self_write): so a caller changes the state after the store.
static inline __attribute__((always_inline)) void x87_store(CPUX86State* env, target_ulong address,
                                                            const void* from, unsigned size, uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const CPUTLBEntry* entry = tlb_entry(env, (uintptr_t)cpu_mmu_index(env, false), address);
    void* host = x87_in_tlb(entry, tlb_addr_write(entry), address, size);
    if (unlikely(env->eflags & AC_MASK)) cm_x87_check_alignment(env, address, size, ra);
    engine->slow_store = ra;
    if (likely(host)) {
        memcpy(host, from, size);
    } else {
        cm_x87_store_slowly(env, address, from, size, ra);
    }
    __asm__ volatile("" : : : "memory");
    engine->slow_store = 0;
}

// Raises the pending exception (SDM vol. 1, 8.7.1). With CR0.NE clear the processor asks for an interrupt
// through FERR#, which is not wired: as on a board without that wire, nothing comes.
static inline void x87_wait(CPUX86State* env, uintptr_t ra) {
    if (unlikely(env->fpus & FSW_ES) && (env->cr[0] & CR0_NE_MASK)) raise_exception_ra(env, VECTOR_MF, ra);
}

// ES and B follow the flags and masks.
static inline void x87_update_summary(CPUX86State* env) {
    env->fpus &= FSW_STICKY | FSW_CONDITIONS;
    if (env->fpus & ~env->fpuc & FSW_FLAGS) env->fpus |= FSW_ES | FSW_B;
}

// After flags of fpus were cleared.
static inline void x87_forget_flags(const CPUX86State* env) {
    uint16_t status;
    __asm__ volatile("fnstsw %0" : "=a"(status));
    if (status & FSW_FLAGS & ~env->fpus) __asm__ volatile("fnclex");
}

static inline unsigned x87_physical(const CPUX86State* env, unsigned i) { return (env->fpstt + i) & 7; }

// FIP is stored by the translated code behind the call.
static inline void x87_note(CPUX86State* env, x87_op op) {
    env->fpop = op & 0x7ff;
    env->fpcs = env->segs[R_CS].selector;
}

static inline void x87_note_operand(CPUX86State* env, target_ulong address, x87_op op) {
    const SegmentCache* segment = &env->segs[op >> OP_SEGMENT_SHIFT & 7];
    x87_note(env, op);
    env->fpds = segment->selector;
    env->fpdp = op & OP_BASED ? address - segment->base : address;
    if (!(env->hflags & HF_CS64_MASK)) env->fpdp = (uint32_t)env->fpdp;
}

#endif
