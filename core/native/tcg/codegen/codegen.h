// SPDX-License-Identifier: GPL-2.0-or-later
// Shared by the files of the code generator; see codegen.c.
#ifndef COREMESH_TCG_CODEGEN_H
#define COREMESH_TCG_CODEGEN_H

#include "emit.h"
#include "internals.h"

#define CM_MAX_LABELS 256
#define CM_MAX_FIXUPS 512
#define CM_MAX_ACCESSES 384
#define CM_MAX_SAVES 6144
#define CM_MAX_GLOBALS 64
#define CM_MAX_GROUPS 128
#define CM_GROUP_SPAN 256  // bytes: the wider, the more often a page ends within
#define CM_EXPRESSIONS 64
#define CM_MAX_DISPLACEMENT (1 << 30)  // of addresses: more is added

// Where the value of a temporary is: in any of a register, a constant, its home in memory; or nowhere, when
// it is dead.
struct cm_value {
    int8_t reg;  // or -1
    bool constant;
    bool in_memory;
    bool zero_extended;  // bits 32 to 63 are known to be zero
    int16_t slot;        // of the frame, for what is no global; -1: none yet
    // The value is the register << scale + displacement. Either is of guest addresses alone.
    uint8_t scale;
    int32_t displacement;
    int64_t number;
};

// A dirty global at a guest memory access: what the slow path stores before it calls the engine.
struct cm_save {
    int16_t temp;
    int8_t reg;  // -1: the number
    int64_t number;
};

// The value of a temporary as a sum (groups.c). Equal bases are equal values.
struct cm_linear {
    uint32_t base;
    int64_t offset;
};

struct cm_expression {
    TCGOpcode opc;
    uint32_t a;
    uint64_t b;
    uint32_t base;
};

// Accesses of a block at known distances: one looks the page up for all of them.
struct cm_group {
    struct cm_linear first;  // address of the first
    int32_t low, high;       // the bytes that they touch, from there
    int16_t last;            // the last access of it
    uint8_t alignment;       // of the address `phase` bytes from the first; 1: none
    uint8_t phase;
    uint8_t mmu_index;
    bool writes;
    int8_t reg;  // the host address of the guest's page 0 for these, or 0: look up; or no register: -1
};

// Where an access lies in its group, if it has one.
struct cm_near {
    int16_t group;  // or -1
    int32_t offset;
};

// A guest memory access, of which the slow path follows behind the block.
struct cm_access {
    uint8_t* jump;    // displacement of the branch to the slow path
    uint8_t* resume;  // behind the access
    TCGMemOpIdx oi;
    bool load, wide;  // wide: the register loaded has 64 bits
    enum { ALONE, FIRST_OF_GROUP, NEXT_OF_GROUP } role;
    int8_t address, data;
    int32_t displacement;  // to be added to the address
    int8_t host_base;      // the host address of the guest's page 0
    bool constant;         // the datum stored is `number`
    int64_t number;
    uint16_t live;  // registers that a call would clobber and that hold something
    uint16_t first_save, saves;
};

struct cm_codegen {
    emitter e;
    TCGContext* tcg;
    struct cm_engine* engine;
    unsigned clock;
    unsigned frame_used;
    uint32_t locked;      // registers that the operation at hand uses
    uint64_t changed;     // globals whose value may be elsewhere than at home, and other temporaries
    uint8_t holders[16];  // how many temporaries have their value in a register
    unsigned last_use[16];
    int nb_fixups, nb_accesses, nb_saves, nb_groups;
    int accesses_found;  // by the backward pass
    uint32_t first_base, next_base;
    bool overflow;
    struct cm_value values[TCG_MAX_TEMPS];
    uint8_t future[TCG_MAX_TEMPS];  // the backward pass: enum cm_future
    // The temporaries that keep their value over a branch.
    int16_t locals[TCG_MAX_TEMPS];
    int nb_locals;
    uint8_t* labels[CM_MAX_LABELS];
    struct {
        uint8_t* place;
        unsigned label;
    } fixups[CM_MAX_FIXUPS];
    struct cm_access accesses[CM_MAX_ACCESSES];
    struct cm_save saves[CM_MAX_SAVES];
    struct cm_near near[CM_MAX_ACCESSES];
    struct cm_group groups[CM_MAX_GROUPS];
    struct cm_linear linear[TCG_MAX_TEMPS];
    struct cm_expression expressions[CM_EXPRESSIONS];
};

// RSI and RDI hold no temporaries: they are at hand within an operation. RBP is the CPU state.
#define CM_SCRATCH_MASK (1u << RSI | 1u << RDI | 1u << RSP | 1u << RBP)
#define CM_CALL_CLOBBERED (1u << RAX | 1u << RCX | 1u << RDX | 1u << R8 | 1u << R9 | 1u << R10 | 1u << R11)
#define CM_SLOTS 128      // CPU_TEMP_BUF_NLONGS
#define CM_FIRST_SLOT 16  // the first belong to the slow paths, one for each register

enum { CM_NARROW = 1, CM_ADDRESS = 2, CM_ADDEND = 4 };  // TCGOp.output_pref[0]

typedef struct cm_codegen gen;

static inline int cm_index(const gen* g, TCGArg arg) { return (int)(arg_temp(arg) - g->tcg->temps); }
static inline struct cm_value* cm_value(gen* g, TCGArg arg) { return &g->values[cm_index(g, arg)]; }
static inline bool cm_dies(const TCGOp* op, int arg) { return op->life >> arg & 1; }
// It is read again within the block, and not only kept for what comes after it.
static inline bool cm_used_later(const TCGOp* op, int arg) { return op->life >> (8 + arg) & 1; }
// Only the low half of the operation's result is needed: set by the backward pass.
static inline bool cm_is_narrow(const TCGOp* op) { return op->output_pref[0] & CM_NARROW; }
// The result is read by 64-bit additions alone, or by guest accesses alone, as their address: set by the
// backward pass.
static inline bool cm_is_addend(const TCGOp* op) { return op->output_pref[0] & CM_ADDEND; }
static inline bool cm_is_address(const TCGOp* op) { return op->output_pref[0] & CM_ADDRESS; }
// The value of an output, a global, is the one to be in memory at the end, and a guest store follows: set by
// the backward pass.
static inline bool cm_is_final(const TCGOp* op, int output) { return op->output_pref[1] >> output & 1; }
static inline int32_t cm_slot_offset(const gen* g, int slot) {
    return (int32_t)(g->tcg->frame_start + slot * 8);
}

static inline bool cm_is_access(const TCGOp* op) {
    return op->opc == INDEX_op_qemu_ld_i32 || op->opc == INDEX_op_qemu_ld_i64 ||
           op->opc == INDEX_op_qemu_st_i32 || op->opc == INDEX_op_qemu_st_i64;
}

// How many bytes from its address an access wants to be accessible before it is made.
static inline int cm_bytes_checked(MemOp op) { return op & CM_MO_PAIR ? 16 : 1 << (op & MO_SIZE); }

// analysis.c
// Also removes what is never reached. False: some operation is not known.
bool cm_prepare(TCGContext* tcg);
void cm_analyse(gen* g);

// groups.c
void cm_find_groups(gen* g);
struct cm_group* cm_group_of(gen* g, int access);  // NULL: it is alone

// values.c
void cm_values_start(gen* g);
int cm_use(gen* g, TCGArg arg);                  // its value in a register, locked
void cm_load_into(gen* g, int reg, TCGArg arg);  // a copy in a given register, which holds nothing
int cm_allocate(gen* g, uint32_t forbidden);     // a free register, locked
int cm_take(gen* g, const TCGOp* op, int arg, int size,
            uint32_t forbidden);  // one to be overwritten, with its value
void cm_vacate(gen* g, int reg);  // moves elsewhere what a register holds
void cm_release(gen* g, int temp);
void cm_hold_for_group(gen* g, struct cm_group* group, int reg);
void cm_release_group(gen* g, struct cm_group* group);
void cm_release_dead_inputs(gen* g, const TCGOp* op, int first, int count);
void cm_define(gen* g, const TCGOp* op, int output, int reg, bool zero_extended);
// Output 0, for cm_is_address or cm_is_addend.
void cm_define_sum(gen* g, const TCGOp* op, int reg, int scale, int32_t displacement);
void cm_define_constant(gen* g, const TCGOp* op, int output, int64_t number);
void cm_alias(gen* g, const TCGOp* op, bool zero_extended);  // output 0 has the value of argument 1
void cm_store_home(gen* g, int temp);
void cm_store_number(gen* g, int temp, int64_t number);
uint64_t cm_changed_globals(const gen* g);  // a bit for each that may be to store
void cm_sync_globals(gen* g);
void cm_sync_all(gen* g);  // locals too
void cm_forget_registers(gen* g);
void cm_spill_for_call(gen* g, bool writes_globals);
int32_t cm_home(gen* g, int temp, int* base);

// operands.c
// A second operand: an immediate, the home of a value that is read just once, or a register.
struct cm_operand {
    enum { IMMEDIATE, MEMORY, REGISTER } kind;
    int reg, base;
    int32_t number;  // the immediate or the displacement
};
extern const uint8_t cm_conditions[16];
int cm_size_of(const gen* g, const TCGOp* op);
bool cm_immediate(gen* g, TCGArg arg, int size, int32_t* number);
bool cm_at_home(gen* g, const TCGOp* op, int arg);  // only in memory, and read just once more
struct cm_operand cm_operand(gen* g, const TCGOp* op, int arg, int size);
void cm_emit_operand(gen* g, int kind, int size, int reg, const struct cm_operand* o);
bool cm_can_take(gen* g, const TCGOp* op, int arg);
void cm_emit_compare(gen* g, int size, int first, const struct cm_operand* second);
void cm_compare(gen* g, const TCGOp* op, int first, int size);

// arithmetic.c
bool cm_generate_arithmetic(gen* g, const TCGOp* op);  // false: it is something else

// ops.c
TCGOp* cm_generate_op(gen* g, TCGOp* op);  // the next one

// memory.c
void cm_generate_access(gen* g, TCGOp* op);
bool cm_generate_slow_paths(gen* g);  // false: the code buffer is full

// calls.c
void cm_generate_call(gen* g, TCGOp* op);

#endif
