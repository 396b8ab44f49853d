// SPDX-License-Identifier: GPL-2.0-or-later
// Host instructions of x86-64, as bytes (SDM vol. 2A chapter 2; opcodes by vol. 2). Registers by number.
#ifndef COREMESH_TCG_EMIT_H
#define COREMESH_TCG_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
enum { SHIFT_ROL = 0, SHIFT_ROR = 1, SHIFT_SHL = 4, SHIFT_SHR = 5, SHIFT_SAR = 7 };
enum { IF_B = 2, IF_AE, IF_E, IF_NE, IF_BE, IF_A, IF_L = 12, IF_GE, IF_LE, IF_G };

typedef struct emitter {
    uint8_t* at;
} emitter;

static inline void emit8(emitter* e, unsigned byte) { *e->at++ = (uint8_t)byte; }

static inline void emit32(emitter* e, uint32_t word) {
    memcpy(e->at, &word, 4);
    e->at += 4;
}

static inline void emit64(emitter* e, uint64_t word) {
    memcpy(e->at, &word, 8);
    e->at += 8;
}

// Operand sizes; W is the REX bit of 64-bit operands. Of byte operands REX must be there for SPL to DIL,
// which are not used, and for R8 on, where it is there anyhow.
enum { NARROW = 0, WIDE = 1, BYTE_REGISTER = 2, HALF = 4 };

static inline void emit_opcode(emitter* e, unsigned opcode, int size, int reg, int index, int base) {
    unsigned rex = (unsigned)((size & WIDE) << 3 | (reg & 8) >> 1 | (index & 8) >> 2 | (base & 8) >> 3);
    if (size & HALF) emit8(e, 0x66);
    if (opcode >> 16) emit8(e, opcode >> 16);
    if (rex || (size & BYTE_REGISTER)) emit8(e, 0x40 | rex);
    if (opcode & 0xff00) emit8(e, (opcode >> 8) & 0xff);
    emit8(e, opcode & 0xff);
}

// opcode reg, rm
static inline void emit_rr(emitter* e, unsigned opcode, int size, int reg, int rm) {
    emit_opcode(e, opcode, size, reg, 0, rm);
    emit8(e, 0xc0 | (unsigned)(reg & 7) << 3 | (unsigned)(rm & 7));
}

// opcode reg, disp(base, index << scale); no index: -1; no base: -1
static inline void emit_rmx(emitter* e, unsigned opcode, int size, int reg, int base, int index, int scale,
                            int32_t disp) {
    emit_opcode(e, opcode, size, reg, index < 0 ? 0 : index, base < 0 ? 0 : base);
    const unsigned r = (unsigned)(reg & 7) << 3;
    if (base < 0) {  // disp32 with an index alone
        emit8(e, r | 4);
        emit8(e, (unsigned)scale << 6 | (unsigned)(index & 7) << 3 | 5);
        emit32(e, (uint32_t)disp);
        return;
    }
    const unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp ? 1 : 2;
    if (index < 0 && (base & 7) != 4) {
        emit8(e, mod << 6 | r | (unsigned)(base & 7));
    } else {
        emit8(e, mod << 6 | r | 4);
        emit8(e, (unsigned)scale << 6 | (index < 0 ? 4u : (unsigned)(index & 7)) << 3 | (unsigned)(base & 7));
    }
    if (mod == 1) emit8(e, (uint8_t)disp);
    if (mod == 2) emit32(e, (uint32_t)disp);
}

static inline void emit_rm(emitter* e, unsigned opcode, int size, int reg, int base, int32_t disp) {
    emit_rmx(e, opcode, size, reg, base, -1, 0, disp);
}

// A three-operand instruction of the BMI sets: dst = op(vvvv, rm), opcode map 0F38.
static inline void emit_vex(emitter* e, unsigned opcode, unsigned prefix, int size, int reg, int vvvv,
                            int rm) {
    emit8(e, 0xc4);
    emit8(e, (reg & 8 ? 0u : 0x80u) | 0x40 | (rm & 8 ? 0u : 0x20u) | 2);
    emit8(e, (unsigned)(size & WIDE) << 7 | (unsigned)(~vvvv & 15) << 3 | prefix);
    emit8(e, opcode);
    emit8(e, 0xc0 | (unsigned)(reg & 7) << 3 | (unsigned)(rm & 7));
}

static inline void emit_mov(emitter* e, int size, int dst, int src) {
    if (dst != src || !(size & WIDE)) emit_rr(e, 0x89, size, src, dst);
}

// Leaves the flags alone.
static inline void emit_mov_imm(emitter* e, int dst, int64_t value) {
    if ((uint64_t)value <= UINT32_MAX) {
        emit_opcode(e, 0xb8 + (unsigned)(dst & 7), NARROW, 0, 0, dst);
        emit32(e, (uint32_t)value);
    } else if (value == (int32_t)value) {
        emit_rr(e, 0xc7, WIDE, 0, dst);
        emit32(e, (uint32_t)value);
    } else {
        emit_opcode(e, 0xb8 + (unsigned)(dst & 7), WIDE, 0, 0, dst);
        emit64(e, (uint64_t)value);
    }
}

static inline void emit_alu(emitter* e, int kind, int size, int dst, int src) {
    emit_rr(e, (unsigned)kind << 3 | 1, size, src, dst);
}

static inline void emit_alu_imm(emitter* e, int kind, int size, int dst, int32_t value) {
    if (value == (int8_t)value) {
        emit_rr(e, 0x83, size, kind, dst);
        emit8(e, (uint8_t)value);
    } else {
        emit_rr(e, 0x81, size, kind, dst);
        emit32(e, (uint32_t)value);
    }
}

static inline void emit_shift_imm(emitter* e, int kind, int size, int dst, unsigned count) {
    emit_rr(e, 0xc1, size, kind, dst);
    emit8(e, count);
}

// Jumps: the displacement's place is returned, to be filled in by emit_patch.
static inline uint8_t* emit_jcc(emitter* e, int condition) {
    emit8(e, 0x0f);
    emit8(e, 0x80 | (unsigned)condition);
    emit32(e, 0);
    return e->at - 4;
}

static inline void emit_patch(uint8_t* place, const uint8_t* target) {
    const int32_t distance = (int32_t)(target - (place + 4));
    memcpy(place, &distance, 4);
}

static inline void emit_jmp(emitter* e, const void* target) {
    emit8(e, 0xe9);
    emit32(e, 0);
    emit_patch(e->at - 4, target);
}

// Clobbers RAX when the function is far away.
static inline void emit_call(emitter* e, const void* function) {
    const intptr_t distance = (const uint8_t*)function - (e->at + 5);
    if (distance == (int32_t)distance) {
        emit8(e, 0xe8);
        emit32(e, (uint32_t)distance);
    } else {
        emit_mov_imm(e, RAX, (int64_t)(uintptr_t)function);
        emit_rr(e, 0xff, NARROW, 2, RAX);
    }
}

#endif
