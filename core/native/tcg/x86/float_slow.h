// SPDX-License-Identifier: GPL-2.0-or-later
// One SSE instruction with some exception unmasked, and its #XM. Private to the float files.
#ifndef COREMESH_TCG_X86_FLOAT_SLOW_H
#define COREMESH_TCG_X86_FLOAT_SLOW_H

#include <immintrin.h>
#include <stdint.h>

// MXCSR (SDM vol. 1, 10.2.3)
enum {
    MX_IE = 1 << 0,
    MX_DE = 1 << 1,
    MX_ZE = 1 << 2,
    MX_OE = 1 << 3,
    MX_UE = 1 << 4,
    MX_PE = 1 << 5,
    MX_FLAGS = 0x3f,
    MX_DAZ = 1 << 6,
    MX_MASKS = 0x1f80,
    MX_MASK_SHIFT = 7,
    MX_RC_SHIFT = 13,
    MX_FZ = 1 << 15,
    MX_DEFAULT = MX_MASKS,
    MX_VALID = 0xffff,
    MX_CONTROLS = MX_VALID & ~MX_FLAGS,
};

// What an instruction computes in each element, as far as it matters when overflow or underflow is unmasked.
typedef enum {
    RESULT_EXACT_RANGE,
    RESULT_ADD,
    RESULT_SUB,
    RESULT_MUL,
    RESULT_DIV,
    RESULT_ADDSUB,
    RESULT_HADD,
    RESULT_HSUB,
    RESULT_NARROW
} ResultKind;

typedef __m128 (*VectorOp)(__m128 d, __m128 s);
typedef int64_t (*IntegerOp)(__m128 d, __m128 s);

// What the slow path knows of an instruction with an XMM or MMX result.
typedef struct {
    VectorOp run;
    uint8_t result_bytes;   // of the destination, from its low end
    uint8_t element_bytes;  // 4 or 8: the size of a computed element
    uint8_t kind;           // ResultKind
} SlowVector;

struct CPUX86State;

// Both return only if no unmasked exception was raised; the destination is untouched otherwise. `ra` is the
// return address into translated code, from which the engine finds the instruction.
void cm_float_slow_vector(struct CPUX86State* env, const SlowVector* op, void* dest, __m128 d, __m128 s,
                          uintptr_t ra);
int64_t cm_float_slow_integer(struct CPUX86State* env, IntegerOp run, __m128 d, __m128 s, uintptr_t ra);

static inline uint32_t host_mxcsr(void) {
    uint32_t value;
    __asm__ volatile("stmxcsr %0" : "=m"(value));
    return value;
}

// A reserved bit would be #GP in this process. Where the guest's value comes from it has none
// (float_control.c); this is the second look, for the process.
static inline void set_host_mxcsr(uint32_t value) {
    value &= MX_VALID;
    __asm__ volatile("ldmxcsr %0" : : "m"(value));
}

#endif
