// SPDX-License-Identifier: GPL-2.0-or-later
// Encodings that the processor refuses, or reads in another way than the engine.
//
// Found by running every opcode with every prefix and form of operand on the bare processor and in a guest.
// The engine's decoder looks at the opcode and takes the rest as it comes; where CPUID does not announce an
// instruction that it knows, it often does not ask.
#include "encodings.h"

// SDM vol. 2A, LOCK: these, and with a destination in memory.
bool cm_is_refused(const struct cm_instruction* in) {
    if (!(in->prefixes & CM_PREFIX_LOCK)) return false;
    if (!in->is_memory) return true;
    const unsigned op = in->opcode, group = in->modrm >> 3 & 7;
    if (in->map == CM_MAP_1) {
        if (op < 0x38) return (op & 7) > 1;  // ADD, OR, ADC, SBB, AND, SUB, XOR
        if (op >= 0x80 && op <= 0x83) return group == 7;
        if (op == 0x86 || op == 0x87) return false;                     // XCHG
        if (op == 0xf6 || op == 0xf7) return group != 2 && group != 3;  // NOT, NEG
        return !((op == 0xfe || op == 0xff) && group <= 1);             // INC, DEC
    }
    if (in->map != CM_MAP_0F) return true;
    if (op == 0xab || op == 0xb3 || op == 0xbb) return false;                // BTS, BTR, BTC
    if (op == 0xba) return group < 5;                                        // with a number
    if (op == 0xb0 || op == 0xb1 || op == 0xc0 || op == 0xc1) return false;  // CMPXCHG, XADD
    return !(op == 0xc7 && group == 1);                                      // CMPXCHG8B, CMPXCHG16B
}

// Where 66, F2 and F3 choose between instructions.
static bool has_mandatory_prefix(const struct cm_instruction* in) {
    const unsigned op = in->opcode;
    if (in->map == CM_MAP_0F3A) return true;
    if (in->map == CM_MAP_0F38) return op != 0xf0 && op != 0xf1;  // CRC32: 66 is the operand's size
    if (in->map != CM_MAP_0F) return false;
    return (op >= 0x10 && op <= 0x17) || (op >= 0x28 && op <= 0x2f) || (op >= 0x50 && op <= 0x7f) ||
           op == 0xc2 || (op >= 0xc4 && op <= 0xc6) || op >= 0xd0;
}

void cm_respell_prefixes(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->mandatory != CM_WITH_F2 && in->mandatory != CM_WITH_F3) return;
    const uint8_t winner = in->mandatory == CM_WITH_F2 ? 0xf2 : 0xf3;
    const bool drop_66 = has_mandatory_prefix(in);
    for (unsigned at = 0; at < in->opcode_at; at++) {
        const uint8_t byte = t->bytes[at];
        if (byte == 0xf2 || byte == 0xf3 || (byte == 0x66 && drop_66)) cm_respell(t, at, winner);
    }
}

// INT1: #DB as a trap, behind the instruction, that no debug register asked for (SDM vol. 2A, INT n/INTO/
// INT3/INT1). No gate's DPL is looked at.
static enum cm_translated int1(struct cm_translator* t, const struct cm_instruction* in) {
    const target_ulong pc = t->pc;
    t->pc += in->length;
    cm_emit_exception(t, EXCP01_DB);
    t->pc = pc;
    return CM_TRANSLATED_RAISE;
}

static enum cm_translated nothing(struct cm_translator* t, const struct cm_instruction* in) {
    (void)t, (void)in;
    return CM_TRANSLATED;
}

// Near branches in 64-bit code have an operand of 64 bits and a displacement of 32 whatever 66 says (SDM
// vol. 2D, A.2.5, superscript f64; AMD's take 16 bits). DS, which has no meaning there, takes its place.
static enum cm_translated wide_branch(struct cm_translator* t, const struct cm_instruction* in) {
    for (unsigned at = 0; at < in->opcode_at; at++) {
        if (t->bytes[at] != 0x66) continue;
        // FS or GS may still count: the last one of the segment prefixes does.
        cm_respell(t, at, in->segment >= CM_FS ? (uint8_t)(0x60 + in->segment) : 0x3e);
    }
    return CM_TO_ENGINE;
}

// The engine takes REX.R for a part of the group's number.
static enum cm_translated without_rex_r(struct cm_translator* t, const struct cm_instruction* in) {
    if (in->rex & 4) cm_respell(t, in->opcode_at - 1u, in->rex & (uint8_t)~4);
    return CM_TO_ENGINE;
}

// MOV to and from CR1, CR5 to CR7 and CR9 to CR15 (SDM vol. 2B, MOV): goes before the privilege.
static enum cm_translated control_register(struct cm_translator* t, const struct cm_instruction* in) {
    const bool exists = in->reg == 0 || (in->reg >= 2 && in->reg <= 4) || in->reg == 8;
    return exists ? CM_TO_ENGINE : cm_emit_exception(t, EXCP06_ILLOP);
}

static enum cm_translated debug_register(struct cm_translator* t, const struct cm_instruction* in) {
    return in->reg < 8 ? CM_TO_ENGINE : cm_emit_exception(t, EXCP06_ILLOP);
}

// Group 15 (SDM vol. 2D, table A-6), without what CPUID does not announce.
static enum cm_translated group_15(struct cm_translator* t, const struct cm_instruction* in) {
    const unsigned group = in->modrm >> 3 & 7;
    bool exists;
    if (in->is_memory) {
        exists = in->mandatory == CM_NO_PREFIX;  // FXSAVE to CLFLUSH; CLFLUSHOPT and CLWB have 66
    } else if (group >= 5) {
        exists = in->mandatory == CM_NO_PREFIX;  // LFENCE, MFENCE, SFENCE
    } else {
        exists = in->mandatory == CM_WITH_F3 && group < 4;  // RDFSBASE to WRGSBASE
    }
    return exists ? CM_TO_ENGINE : cm_emit_exception(t, EXCP06_ILLOP);
}

// RDSEED: the engine asks for RDRAND.
static enum cm_translated rdseed(struct cm_translator* t, const struct cm_instruction* in) {
    (void)in;
    if (t->env->features[FEAT_7_0_EBX] & CPUID_7_0_EBX_RDSEED) return CM_TO_ENGINE;
    return cm_emit_exception(t, EXCP06_ILLOP);
}

enum { ANY_PREFIX = CM_IF_66 | CM_IF_F2 | CM_IF_F3 };
#define UNDEFINED .vector = EXCP06_ILLOP

const struct cm_row cm_encoding_rows[CM_ENCODING_ROWS] = {
    {CM_MAP_1, 0xf1, .translate = int1},
    {CM_MAP_1, 0x8f, .groups = 0xfe, UNDEFINED},        // POP is the first of its group
    {CM_MAP_1, 0xc6, 0xc7, .groups = 0xfe, UNDEFINED},  // so is MOV; XABORT and XBEGIN are not announced
    {CM_MAP_1, 0xc6, 0xc7, .groups = 1, .modes = CM_IN_64, .translate = without_rex_r},
    // VEX and EVEX; where they can be LES, LDS and BOUND these have a memory operand.
    {CM_MAP_1, 0xc4, 0xc5, .modes = CM_IN_64, UNDEFINED},
    {CM_MAP_1, 0xc4, 0xc5, .form = CM_REGISTER, UNDEFINED},
    {CM_MAP_1, 0x62, .modes = CM_IN_64, UNDEFINED},
    {CM_MAP_1, 0x70, 0x7f, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    {CM_MAP_1, 0xc2, 0xc3, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    {CM_MAP_1, 0xe0, 0xe3, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    {CM_MAP_1, 0xe8, 0xe9, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    {CM_MAP_1, 0xeb, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    {CM_MAP_1, 0xff, .groups = 1 << 7, UNDEFINED},
    {CM_MAP_1, 0xff, .groups = 1 << 2 | 1 << 4, .modes = CM_IN_64, .prefixes = ANY_PREFIX,
     .translate = wide_branch},
    {CM_MAP_0F, 0x80, 0x8f, .modes = CM_IN_64, .prefixes = ANY_PREFIX, .translate = wide_branch},
    // Intel's have SYSCALL and SYSRET in 64-bit code only.
    {CM_MAP_0F, 0x05, .modes = CM_IN_16 | CM_IN_32, UNDEFINED},
    {CM_MAP_0F, 0x07, .modes = CM_IN_16 | CM_IN_32, UNDEFINED},
    {CM_MAP_0F, 0x12, .form = CM_REGISTER, .prefixes = CM_IF_66, UNDEFINED},  // MOVLPD
    {CM_MAP_0F, 0x16, .form = CM_REGISTER, .prefixes = CM_IF_66, UNDEFINED},  // MOVHPD
    {CM_MAP_0F, 0x18, .form = CM_REGISTER, .translate = nothing},             // reserved for hints
    {CM_MAP_0F, 0x0f, UNDEFINED},  // 3DNow: the engine reads its operand first
    {CM_MAP_0F, 0x20, .translate = control_register},
    {CM_MAP_0F, 0x21, .translate = debug_register},
    {CM_MAP_0F, 0x22, .translate = control_register},
    {CM_MAP_0F, 0x23, .translate = debug_register},
    {CM_MAP_0F, 0x2b, .prefixes = CM_IF_F2 | CM_IF_F3, UNDEFINED},  // MOVNTSD, MOVNTSS of SSE4A
    {CM_MAP_0F, 0x50, .form = CM_MEMORY, UNDEFINED},                // MOVMSKPS, MOVMSKPD
    {CM_MAP_0F, 0x71, 0x73, .form = CM_MEMORY, UNDEFINED},          // shifts by a number
    {CM_MAP_0F, 0x78, 0x79, UNDEFINED},                             // SSE4A, VMREAD, VMWRITE
    {CM_MAP_0F, 0xae, .translate = group_15},
    {CM_MAP_0F, 0xba, .groups = 0x0f, UNDEFINED},          // BT with a number has the other half; as above
    {CM_MAP_0F, 0xc3, .prefixes = ANY_PREFIX, UNDEFINED},  // MOVNTI
    {CM_MAP_0F, 0xc7, .groups = 1 << 7, .form = CM_REGISTER, .translate = rdseed},
    {CM_MAP_0F, 0xd6, .form = CM_MEMORY, .prefixes = CM_IF_F2 | CM_IF_F3, UNDEFINED},  // MOVDQ2Q, MOVQ2DQ
    {CM_MAP_0F, 0xf7, .form = CM_MEMORY, UNDEFINED},                                   // MASKMOVQ
    // MOVBE is a move from or to memory; CRC32 has the same opcodes with F2 (SDM vol. 2B, MOVBE).
    {CM_MAP_0F38, 0xf0, 0xf1, .form = CM_REGISTER, .prefixes = CM_IF_NONE | CM_IF_66, UNDEFINED},
    {CM_MAP_0F38, 0xf0, 0xf1, .prefixes = CM_IF_F3, UNDEFINED},
};
