# SPDX-License-Identifier: GPL-2.0-or-later
"""Random x87 states and operands, made out of the values at which something happens."""

import numpy as np

ROW = 256  # bytes: an FSAVE image, flags, and at OPERAND the memory operand
CS_AT, FLAGS_AT, OPERAND = 16, 108, 128
OPERAND_BYTES = 128
ALL_MASKED = 0x3F


def extended(sign: int, exponent: int, significand: int) -> bytes:
    """An 80-bit value."""
    return significand.to_bytes(8, "little") + (sign << 15 | exponent).to_bytes(2, "little")


def special_values() -> np.ndarray:
    """80-bit values of every class, those of SDM vol. 1, tables 4-9 and 8-3, and edges of each conversion."""
    top = 1 << 63
    magnitudes = [
        (0, 0),
        (0, 1), (0, top - 1), (0, 0x12345 << 20),  # denormals
        (0, top), (0, top | 1), (0, top | 0x5555),  # pseudo-denormals
        (1, top), (1, top | 1), (2, top), (64, top), (65, top | 7),
        (0x7FFE, 2 * top - 1), (0x7FFE, top), (0x7FFD, top | 99),
        (0x7FFF, top), (0x7FFF, 0), (0x7FFF, 1), (0x7FFF, top - 1),  # infinity, pseudo-infinity, pseudo-NaNs
        (0x7FFF, top | 1), (0x7FFF, top | 1 << 40), (0x7FFF, top | top >> 2),  # signalling NaNs
        (0x7FFF, 3 * top // 2), (0x7FFF, 3 * top // 2 | 1), (0x7FFF, 2 * top - 1),  # quiet NaNs
        (1, 0), (0x3FFF, 1), (0x3FFF, top - 1), (0x7FFE, 0),  # unnormals
        (0x3FFF, top), (0x3FFF, top | 1), (0x3FFF, 2 * top - 1), (0x3FFE, top), (0x3FFE, 2 * top - 1),
        (0x3FFE, top | 1), (0x3FFD, top), (0x3FFD, 0xB504F333F9DE6484), (0x3FFE, 0xB504F333F9DE6484),
        (0x4000, 0xC90FDAA22168C235), (0x3FFF, 0xC90FDAA22168C235), (0x3FFE, 0xC90FDAA22168C235),
        (0x4001, 0xA000000000000000), (0x4002, 0xE800000000000000), (0x3FF0, top), (0x3FDE, top | 5),
        (0x3FBF, top), (0x3FC0, top), (0x3FBE, 2 * top - 1), (0x3FBE, top),
        (0x3F81, top), (0x3F80, 2 * top - 1), (0x3F69, top), (0x3F6A, top), (0x3F6A, top | 1),  # float's tiny
        (0x407E, 0xFFFFFF0000000000), (0x407E, 0xFFFFFF8000000000), (0x407E, 0xFFFFFF7FFFFFFFFF),  # largest
        (0x3C01, top), (0x3C00, 2 * top - 1), (0x3BCD, top), (0x3BCC, top | 1),  # double's tiny
        (0x43FE, 0xFFFFFFFFFFFFF800), (0x43FE, 0xFFFFFFFFFFFFFC00), (0x43FE, 0xFFFFFFFFFFFFFBFF),
        (0x400D, 0xFFFE000000000000), (0x400D, 0xFFFF000000000000), (0x400E, top),
        (0x400E, 0x8000800000000000),
        (0x401D, 0xFFFFFFFE00000000), (0x401D, 0xFFFFFFFF00000000), (0x401E, top),
        (0x401E, 0x8000000080000000),
        (0x403D, 2 * top - 1), (0x403D, 2 * top - 2), (0x403E, top), (0x403E, top | 1), (0x403F, top),
        (0x403A, 0xDE0B6B3A763FFFF0), (0x403A, 0xDE0B6B3A76400000), (0x403A, 0xDE0B6B3A763FFFF8),  # 10^18
        (0x400C, 0xFFF7FFFFFFFFFFFF), (0x400C, 0xFFF8000000000000), (0x401C, 0xCAFEBABE12345678),
        (0x403D, 0xC000000000000001), (0x40FF, 0xC90FDAA22168C235), (0x7000, 0xABCDEF0123456789),
        (0x0010, 0xABCDEF0123456789), (0x3FF0, 0xABCDEF0123456789), (0x400F, 0xABCDEF0123456789),
    ]  # fmt: skip
    values = b"".join(extended(sign, *magnitude) for magnitude in magnitudes for sign in (0, 1))
    return np.frombuffer(values, dtype=np.uint8).reshape(-1, 10)


def random_values(rng: np.random.Generator, count: int) -> np.ndarray:
    """Special ones, normal ones near 1 and each other, and any bits."""
    pool = special_values()
    values = pool[rng.integers(len(pool), size=count)].copy()
    kind = rng.integers(10, size=count)
    near = kind >= 7
    bits = rng.integers(0, 256, size=(count, 10), dtype=np.uint8)
    bits[:, 7] |= 0x80
    exponent = 0x3FFF + rng.integers(-70, 70, size=count)
    bits[:, 8] = exponent & 0xFF
    bits[:, 9] = (exponent >> 8) | (bits[:, 9] & 0x80)
    short = rng.integers(0, 2, size=count, dtype=bool)  # few significant bits, so that results are exact
    bits[short, :6] = 0
    values[near] = bits[near]
    anything = kind == 6
    values[anything] = rng.integers(0, 256, size=(count, 10), dtype=np.uint8)[anything]
    return values


def random_operands(rng: np.random.Generator, count: int) -> np.ndarray:
    """Memory operands: 80-bit values, doubles, floats, integers, decimal digits, and any bits after them."""
    operands = rng.integers(0, 256, size=(count, OPERAND_BYTES), dtype=np.uint8)
    kind = rng.integers(6, size=count)
    operands[:, :10] = np.where((kind == 0)[:, None], random_values(rng, count), operands[:, :10])
    doubles = np.array(
        [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            np.inf,
            -np.inf,
            5e-324,
            2.2250738585072014e-308,
            1.7976931348623157e308,
            0.1,
        ]
    ).view(np.uint64)
    doubles = np.append(
        doubles, np.array([0x7FF0_0000_0000_0001, 0xFFF8_0000_0000_0000, 0x7FF8_0000_0000_1234], np.uint64)
    )
    floats = np.array(
        [0, 1 << 31, 0x3F80_0000, 0xBF80_0000, 1, 0x007F_FFFF, 0x0080_0000, 0x7F7F_FFFF, 0x7F80_0000,
         0xFF80_0000, 0x7F80_0001, 0x7FC0_0000, 0xFFC1_2345, 0x3DCC_CCCD], np.uint32,
    )  # fmt: skip
    integers = np.array(
        [0, 1, -1, 0x7FFF, -0x8000, 0x7FFF_FFFF, -(1 << 31), (1 << 63) - 1, -(1 << 63)], np.int64
    )
    kinds: tuple[tuple[np.ndarray, int], ...] = ((doubles, 8), (floats, 4), (integers, 8))
    for number, (choices, size) in enumerate(kinds, start=1):
        chosen = choices[rng.integers(len(choices), size=count)].view(np.uint8).reshape(count, -1)
        operands[:, :size] = np.where((kind == number)[:, None], chosen[:, :size], operands[:, :size])
    digits = rng.integers(0, 10, size=(count, 9), dtype=np.uint8)
    digits |= rng.integers(0, 10, size=(count, 9), dtype=np.uint8) << 4
    operands[:, :9] = np.where((kind == 4)[:, None], digits, operands[:, :9])
    return operands


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """States and operands. No exception is pending, which the loading FRSTOR would leave for the next one."""
    rows = np.zeros((count, ROW), dtype=np.uint8)
    masks = rng.integers(0, 0x40, size=count)
    masks[rng.random(count) < 0.5] = ALL_MASKED
    one = rng.random(count) < 0.2  # one exception unmasked
    masks[one] = ALL_MASKED & ~(1 << rng.integers(6, size=count))[one]
    control = masks | rng.integers(0, 0x20, size=count) << 8 | 0x40
    control[rng.random(count) < 0.3] |= 0x300
    status = rng.integers(0, 0x10000, size=count) & 0x7F7F
    status &= 0xFFC0 | masks  # flags of masked exceptions only
    tags = rng.integers(0, 0x10000, size=count)
    valid = rng.random(count)
    tags[valid < 0.5] = 0  # all full
    loads = (valid >= 0.5) & (valid < 0.8)  # ST(7) is empty: 3 at R[(TOP + 7) & 7]
    before_top = ((status >> 11) + 7) & 7
    tags[loads] = (3 << 2 * before_top)[loads]
    for at, word in ((0, control), (4, status), (8, tags)):
        rows[:, at] = word & 0xFF
        rows[:, at + 1] = word >> 8
    rows[:, 12:28] = rng.integers(0, 256, size=(count, 16), dtype=np.uint8)
    rows[:, 28:108] = random_values(rng, count * 8).reshape(count, 80)
    arithmetic = 0x8D5
    flags = rng.integers(0, 0x1000, size=count) & arithmetic | 2
    rows[:, FLAGS_AT] = flags & 0xFF
    rows[:, FLAGS_AT + 1] = flags >> 8
    rows[:, OPERAND:] = random_operands(rng, count)
    return rows


def describe(row: np.ndarray) -> str:
    """A row or result for people."""
    data = row.tobytes()
    word = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 28, 4)]
    stack = " ".join(
        f"{int.from_bytes(data[at + 8 : at + 10], 'little'):04x}."
        f"{int.from_bytes(data[at : at + 8], 'little'):016x}"
        for at in range(28, 108, 10)
    )
    flags = int.from_bytes(data[FLAGS_AT : FLAGS_AT + 4], "little")
    return (
        f"cw={word[0] & 0xFFFF:04x} sw={word[1] & 0xFFFF:04x} tw={word[2] & 0xFFFF:04x} "
        f"ip={word[3]:x} cs={word[4]:x} dp={word[5]:x} ds={word[6]:x} flags={flags:x}\n"
        f"      {stack}\n      [{data[OPERAND : OPERAND + 32].hex()}]"
    )
