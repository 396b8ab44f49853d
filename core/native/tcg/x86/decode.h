// SPDX-License-Identifier: GPL-2.0-or-later
// The format of x86 instructions (SDM vol. 2A, chapter 2): bytes in, fields out. Pure: no engine, no memory.
//
// It knows prefixes, opcode maps, ModRM, SIB, displacement, immediate and length. It does not know whether an
// encoding is an instruction. VEX and EVEX are not decoded: the processor announces neither, and both begin
// with an opcode that is undefined where they could stand (LES, LDS and BOUND with a register operand, or
// anywhere in 64-bit code).
#ifndef COREMESH_TCG_X86_DECODE_H
#define COREMESH_TCG_X86_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CM_LONGEST_INSTRUCTION = 15 };

// The code segment's default size, which is also its value in bytes of an operand.
enum cm_code_size { CM_CODE16 = 2, CM_CODE32 = 4, CM_CODE64 = 8 };

enum cm_opcode_map { CM_MAP_1, CM_MAP_0F, CM_MAP_0F38, CM_MAP_0F3A, CM_MAPS };

// Prefixes that stood before the opcode, whether they had an effect or not.
enum {
    CM_PREFIX_LOCK = 1,
    CM_PREFIX_F2 = 2,
    CM_PREFIX_F3 = 4,
    CM_PREFIX_66 = 8,
    CM_PREFIX_67 = 16,
};

// What a prefix selects among the instructions of one opcode (SDM vol. 2A, 2.1.2): the last of F2 and F3 if
// there is one, else 66.
enum cm_mandatory { CM_NO_PREFIX, CM_WITH_66, CM_WITH_F3, CM_WITH_F2 };

enum { CM_NO_REGISTER = -1, CM_RIP = 16 };
enum { CM_NO_SEGMENT = -1, CM_ES, CM_CS, CM_SS, CM_DS, CM_FS, CM_GS };

struct cm_instruction {
    uint8_t length;
    uint8_t map;     // enum cm_opcode_map
    uint8_t opcode;  // the byte after the map's escape
    uint8_t prefixes;
    uint8_t mandatory;  // enum cm_mandatory
    uint8_t rex;        // the REX prefix that counts, or 0
    uint8_t code_size;
    uint8_t operand_bytes;  // 2, 4 or 8: REX.W, 66 and the code size; not what the opcode makes of it
    uint8_t address_bytes;  // 2, 4 or 8
    uint8_t opcode_at;      // number of prefix bytes
    int8_t segment;         // of a segment override, the last one
    bool has_modrm, is_memory;
    uint8_t modrm;
    uint8_t reg, rm;  // with REX.R and REX.B
    // The address of a memory operand: base + (index << scale) + displacement, in its segment.
    int8_t base, index;
    uint8_t scale;
    int8_t operand_segment;  // with the override
    int32_t displacement;
    uint8_t immediate_bytes;
    int64_t immediate;  // sign-extended; of two (ENTER, far pointers) the first
};

enum cm_decoded { CM_DECODED, CM_NEEDS_MORE, CM_TOO_LONG };

// Decodes the instruction at `bytes`, of which `available` may be read. CM_NEEDS_MORE: it is longer than
// that. CM_TOO_LONG: it has more than 15 bytes, which is #GP(0) (SDM vol. 2A, 2.3.11).
enum cm_decoded cm_decode(const uint8_t* bytes, size_t available, enum cm_code_size code,
                          struct cm_instruction* out);

#endif
