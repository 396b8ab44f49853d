// SPDX-License-Identifier: GPL-2.0-or-later
// Instructions that are ours: what is decided when an instruction is translated.
//
// The engine's decoder is one static function and cannot be wrapped. But the loop that calls it, once for
// each instruction, is in another file: translator.c gives that loop a table of operations in which
// "translate one instruction" is ours. It decodes the instruction (decode.h), looks it up in the tables of
// instructions.c, and either translates it here or lets the engine do so. The engine then reads the very
// bytes that were decoded, never the guest's memory a second time, which another vCPU may have changed in
// between.
//
// To make an instruction ours, add a row to a table in instructions.c (or a table of your own file to its
// list):
//
//   {CM_MAP_0F, 0xb1, .form = CM_REGISTER, .execute = cmpxchg, .flags = CM_READS_FLAGS | CM_WRITES_FLAGS},
//
// which opcodes (and forms, modes of the code segment, prefixes), then one of four things to do:
//
// .vector   raise this exception in its place. Nothing else is needed.
// .check    call a function of the kind below, which raises an exception or returns; then it is the engine's.
// .execute  call a function that does all of it. It gets the CPU state, the linear address of the memory
//           operand (0 without one) and the fields of the instruction. Rules for it:
//           - guest memory: cpu_ldl_data_ra(env, address, GETPC()) and the like. A page fault leaves from
//             there, with everything put right, so change nothing in `env` before the last access that may
//             fault; a store over two pages is checked by the engine before its first byte. Several stores:
//             cm_probe_write() for all, first.
//           - exceptions: raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC()).
//           - call GETPC() in the function itself, not in one that it calls: it is the return address into
//             translated code, by which the engine finds the guest's instruction.
//           - flags: say CM_READS_FLAGS, and cm_arithmetic_flags(env) gives the six. Say CM_WRITES_FLAGS, and
//             leave all six in env->cc_src, on every way out but an exception's.
//           - env->eip is old, unless CM_READS_RIP. An instruction that jumps, or changes what later code is
//             translated by (hflags, a control register, the TLB), says CM_ENDS_BLOCK; the next block begins
//             behind it.
// .translate  a function that emits TCG ops, or inspects the instruction, and returns what is to be done.
//
// The state of the translator that matters: the guest's flags are lazy. `dc->cc_op` says how to compute them
// from cc_dst, cc_src, cc_src2, and `dc->cc_op_dirty` that env->cc_op does not know it yet.
// cm_store_flags_kind() makes it known. An exception out of a called function needs none of that: the engine
// restores RIP and cc_op from the return address.
#ifndef COREMESH_TCG_X86_TRANSLATOR_H
#define COREMESH_TCG_X86_TRANSLATOR_H

#include "../internals.h"
#include "exec/translator.h"
#include "decode.h"
#include "platform.h"

// The engine's own state of a translation, declared in its translate.c alone; the names follow that. What
// stands here is compared with its behaviour at start (cm_translator_selfcheck).
struct cm_disassembly {
    DisasContextBase base;  // pc_next: the instruction's linear address
    int override, prefix;
    MemOp aflag, dflag;
    target_ulong pc_start, pc;
    target_ulong cs_base;
    int pe, code32, lma, code64;
    int rex_x, rex_b, vex_l, vex_v;
    int ss32;
    CCOp cc_op, last_cc_op;
    bool cc_op_dirty, x86_64_hregs;
    int addseg;  // outside 64-bit code: some of DS, ES, SS has a base
    int f_st, vm86, cpl, iopl, tf, jmp_opt, repz_opt;
    int mem_index;
    uint64_t flags;  // HF_*, and those of RFLAGS that a block depends on
};

struct cm_translator {
    struct cm_engine* engine;
    TCGContext* tcg;
    CPUX86State* env;
    struct cm_disassembly* dc;
    // Where the page of the instruction is, or NULL for a page that is not RAM.
    target_ulong page;
    const uint8_t* host_page;
    // The bytes of the instruction, as the engine is to see them.
    target_ulong pc;
    unsigned available;
    uint8_t bytes[2 * CM_LONGEST_INSTRUCTION + 2];
    // For a translating function that returns CM_TO_ENGINE: what is called behind the engine's translation.
    void (*after)(struct cm_translator* t, const struct cm_instruction* in);
    TCGOp* before;        // the last op before this instruction's
    bool locked;          // it has a LOCK prefix
    unsigned contents;    // of the block: CM_CALLS and the like (platform.h)
    TCGv_i64 check_word;  // segment_limits.c
    bool relative;        // the block runs wherever its page is mapped (code_address.c)
    TCGv_i64 code_base, distance;
    target_ulong mmx_next;  // right behind the last MMX instruction of this block (mmx.c)
};

enum cm_translated {
    CM_TO_ENGINE,             // goes on with the engine's translation (or the next row for this opcode)
    CM_TRANSLATED,            // all of the instruction is emitted
    CM_TRANSLATED_LAST,       // ... and the block ends behind it
    CM_TRANSLATED_RAISE,      // ... by raising an exception
    CM_TRANSLATED_BY_ENGINE,  // ... by cm_translate_by_engine() and what came after it
};

// The fields that an executing function may want, by value: they are a constant of the translated code.
union cm_operands {
    uint64_t word;
    struct {
        uint8_t opcode, modrm;
        uint8_t reg : 4, rm : 4;  // with REX
        uint8_t operand_bytes : 4, address_bytes : 4;
        uint8_t mandatory : 2, lock : 1, rex : 1, memory : 1, code64 : 1;  // rex: any, for byte registers
        uint8_t length;
        int16_t immediate;
    };
};

typedef void (*cm_execute_function)(CPUX86State* env, target_ulong address, union cm_operands in);
typedef enum cm_translated (*cm_translate_function)(struct cm_translator* t, const struct cm_instruction* in);

enum { CM_MEMORY = 1, CM_REGISTER = 2 };            // the form of ModRM; 0: any
enum { CM_IN_16 = 1, CM_IN_32 = 2, CM_IN_64 = 4 };  // the code segment's size; 0: any
enum {                                              // mandatory prefixes, by enum cm_mandatory; 0: any
    CM_IF_NONE = 1 << CM_NO_PREFIX,
    CM_IF_66 = 1 << CM_WITH_66,
    CM_IF_F3 = 1 << CM_WITH_F3,
    CM_IF_F2 = 1 << CM_WITH_F2,
};
enum { CM_READS_FLAGS = 1, CM_WRITES_FLAGS = 2, CM_ENDS_BLOCK = 4, CM_READS_RIP = 8 };

struct cm_row {
    uint8_t map, opcode;
    uint8_t last;    // the last opcode of a range; 0: the one
    uint8_t groups;  // bits for values of ModRM.reg; 0: any
    uint8_t form, modes, prefixes;
    uint8_t flags;
    int8_t vector;  // 0 (#DE, which no encoding raises): none
    cm_execute_function check, execute;
    cm_translate_function translate;
};

struct cm_table {
    const struct cm_row* rows;
    size_t count;
};

// instructions.c: the tables, searched in this order.
extern const struct cm_table cm_tables[];
extern const size_t cm_table_count;

extern const struct cm_row cm_integer_rows[15];  // integer.c
extern const struct cm_row cm_vector_rows[1];    // vector.c
// The translating functions of other files, for the tables.
enum cm_translated cm_translate_x87(struct cm_translator* t, const struct cm_instruction* in);
enum cm_translated cm_translate_fxsave(struct cm_translator* t, const struct cm_instruction* in);
enum cm_translated cm_translate_mmx(struct cm_translator* t, const struct cm_instruction* in);

// --- For translating functions ---

// Stores RIP and the kind of flags; the block ends here.
enum cm_translated cm_emit_exception(struct cm_translator* t, int vector);
void cm_store_flags_kind(struct cm_translator* t);
// The flags are in cc_src from here on.
void cm_flags_are_in_source(struct cm_translator* t);
void cm_store_rip(struct cm_translator* t, target_ulong linear);
// Leaves in `to` an address that depends on RIP, a number when the block has one address (code_address.c).
void cm_emit_code_address(struct cm_translator* t, TCGv_i64 to, target_ulong linear);
// Once, before the first of a block; after an instruction of the engine's, or behind the last: what was
// emitted behind the op `before`.
void cm_begin_code_addresses(struct cm_translator* t);
void cm_make_relative(struct cm_translator* t, TCGOp* before, bool behind);
// The linear address of a memory operand, in a new temporary, which the caller frees. Of this instruction
// only: a label ends its life.
TCGv_i64 cm_emit_address(struct cm_translator* t, const struct cm_instruction* in);
// A call of an executing function, with what `flags` asks for around it.
enum cm_translated cm_emit_execute(struct cm_translator* t, const struct cm_instruction* in,
                                   cm_execute_function execute, unsigned flags);
// The engine's own translation, for a function that has something to emit behind it. The block may have
// ended: then dc->base.is_jmp says so.
void cm_translate_by_engine(struct cm_translator* t);
enum cm_code_size cm_code_size_of(const struct cm_translator* t);
// Lets the engine see other bytes for this instruction, of the same length: a spelling that it understands.
static inline void cm_respell(struct cm_translator* t, unsigned at, uint8_t byte) { t->bytes[at] = byte; }

// --- For executing functions ---

// CF, PF, AF, ZF, SF and OF (CM_READS_FLAGS).
static inline uint32_t cm_arithmetic_flags(CPUX86State* env) {
    return cpu_cc_compute_all(env, (int)env->cc_op);
}

// ports.c: INS and OUTS may use their port, whatever their memory operand and count are.
void cm_check_string_port(CPUX86State* env, target_ulong address, union cm_operands in);

// Raises the page fault that a store of `size` bytes would raise, on whichever page it is.
void cm_probe_write(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra);
// #SS(0) or #GP(0) when an access of code that is not 64-bit runs over the end of 4 GiB in its segment, whose
// offsets end there (canonical.c).
void cm_check_end_of_segment(CPUX86State* env, target_ulong address, unsigned size, uintptr_t from);
// The same of the operand, and #AC, if it is misaligned and alignment is checked; to be called before what
// raises page faults. Of an operand that is not canonical the access itself raises what comes first.
static inline void cm_check_alignment(CPUX86State* env, target_ulong address, unsigned size, uintptr_t ra) {
    const bool code64 = env->hflags & HF_CS64_MASK;
    if (!code64 && unlikely(address + size - 1 > UINT32_MAX)) {
        cm_check_end_of_segment(env, address, size, ra);
    } else if (unlikely(address & (size - 1)) && cm_checks_alignment(env) &&
               (!code64 || (cm_is_canonical(address) && cm_is_canonical(address + size - 1)))) {
        raise_exception_err_ra(env, EXCP11_ALGN, 0, ra);
    }
}

#endif
