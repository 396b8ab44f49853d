// SPDX-License-Identifier: GPL-2.0-or-later
// PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM in plain C, for hosts without SSE4.2 (SDM vol. 2B 4.1).
// No header of the engine: tests compare this with the host's own instructions.
#ifndef COREMESH_TCG_X86_STRING_COMPARE_H
#define COREMESH_TCG_X86_STRING_COMPARE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define STRING_WORDS 0x01    // elements of 16 bits; 8 otherwise
#define STRING_SIGNED 0x02   // signed elements
#define STRING_NEGATE 0x10   // of the polarity
#define STRING_VALID 0x20    // ... negate only where the second string is valid
#define STRING_HIGHEST 0x40  // the index of the highest bit; for a mask, one element for each bit
#define STRING_CF 0x001
#define STRING_ZF 0x040
#define STRING_SF 0x080
#define STRING_OF 0x800

struct string_comparison {
    uint32_t index;    // for ECX
    uint32_t flags;    // CF, ZF, SF, OF as in RFLAGS; AF and PF are cleared
    uint8_t mask[16];  // for XMM0
};

static inline int string_element(const uint8_t text[16], unsigned imm, unsigned at) {
    if (imm & STRING_WORDS) {
        uint16_t word;
        memcpy(&word, text + 2 * at, sizeof word);
        return imm & STRING_SIGNED ? (int16_t)word : word;
    }
    return imm & STRING_SIGNED ? (int8_t)text[at] : text[at];
}

// An explicit length is taken as its absolute value and saturated. Compared without a negation: there is no
// positive number for the smallest one.
static inline unsigned string_explicit_length(int64_t length, unsigned imm) {
    const int64_t most = imm & STRING_WORDS ? 8 : 16;
    if (length >= most || length <= -most) return (unsigned)most;
    return (unsigned)(length < 0 ? -length : length);
}

static inline unsigned string_implicit_length(const uint8_t text[16], unsigned imm) {
    const unsigned most = imm & STRING_WORDS ? 8 : 16;
    unsigned length = 0;
    while (length < most && string_element(text, imm, length)) length++;
    return length;
}

// One bit of the second string's element `j`: the aggregation of the comparisons, where what is invalid
// counts as the table says (SDM vol. 2B 4.1.6).
static inline bool string_aggregate(const uint8_t a[16], const uint8_t b[16], unsigned a_length,
                                    unsigned b_length, unsigned imm, unsigned j) {
    const unsigned most = imm & STRING_WORDS ? 8 : 16;
    const int other = string_element(b, imm, j);
    bool holds = false;
    switch (imm >> 2 & 3) {
        case 0:  // equal any
            for (unsigned i = 0; j < b_length && i < a_length; i++) {
                holds |= string_element(a, imm, i) == other;
            }
            return holds;
        case 1:  // ranges
            for (unsigned i = 0; j < b_length && i + 1 < a_length; i += 2) {
                holds |= string_element(a, imm, i) <= other && other <= string_element(a, imm, i + 1);
            }
            return holds;
        case 2:  // equal each
            if (j < a_length && j < b_length) return string_element(a, imm, j) == other;
            return j >= a_length && j >= b_length;
        default:  // equal ordered
            for (unsigned i = 0; i < a_length && i + j < most; i++) {
                if (i + j >= b_length || string_element(a, imm, i) != string_element(b, imm, i + j)) {
                    return false;
                }
            }
            return true;
    }
}

// `a` is the first operand, `b` the second; lengths are valid elements, at most 8 or 16.
static inline struct string_comparison string_compare(const uint8_t a[16], const uint8_t b[16],
                                                      unsigned a_length, unsigned b_length, unsigned imm) {
    struct string_comparison out;
    memset(&out, 0, sizeof out);
    const unsigned most = imm & STRING_WORDS ? 8 : 16, all = (1u << most) - 1;
    unsigned bits = 0;
    for (unsigned j = 0; j < most; j++) {
        bits |= (unsigned)string_aggregate(a, b, a_length, b_length, imm, j) << j;
    }
    if (imm & STRING_NEGATE) bits ^= imm & STRING_VALID ? (1u << b_length) - 1 : all;
    out.index = most;
    if (bits) {
        out.index = imm & STRING_HIGHEST ? 31 - (unsigned)__builtin_clz(bits) : (unsigned)__builtin_ctz(bits);
    }
    out.flags = (bits ? STRING_CF : 0) | (b_length < most ? STRING_ZF : 0) |
                (a_length < most ? STRING_SF : 0) | (bits & 1 ? STRING_OF : 0);
    if (imm & STRING_HIGHEST) {
        const unsigned size = 16 / most;
        for (unsigned j = 0; j < most; j++) memset(out.mask + j * size, bits >> j & 1 ? 0xff : 0, size);
    } else {
        out.mask[0] = (uint8_t)bits, out.mask[1] = (uint8_t)(bits >> 8);
    }
    return out;
}

#endif
