# SPDX-License-Identifier: GPL-2.0-or-later
"""Values at which processors differ: the ends of ranges, NaNs, denormals, halves that round either way."""

import random
import struct
from typing import Final

WORDS: Final = (
    0, 1, 2, 3, 7, 8, 0x0F, 0x10, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0x81, 0xFE, 0xFF, 0x100, 0x7FFF, 0x8000,
    0x8001, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFE, 0xFFFF_FFFF, 1 << 32,
    (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1,
    0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x0123_4567_89AB_CDEF, 0x8000_0000_8000_0000,
)  # fmt: skip

SINGLES: Final = (
    0, 0x8000_0000, 1, 0x8000_0001, 0x007F_FFFF, 0x807F_FFFF, 0x0080_0000, 0x8080_0000, 0x3F80_0000,
    0xBF80_0000,
    0x3F00_0000, 0x3FC0_0000, 0x4020_0000, 0x3F7F_FFFF, 0x3F80_0001, 0x4B00_0000, 0x4B00_0001, 0x4AFF_FFFF,
    0x4F00_0000, 0xCF00_0000, 0x4EFF_FFFF, 0x5F00_0000, 0xDF00_0000, 0x7F7F_FFFF, 0xFF7F_FFFF, 0x7F00_0000,
    0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0xFFC0_0000, 0x7FC1_2345, 0x7F80_0001, 0xFFA0_0001, 0x7FBF_FFFF,
    0x4049_0FDB, 0x3EAA_AAAB, 0x1F80_0000, 0x5F80_0001, 0x3380_0000, 0x3400_0000,
)  # fmt: skip

DOUBLES: Final = (
    0, 1 << 63, 1, 0x8000_0000_0000_0001, 0x000F_FFFF_FFFF_FFFF, 0x0010_0000_0000_0000, 0x8010_0000_0000_0000,
    0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000, 0x3FE0_0000_0000_0000, 0x3FF8_0000_0000_0000,
    0x4004_0000_0000_0000, 0x3FEF_FFFF_FFFF_FFFF, 0x3FF0_0000_0000_0001, 0x4330_0000_0000_0001,
    0x41DF_FFFF_FFC0_0000, 0x41E0_0000_0000_0000, 0xC1E0_0000_0000_0000, 0xC1E0_0000_0020_0000,
    0x43E0_0000_0000_0000, 0xC3E0_0000_0000_0000, 0x43DF_FFFF_FFFF_FFFF, 0x47EF_FFFF_E000_0000,
    0x47F0_0000_0000_0000, 0x3690_0000_0000_0000, 0x3810_0000_0000_0000, 0x380F_FFFF_F000_0000,
    0x7FEF_FFFF_FFFF_FFFF, 0xFFEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000,
    0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000, 0x7FF8_1234_5678_9ABC, 0x7FF0_0000_0000_0001,
    0xFFF4_0000_0000_0001, 0x4009_21FB_5444_2D18, 0x3FD5_5555_5555_5555, 0x2000_0000_0000_0000,
    0x5FF0_0000_0000_0001, 0x3CA0_0000_0000_0000, 0x3CB0_0000_0000_0000,
)  # fmt: skip

# Sign and exponent, significand: with the kinds that only this format has (SDM vol. 1, 8.2.2 and table 8-3).
EXTENDED: Final = (
    (0, 0), (0x8000, 0), (0, 1), (0x8000, 1), (0, (1 << 63) - 1), (0, 1 << 63), (1, 1 << 63),
    (0x8001, 1 << 63),
    (0x3FFF, 1 << 63), (0xBFFF, 1 << 63), (0x3FFE, 1 << 63), (0x3FFF, 0xC000 << 48), (0x4000, 0xA000 << 48),
    (0x3FFE, (1 << 64) - 1), (0x3FFF, (1 << 63) + 1), (0x4000, 0xC90F_DAA2_2168_C235),
    (0x3FFD, 0xAAAA_AAAA_AAAA_AAAB), (0x403E, 1 << 63), (0xC03E, 1 << 63), (0x403D, (1 << 64) - 1),
    (0x401E, 1 << 63), (0xC01E, 1 << 63), (0x401D, 0xFFFF_FFFF << 32), (0x400E, 1 << 63), (0xC00E, 1 << 63),
    (0x403E, (1 << 64) - 1), (0x407F, 1 << 63), (0x3F69, 1 << 63), (0x3BCD, 1 << 63), (0x43FF, 1 << 63),
    (0x43FE, (1 << 64) - 1), (0x7FFE, (1 << 64) - 1), (0xFFFE, (1 << 64) - 1), (0x7FFF, 1 << 63),
    (0xFFFF, 1 << 63), (0x7FFF, 0xC000 << 48), (0xFFFF, 0xC000 << 48), (0x7FFF, 0xC000_1234_5678_9ABC),
    (0x7FFF, (1 << 63) + 1), (0xFFFF, 0xA000_0000_0000_0001), (0x7FFF, 0), (0x7FFF, 1), (0x3FFF, 1),
    (0x4000, 0x4000 << 48), (0x8123, 0), (0x3FBE, 1 << 63), (0x3FBF, 1 << 63),
    (0x4005, 0x9876_5432_1012_3456),
)  # fmt: skip


def word(r: random.Random) -> int:
    """64 bits: an end of a range, near one, or any."""
    kind = r.random()
    if kind < 0.45:
        return r.choice(WORDS)
    if kind < 0.6:
        return r.choice(WORDS) + r.randrange(-2, 3) & (1 << 64) - 1
    if kind < 0.7:
        return r.getrandbits(r.choice((4, 8, 16, 32)))
    return r.getrandbits(64)


def single(r: random.Random) -> int:
    """The bits of a single-precision number."""
    kind = r.random()
    if kind < 0.6:
        return r.choice(SINGLES)
    if kind < 0.8:  # of moderate size, so that sums and products do not all overflow
        return r.getrandbits(1) << 31 | r.randrange(100, 156) << 23 | r.getrandbits(23)
    return r.getrandbits(32)


def double(r: random.Random) -> int:
    """The bits of a double-precision number."""
    kind = r.random()
    if kind < 0.6:
        return r.choice(DOUBLES)
    if kind < 0.8:
        return r.getrandbits(1) << 63 | r.randrange(990, 1056) << 52 | r.getrandbits(52)
    return r.getrandbits(64)


def extended(r: random.Random) -> bytes:
    """A number of the x87's own format, 10 bytes."""
    kind = r.random()
    if kind < 0.65:
        exponent, significand = r.choice(EXTENDED)
    elif kind < 0.9:
        exponent = r.getrandbits(1) << 15 | r.randrange(0x3FC0, 0x4042)
        significand = 1 << 63 | r.getrandbits(63)
    else:
        exponent, significand = r.getrandbits(16), r.getrandbits(64)
    return struct.pack("<QH", significand, exponent)


def slot(r: random.Random, kind: int) -> bytes:
    """16 bytes of one of the eight kinds that memory is made of."""
    if kind == 0:
        return struct.pack("<QQ", word(r), word(r))
    if kind == 1:
        return struct.pack("<4I", single(r), single(r), single(r), single(r))
    if kind == 2:
        return struct.pack("<2Q", double(r), double(r))
    if kind == 3:
        return extended(r) + r.randbytes(6)
    if kind == 4:
        return r.randbytes(16)
    if kind == 5:
        return b"".join(struct.pack("<H", word(r) & 0xFFFF) for _ in range(8))
    if kind == 6:  # packed decimals, some of them none (SDM vol. 1, 8.1.2)
        digits = bytes(r.randrange(10) | r.randrange(10) << 4 for _ in range(9))
        return digits + bytes((r.choice((0, 0x80, 0x7F)),)) + digits[:6]
    return bytes(r.choice(b"\0abAB\x80\xff") for _ in range(16))


SLOT_OF: Final = {"ss": 1, "ps": 1, "sd": 2, "pd": 2, "t": 3}
"""The kind of slot that an operand of floating point is looked for in."""
