// SPDX-License-Identifier: GPL-2.0-or-later
#include "decode.h"

#include <string.h>

// What follows an opcode, one letter for each of a map's 256 (SDM vol. 2D, appendix A):
// m ModRM; . nothing; b an immediate byte; w two bytes; z two or four by the operand's size; v up to eight;
// j a branch's displacement like z, but four in 64-bit code; o an offset of the address's size; p a far
// pointer; e ENTER's three bytes. Capitals: a ModRM before it. U unary group 3, with an immediate for TEST.
static const char map_1[] =
    "mmmmbz..mmmmbz.."  // 00
    "mmmmbz..mmmmbz.."
    "mmmmbz..mmmmbz.."
    "mmmmbz..mmmmbz.."
    "................"  // 40
    "................"
    "..mm....zZbB...."
    "bbbbbbbbbbbbbbbb"
    "BZBBmmmmmmmmmmmm"  // 80
    "..........p....."
    "oooo....bz......"
    "bbbbbbbbvvvvvvvv"
    "BBw.mmBZe.w..b.."  // C0
    "mmmmbb..mmmmmmmm"
    "bbbbbbbbjjpb...."
    "......UU......mm";

static const char map_0f[] =
    "mmmm.........m.B"  // 00
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "................"
    "mmmmmmmmmmmmmmmm"  // 40
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "BBBBmmm.mmmmmmmm"
    "jjjjjjjjjjjjjjjj"  // 80
    "mmmmmmmmmmmmmmmm"
    "...mBmmm...mBmmm"
    "mmmmmmmmmmBmmmmm"
    "mmBmBBBm........"  // C0
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm"
    "mmmmmmmmmmmmmmmm";

struct reader {
    const uint8_t* bytes;
    size_t at, available;
};

static bool has(const struct reader* r, size_t count) { return r->available - r->at >= count; }

static int64_t take(struct reader* r, unsigned count) {
    uint64_t value = 0;
    memcpy(&value, r->bytes + r->at, count);
    r->at += count;
    const unsigned unused = 64 - 8 * count;
    return count ? (int64_t)(value << unused) >> unused : 0;
}

static bool is_prefix(uint8_t byte, enum cm_code_size code, struct cm_instruction* out) {
    switch (byte) {
        case 0xf0:
            out->prefixes |= CM_PREFIX_LOCK;
            break;
        case 0xf2:
            out->prefixes |= CM_PREFIX_F2;
            out->mandatory = CM_WITH_F2;
            break;
        case 0xf3:
            out->prefixes |= CM_PREFIX_F3;
            out->mandatory = CM_WITH_F3;
            break;
        case 0x66:
            out->prefixes |= CM_PREFIX_66;
            if (out->mandatory == CM_NO_PREFIX) out->mandatory = CM_WITH_66;
            break;
        case 0x67:
            out->prefixes |= CM_PREFIX_67;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            out->segment = (int8_t)(byte >> 3 & 3);
            break;
        case 0x64:
        case 0x65:
            out->segment = (int8_t)(byte & 7);
            break;
        default:
            if (code != CM_CODE64 || (byte & 0xf0) != 0x40) return false;
            out->rex = byte;
            return true;
    }
    out->rex = 0;  // a REX prefix counts only right before the opcode (SDM vol. 2A, 2.2.1)
    return true;
}

static void set_sizes(enum cm_code_size code, struct cm_instruction* out) {
    const bool narrow = out->prefixes & CM_PREFIX_66, other_address = out->prefixes & CM_PREFIX_67;
    if (code == CM_CODE64) {
        out->operand_bytes = out->rex & 8 ? 8 : narrow ? 2 : 4;
        out->address_bytes = other_address ? 4 : 8;
    } else {
        out->operand_bytes = (code == CM_CODE32) != narrow ? 4 : 2;
        out->address_bytes = (code == CM_CODE32) != other_address ? 4 : 2;
    }
}

static bool take_address_16(struct reader* r, unsigned mod, struct cm_instruction* out) {
    enum { BX = 3, BP = 5, SI = 6, DI = 7 };
    static const int8_t bases[8] = {BX, BX, BP, BP, SI, DI, BP, BX};
    static const int8_t indices[8] = {
        SI, DI, SI, DI, CM_NO_REGISTER, CM_NO_REGISTER, CM_NO_REGISTER, CM_NO_REGISTER};
    const unsigned rm = out->modrm & 7;
    const bool absolute = mod == 0 && rm == 6;
    const unsigned count = absolute || mod == 2 ? 2 : mod;
    if (!has(r, count)) return false;
    out->base = absolute ? CM_NO_REGISTER : bases[rm];
    out->index = absolute ? CM_NO_REGISTER : indices[rm];
    out->displacement = (int32_t)take(r, count);
    return true;
}

static bool take_address(struct reader* r, unsigned mod, struct cm_instruction* out) {
    const uint8_t rex = out->rex;
    unsigned base = out->modrm & 7;
    const bool has_sib = base == 4;
    if (has_sib) {
        if (!has(r, 1)) return false;
        const uint8_t sib = (uint8_t)take(r, 1);
        const unsigned index = (sib >> 3 & 7) | (rex & 2) << 2;
        base = sib & 7;
        out->scale = sib >> 6;
        if (index != 4) out->index = (int8_t)index;
    }
    const bool no_base = mod == 0 && base == 5;
    const unsigned count = no_base || mod == 2 ? 4 : mod;
    if (!has(r, count)) return false;
    out->displacement = (int32_t)take(r, count);
    if (!no_base) {
        out->base = (int8_t)(base | (rex & 1) << 3);
    } else if (!has_sib && out->code_size == CM_CODE64) {
        out->base = CM_RIP;
    }
    return true;
}

static void choose_segment(struct cm_instruction* out) {
    enum { SP = 4, BP = 5 };
    const bool on_stack = out->base == SP || out->base == BP;
    out->operand_segment = on_stack ? CM_SS : CM_DS;
    if (out->segment == CM_NO_SEGMENT) return;
    // In 64-bit code the other overrides have no effect (SDM vol. 1, 3.4.4.1).
    if (out->code_size != CM_CODE64 || out->segment >= CM_FS) out->operand_segment = out->segment;
}

static bool take_modrm(struct reader* r, struct cm_instruction* out) {
    if (!has(r, 1)) return false;
    out->modrm = (uint8_t)take(r, 1);
    out->has_modrm = true;
    out->reg = (out->modrm >> 3 & 7) | (out->rex & 4) << 1;
    out->rm = (out->modrm & 7) | (out->rex & 1) << 3;
    const unsigned mod = out->modrm >> 6;
    // MOV to and from control and debug registers takes any mod for 3 (SDM vol. 2B, MOV).
    const bool special = out->map == CM_MAP_0F && out->opcode >= 0x20 && out->opcode <= 0x27;
    if (mod == 3 || special) return true;
    out->is_memory = true;
    if (!(out->address_bytes == 2 ? take_address_16 : take_address)(r, mod, out)) return false;
    choose_segment(out);
    return true;
}

static unsigned immediate_bytes(char kind, const struct cm_instruction* in) {
    const unsigned z = in->operand_bytes == 2 ? 2 : 4;
    switch (kind) {
        case 'b':
        case 'B':
            return 1;
        case 'w':
            return 2;
        case 'z':
        case 'Z':
            return z;
        case 'j':
            return in->code_size == CM_CODE64 ? 4 : z;
        case 'v':
            return in->operand_bytes;
        case 'o':
            return in->address_bytes;
        case 'p':
            return z + 2;
        case 'e':
            return 3;
        case 'U':
            if (in->modrm >> 3 & 6) return 0;
            return in->opcode & 1 ? z : 1;
        default:
            return 0;
    }
}

static bool take_opcode(struct reader* r, struct cm_instruction* out) {
    if (!has(r, 1)) return false;
    out->map = CM_MAP_1;
    out->opcode = (uint8_t)take(r, 1);
    if (out->opcode != 0x0f) return true;
    if (!has(r, 1)) return false;
    out->map = CM_MAP_0F;
    out->opcode = (uint8_t)take(r, 1);
    if (out->opcode != 0x38 && out->opcode != 0x3a) return true;
    if (!has(r, 1)) return false;
    out->map = out->opcode == 0x38 ? CM_MAP_0F38 : CM_MAP_0F3A;
    out->opcode = (uint8_t)take(r, 1);
    return true;
}

static bool take_all(struct reader* r, enum cm_code_size code, struct cm_instruction* out) {
    while (has(r, 1) && is_prefix(r->bytes[r->at], code, out)) r->at++;
    out->opcode_at = (uint8_t)r->at;
    set_sizes(code, out);
    if (!take_opcode(r, out)) return false;
    const char kind = out->map == CM_MAP_1      ? map_1[out->opcode]
                      : out->map == CM_MAP_0F   ? map_0f[out->opcode]
                      : out->map == CM_MAP_0F38 ? 'm'
                                                : 'B';
    const bool modrm = kind == 'm' || (kind >= 'A' && kind <= 'Z');
    if (modrm && !take_modrm(r, out)) return false;
    out->immediate_bytes = (uint8_t)immediate_bytes(kind, out);
    if (!has(r, out->immediate_bytes)) return false;
    const unsigned first = kind == 'e' ? 2 : kind == 'p' ? out->immediate_bytes - 2u : out->immediate_bytes;
    out->immediate = take(r, first);
    r->at += out->immediate_bytes - first;
    return true;
}

enum cm_decoded cm_decode(const uint8_t* bytes, size_t available, enum cm_code_size code,
                          struct cm_instruction* out) {
    const size_t limit = available < CM_LONGEST_INSTRUCTION ? available : CM_LONGEST_INSTRUCTION;
    struct reader r = {.bytes = bytes, .available = limit};
    *out = (struct cm_instruction){.code_size = (uint8_t)code,
                                   .segment = CM_NO_SEGMENT,
                                   .base = CM_NO_REGISTER,
                                   .index = CM_NO_REGISTER,
                                   .operand_segment = CM_DS};
    if (!take_all(&r, code, out)) return limit < CM_LONGEST_INSTRUCTION ? CM_NEEDS_MORE : CM_TOO_LONG;
    out->length = (uint8_t)r.at;
    return CM_DECODED;
}
