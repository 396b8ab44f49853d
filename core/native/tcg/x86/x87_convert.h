// SPDX-License-Identifier: GPL-2.0-or-later
// Conversions between the x87's 80-bit format and those of memory, for ordinary values: zero, and numbers
// that are normal in both formats. To read the host's status word costs more than all of this.
//
// Each returns false for a value that is not ordinary, which is for the instruction itself. Those that round
// give the exception flags and C1 (whether it was rounded up) as the status word has them.
#ifndef COREMESH_TCG_X86_X87_CONVERT_H
#define COREMESH_TCG_X86_X87_CONVERT_H

#include "x87.h"

// RC of the control word (SDM vol. 1, table 4-8)
enum { ROUND_NEAREST, ROUND_DOWN, ROUND_UP, ROUND_TO_ZERO };

static inline unsigned x87_rounding(const CPUX86State* env) { return env->fpuc >> 10 & 3; }

static inline bool x87_is_zero(floatx80 value) { return !(value.high & 0x7fff) && !value.low; }

// `rest` is what does not fit, as a fraction of the last bit that does: half of it is 2^63.
static inline bool x87_rounds_up(uint64_t kept, uint64_t rest, bool negative, unsigned rounding) {
    const uint64_t half = UINT64_C(1) << 63;
    switch (rounding) {
        case ROUND_NEAREST:
            return rest > half || (rest == half && (kept & 1));
        case ROUND_DOWN:
            return rest && negative;
        case ROUND_UP:
            return rest && !negative;
        default:
            return false;
    }
}

static inline uint16_t x87_rounding_status(uint64_t rest, bool up) {
    return (uint16_t)((rest ? FSW_PE : 0) | (up ? FSW_C1 : 0));
}

// A float or double, its bits in the low ones of `bits`.
static inline bool x87_from_format(uint64_t bits, unsigned fraction_bits, unsigned exponent_bits,
                                   floatx80* value) {
    const unsigned special = (1u << exponent_bits) - 1, bias = 0x3fff - (special >> 1);
    const unsigned exponent = bits >> fraction_bits & special;
    const uint64_t fraction = bits << (64 - fraction_bits) >> 1;
    value->high = (uint16_t)(bits >> (fraction_bits + exponent_bits) << 15);
    value->low = 0;
    if (exponent == special || (exponent == 0 && fraction)) return false;
    if (exponent == 0) return true;
    value->high |= (uint16_t)(exponent + bias);
    value->low = UINT64_C(1) << 63 | fraction;
    return true;
}

static inline bool x87_to_format(floatx80 value, unsigned fraction_bits, unsigned exponent_bits,
                                 unsigned rounding, uint64_t* bits, uint16_t* status) {
    const unsigned special = (1u << exponent_bits) - 1, bias = 0x3fff - (special >> 1);
    const unsigned exponent = (value.high & 0x7fffu) - bias;  // in the new format; below 1 it wraps
    const bool negative = value.high >> 15;
    const uint64_t sign = (uint64_t)negative << (fraction_bits + exponent_bits);
    *bits = sign;
    *status = 0;
    if (x87_is_zero(value)) return true;
    // The largest binade may overflow when rounded.
    if (exponent - 1 >= special - 2 || !(value.low >> 63)) return false;
    const uint64_t kept = value.low >> (63 - fraction_bits), rest = value.low << (fraction_bits + 1);
    const bool up = x87_rounds_up(kept, rest, negative, rounding);
    *bits =
        sign + ((uint64_t)(exponent - 1) << fraction_bits) + kept + up;  // with the leading 1, and its carry
    *status = x87_rounding_status(rest, up);
    return true;
}

// To a signed integer of `size` bits.
static inline bool x87_to_integer(floatx80 value, unsigned size, unsigned rounding, int64_t* integer,
                                  uint16_t* status) {
    const unsigned shift = 0x3fff + 63 - (value.high & 0x7fffu);  // wraps above 2^64
    const bool negative = value.high >> 15;
    *integer = 0;
    *status = 0;
    if (x87_is_zero(value)) return true;
    if (!(value.low >> 63) || shift - 1 >= 0x3fff + 62) return false;
    const uint64_t kept = shift < 64 ? value.low >> shift : 0;
    const uint64_t rest = shift < 64 ? value.low << (64 - shift) : shift == 64 ? value.low : 1;
    const bool up = x87_rounds_up(kept, rest, negative, rounding);
    const uint64_t magnitude = kept + up;
    if (magnitude > (UINT64_C(1) << (size - 1)) - !negative) return false;
    *integer = (int64_t)(negative ? -magnitude : magnitude);
    *status = x87_rounding_status(rest, up);
    return true;
}

#endif
