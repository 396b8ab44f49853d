# SPDX-License-Identifier: GPL-2.0-or-later
"""Random code that a hostile guest might run: bytes by the shape of an instruction, and what only a kernel
does.

A block is a few instructions for one mode of the processor. Most instructions are drawn by shape: prefixes,
an
opcode of any map, operands. Some come from a list of system instructions with operands that matter, and some
change the code that follows them. What is drawn depends on the ``random.Random`` that is given, and nothing
else.
"""

import random
import struct
from collections.abc import Callable

MODES = (
    LONG,
    LONG_USER,
    COMPATIBILITY_USER,
    COMPATIBILITY,
    PROTECTED,
    PAGED,
    PAGED_USER,
    VIRTUAL_8086,
    CODE16,
    REAL,
) = tuple(range(10))
MODE_WEIGHTS = (34, 20, 8, 6, 8, 6, 6, 4, 3, 5)
ADDRESSES_16_BIT = (VIRTUAL_8086, CODE16, REAL)

PREFIXES = (0x66, 0x66, 0x66, 0xF2, 0xF2, 0xF3, 0xF3, 0xF0, 0xF0, 0x67, 0x64, 0x65, 0x2E, 0x36, 0x3E, 0x26)
MSRS = (
    0x10, 0x1B, 0x3A, 0x3B, 0x79, 0x8B, 0xC1, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x17B, 0x186, 0x1A0,
    0x1D9,
    0x200, 0x20F, 0x210, 0x250, 0x26F, 0x277, 0x2FF, 0x309, 0x38F, 0x400, 0x403, 0x47F, 0x570, 0x6E0,
    0x800, 0x802,
    0x808, 0x80B, 0x80D, 0x80F, 0x810, 0x828, 0x830, 0x832, 0x838, 0x839, 0x83E, 0x83F, 0x8FF, 0xDA0,
    0x4000_0000,
    0xC000_0080, 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101,
    0xC000_0102, 0xC000_0103, 0xC001_0015, 0xC001_0114, 0xC001_0117,
)  # fmt: skip
PORTS = (0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0xA0, 0xA1, 0x3F8, 0x3FB, 0x4D0,
    0x600, 0x604,
         0x608, 0xCF8, 0xCF9, 0xCFC, 0xF4, 0xFFFF, 0xFFFE)  # fmt: skip
APIC_REGISTERS = (0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x270,
    0x280, 0x2F0,
                  0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0, 0x3F0,
                  0xFF0)  # fmt: skip
# Delivery mode, destination shorthand and the rest of an interrupt command (SDM vol. 3A 11.6.1): fixed,
# NMI, INIT
# and start-up, to itself, to all, to others, to one.
COMMANDS = (0x000C4400, 0x000C4400, 0x00004400, 0x00084400, 0x00004500, 0x000C4608, 0x00004608, 0x000040FF,
            0x00044041, 0x000C4041, 0x00084041, 0x00004100, 0x00004200, 0x00004700, 0x0000C500)  # fmt: skip


def _u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFF_FFFF)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF)


def _immediate(rng: random.Random, values: list[int]) -> bytes:
    kind = rng.getrandbits(3)
    if kind < 3:
        return _u32(rng.getrandbits(8) if kind else 0)
    if kind < 6:
        return _u32(values[rng.getrandbits(8)])
    return rng.randbytes(4)


def instruction(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """One instruction drawn by its shape; the operands may turn out longer or shorter than it takes."""
    code = bytearray()
    bits = rng.getrandbits(16)
    if bits & 7 < 3:
        code.append(PREFIXES[bits >> 3 & 15])
        if bits & 0x300 == 0:
            code.append(PREFIXES[bits >> 12])
    if mode <= LONG_USER and rng.getrandbits(1):
        code.append(0x48 if bits & 0x80 else 0x40 | bits >> 12)
    page = rng.getrandbits(5)
    if page >= 16:
        code.append(rng.getrandbits(8))
    else:
        code.append(0x0F)
        if page < 3:
            code.append(0x38)
        elif page < 5:
            code.append(0x3A)
        code.append(rng.getrandbits(8))
    shape = rng.getrandbits(8)
    modrm = rng.getrandbits(8)
    if shape & 3 == 0:
        modrm |= 0xC0
    elif shape & 3 < 3:
        modrm &= 0x3F
    code.append(modrm)
    if modrm < 0xC0 and modrm & 7 == 4:
        code.append(rng.getrandbits(8))
    if shape & 0x1C:
        code += _immediate(rng, values)
        if shape & 0x80:
            code += _immediate(rng, values)[: 1 + (shape >> 5 & 3)]
    return bytes(code)


def _set(register: int, value: int, mode: int) -> bytes:
    """MOV of a constant to EAX, ECX, EDX or EBX (0..3), in any mode."""
    if mode in ADDRESSES_16_BIT:
        return b"\x66" + bytes((0xB8 + register,)) + _u32(value)
    if mode <= LONG_USER and value >> 32:
        return b"\x48" + bytes((0xB8 + register,)) + _u64(value)
    return bytes((0xB8 + register,)) + _u32(value)


def _msr(rng: random.Random, mode: int, values: list[int]) -> bytes:
    number = rng.choice(MSRS) if rng.getrandbits(3) else rng.getrandbits(32)
    if rng.getrandbits(1):
        return _set(1, number, mode) + b"\x0f\x32"
    value = rng.choice(values) if rng.getrandbits(2) else rng.getrandbits(64)
    return (
        _set(1, number, mode) + _set(0, value & 0xFFFF_FFFF, mode) + _set(2, value >> 32, mode) + b"\x0f\x30"
    )


def _control(rng: random.Random, mode: int, values: list[int]) -> bytes:
    register = rng.choice((0, 0, 0, 2, 2, 4, 4, 4, 8, 8, 8, rng.getrandbits(4)))
    general = rng.getrandbits(2)
    rex = b"\x44" if register >= 8 and mode <= LONG_USER else b""
    move = rex + bytes((0x0F, rng.choice((0x20, 0x22, 0x22)), 0xC0 | (register & 7) << 3 | general))
    kind = rng.getrandbits(2)
    if kind == 0:
        return _set(general, rng.choice(values), mode) + move
    # One bit changed: what most of the checks are about.
    read = rex + bytes((0x0F, 0x20, 0xC0 | (register & 7) << 3 | general))
    operand = b"\x66" if mode in ADDRESSES_16_BIT else b""
    flip = operand + b"\x0f\xba" + bytes((0xF8 | general, rng.getrandbits(5)))
    return read + flip + move


def _paging(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """CR3 at a place of the guest's; most often what was there comes back, or no vCPU would live long."""
    if rng.getrandbits(3):
        return b"\x0f\x20\xd8\x0f\x22\xd8\x0f\x01\x38"
    return _set(0, rng.choice(values) & ~0xFFF & 0xFFFF_FFFF_FFFF, mode) + b"\x0f\x22\xd8"


def _debug(rng: random.Random, mode: int, values: list[int]) -> bytes:
    register, general = rng.getrandbits(3), rng.getrandbits(2)
    value = (
        rng.choice(values)
        if register < 4
        else rng.choice((0x2AA, 0x333_03FF, 0x1111_02AA, 0x2000, rng.getrandbits(32)))
    )
    return _set(general, value, mode) + bytes(
        (0x0F, rng.choice((0x21, 0x23, 0x23)), 0xC0 | register << 3 | general)
    )


def _port(rng: random.Random, mode: int, values: list[int]) -> bytes:
    port = rng.choice(PORTS) if rng.getrandbits(2) else rng.getrandbits(16)
    access = rng.choice(
        (
            b"\xec",
            b"\xed",
            b"\x66\xed",
            b"\xee",
            b"\xef",
            b"\x66\xef",
            b"\x6c",
            b"\x6e",
            b"\xf3\x6c",
            b"\xf3\x6f",
        )
    )
    repeated = _set(1, rng.getrandbits(6), mode) if access[0] == 0xF3 else b""
    return _set(2, port, mode) + repeated + access


def _apic(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """A register of the local APIC through its page, most often the interrupt command."""
    if mode in ADDRESSES_16_BIT:
        return _msr(rng, mode, values)
    where = rng.choice(APIC_REGISTERS) if rng.getrandbits(1) else 0x300
    value = rng.choice(COMMANDS) if where == 0x300 else rng.choice(values)
    address = _set(2, 0xFEE0_0000 | where, mode)
    if rng.getrandbits(3) == 0:
        return address + rng.choice((b"\x8b\x02", b"\x8a\x42\x01", b"\xf0\x0f\xc1\x02", b"\x0f\x10\x02"))
    before = b""
    if where == 0x300:
        before = _set(2, 0xFEE0_0310, mode) + b"\xc7\x02" + _u32(rng.getrandbits(6) << 24)
    return before + address + b"\xc7\x02" + _u32(value)


def _tables(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """LGDT, LIDT, LLDT, LTR, segment loads, far calls, through memory or with a random selector."""
    kind = rng.getrandbits(3)
    selector = rng.choice((0, 4, 8, 0x10, 0x18, 0x2B, 0x33, 0x3B, 0x40, 0x43, 0x50, 0x58, 0x68, 0x70, 0x80,
    0x98, 0xA3,
                           0xA8, 0xB0, 0xB8, rng.getrandbits(16)))  # fmt: skip
    if kind == 0:
        # SGDT and SIDT four times as often as LGDT and LIDT, after which most machines end.
        store = rng.getrandbits(2)
        return bytes(
            (0x0F, 0x01, (rng.getrandbits(1) << 3 | rng.choice((0, 1, 2, 3))) | (0 if store else 0x10))
        )
    if kind == 1:
        return _set(0, selector, mode) + bytes((0x0F, 0x00, 0xC0 | rng.getrandbits(3) << 3))
    if kind < 5:
        return _set(0, selector, mode) + bytes((0x8E, 0xC0 | rng.choice((0, 2, 3, 4, 5, 1)) << 3))
    if kind == 5:
        return bytes((0xFF, rng.choice((0x18, 0x28, 0x19, 0x29, 0x1B, 0x2F))))
    if kind == 6 and mode not in (LONG, LONG_USER):
        width = 2 if mode in ADDRESSES_16_BIT else 4
        target = (rng.choice(values) & 0xFFFF_FFFF).to_bytes(4, "little")[:width]
        return bytes((rng.choice((0x9A, 0xEA)),)) + target + selector.to_bytes(2, "little")
    push = b"\x6a" + bytes((selector & 0x7F,))
    rex = b"\x48" if mode <= LONG_USER and rng.getrandbits(1) else b""
    return push + push + push + rex + rng.choice((b"\xcb", b"\xcf", b"\xca\x08\x00"))


def _event(rng: random.Random, mode: int, values: list[int]) -> bytes:
    return rng.choice(
        (b"\xcc", b"\xce", b"\xf1", b"\xf4", b"\xfa\xf4", b"\xfb\xf4", b"\xfa", b"\xfb", b"\x0f\x05",
        b"\x0f\x07",
         b"\x48\x0f\x07", b"\x0f\x34", b"\x0f\x35", b"\x48\x0f\x35", b"\x0f\x01\xf8", b"\x0f\x01\xf9",
         b"\x0f\x01\xc8",
         b"\x0f\x01\xc9", b"\x0f\x01\xd0", b"\x0f\x01\xd1", b"\x0f\x06", b"\x0f\x08", b"\x0f\x09",
         b"\x0f\x0b",
         b"\x0f\xaa", b"\x0f\x31", b"\x0f\x33", b"\x0f\xa2", b"\x9c\x9d", b"\x68\x00\x4d\x00\x00\x9d",
         b"\x9c\x80\x0c\x24\x01\x9d", b"\x9c\x80\x4c\x24\x01\x01\x9d", b"\x9c\x80\x4c\x24\x02\x04\x9d",
         b"\xeb\xfe", b"\xf3\x90", bytes((0xCD, rng.getrandbits(8))), bytes((0x0F, 0x01, rng.getrandbits(8))))
    )  # fmt: skip


def _float(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """x87 and its stack, and the areas of FXSAVE and XSAVE."""
    kind = rng.getrandbits(3)
    if kind < 5:
        return bytes((0xD8 + rng.getrandbits(3), rng.getrandbits(8) | (0xC0 if kind < 3 else 0)))
    rex = b"\x48" if mode <= LONG_USER and rng.getrandbits(1) else b""
    return rex + bytes((0x0F, 0xAE, rng.getrandbits(6)))


def _string(rng: random.Random, mode: int, values: list[int]) -> bytes:
    count = rng.choice((0, 1, 3, 200, 5000, 0x7FFF_FFFF, 0xFFFF_FFFF))
    prefix = rng.choice((b"\xf3", b"\xf2", b"\xf3\x66", b"\xf3\x67", b""))
    rex = b"\x48" if mode <= LONG_USER and rng.getrandbits(1) else b""
    operation = rng.choice((0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF))
    direction = rng.choice((b"", b"", b"\xfd"))
    return _set(1, count, mode) + direction + prefix + rex + bytes((operation,))


def _vector(rng: random.Random, mode: int, values: list[int]) -> bytes:
    """The instructions with an immediate that chooses: strings, shuffles, extracts."""
    prefix = rng.choice((b"\x66", b"\x66", b"\x66", b"\xf2", b"\xf3", b""))
    rex = bytes((0x40 | rng.getrandbits(4),)) if mode <= LONG_USER and rng.getrandbits(1) else b""
    operand = rng.choice((0xC0 | rng.getrandbits(6), rng.getrandbits(6) & 0x3B))
    kind = rng.getrandbits(2)
    if kind == 0:
        return (
            _set(0, rng.choice(values), mode) + _set(2, rng.choice((0x8000_0000, 0x7FFF_FFFF, 5,
            rng.getrandbits(32))), mode)
            + prefix + rex + b"\x0f\x3a" + bytes((0x60 + rng.getrandbits(2), operand, rng.getrandbits(8)))
        )  # fmt: skip
    if kind == 1:
        return prefix + rex + b"\x0f\x3a" + bytes((rng.getrandbits(6) & 0x2F, operand, rng.getrandbits(8)))
    if kind == 2:
        opcode = rng.choice(
            (0x70, 0x71, 0x72, 0x73, 0xC2, 0xC4, 0xC5, 0xC6, 0xF7, 0xE7, 0x2B, 0x12, 0x16, 0x17)
        )
        return prefix + rex + b"\x0f" + bytes((opcode, operand, rng.getrandbits(8)))
    return (
        prefix
        + rex
        + b"\x0f\x38"
        + bytes((rng.getrandbits(6) if rng.getrandbits(2) else rng.getrandbits(8), operand))
    )


def _own_code(rng: random.Random, mode: int, at: int) -> bytes:
    """A store into the code that follows: plain, exchanged, locked or wide; near, or over a page's end."""
    distance = rng.choice((0, 0, 1, 2, 3, 5, 8, 16, 64, 0x1000 - (at & 0xFFF) & 0xFFF))
    store = rng.choice(
        (b"\xc6\x05", b"\x88\x05", b"\x89\x05", b"\x87\x05", b"\xf0\x0f\xba\x2d", b"\xf0\x01\x05",
        b"\x0f\x11\x05",
         b"\x66\x0f\x7f\x05", b"\xdd\x3d", b"\xdf\x35", b"\x0f\xae\x05", b"\xf0\x0f\xc7\x0d", b"\x8f\x05",
         b"\x0f\xae\x1d",
         b"\xf0\x31\x05", b"\xdb\x3d", b"\x0f\x01\x05", b"\xd9\x35", b"\xdd\x35")
    )  # fmt: skip
    immediate = bytes((rng.getrandbits(8),)) if store in (b"\xc6\x05", b"\xf0\x0f\xba\x2d") else b""
    length = len(store) + 4 + len(immediate)
    if mode in ADDRESSES_16_BIT:
        return (
            store[:-1]
            + bytes((store[-1] + 1,))
            + ((at + length + distance) & 0xFFFF).to_bytes(2, "little")
            + immediate
        )
    where = distance if mode <= LONG_USER else at + length + distance
    return store + _u32(where) + immediate


SYSTEM: tuple[tuple[int, Callable[[random.Random, int, list[int]], bytes]], ...] = (
    (10, _msr), (10, _control), (1, _paging), (5, _debug), (8, _port), (7, _apic), (8, _tables), (10,
    _event), (8, _float),
    (6, _string), (10, _vector),
)  # fmt: skip
_SYSTEM_WEIGHTS = [weight for weight, _ in SYSTEM]
_SYSTEM_KINDS = [kind for _, kind in SYSTEM]
# Rings above 0 gain little from what #GP refuses.
_REFUSED: dict[Callable[[random.Random, int, list[int]], bytes], int] = {
    _msr: 1, _control: 1, _paging: 0, _debug: 1, _port: 2, _apic: 1,
}  # fmt: skip
_USER_WEIGHTS = [_REFUSED.get(kind, weight) for weight, kind in SYSTEM]


def block(rng: random.Random, mode: int, at: int, values: list[int]) -> bytes:
    """A block for ``mode`` that will stand at ``at``: random bytes, or one to eight instructions."""
    if rng.getrandbits(4) == 0:
        return rng.randbytes(1 + rng.getrandbits(5))
    code = bytearray()
    user = mode in (LONG_USER, COMPATIBILITY_USER, PAGED_USER, VIRTUAL_8086)
    weights = _USER_WEIGHTS if user else _SYSTEM_WEIGHTS
    for _ in range(1 + rng.getrandbits(3)):
        kind = rng.getrandbits(4)
        if kind < 4:
            code += rng.choices(_SYSTEM_KINDS, weights)[0](rng, mode, values)
        elif kind == 4:
            code += _own_code(rng, mode, at + len(code))
        else:
            code += instruction(rng, mode, values)
    return bytes(code)


GROUPS = {
    b"": (0x80, 0x81, 0x82, 0x83, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7, *range(0xD0, 0xD4), *range(0xD8, 0xE0),
    0xF6, 0xF7, 0xFE, 0xFF),
    b"\x0f": (0x00, 0x01, 0x18, 0x71, 0x72, 0x73, 0xAE, 0xBA, 0xC7),
}  # fmt: skip
"""Opcodes of which ModRM.reg is a part, as coverage.c has them."""


def sweep() -> list[tuple[int, bytes]]:
    """Each kind of instruction once, in 64-bit and in 32-bit code: what could be covered translates here."""
    found: list[tuple[int, bytes]] = []
    for escape in (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"):
        prefixes = (b"",) if not escape else (b"", b"\x66", b"\xf3", b"\xf2")
        for opcode in range(256):
            for prefix in prefixes:
                for reg in range(8) if opcode in GROUPS.get(escape, ()) else (0,):
                    for modrm in (0x03 | reg << 3, 0xC1 | reg << 3):
                        code = prefix + escape + bytes((opcode, modrm)) + bytes(10)
                        found += [(LONG, code), (PROTECTED, code)]
    return found
