# SPDX-License-Identifier: GPL-2.0-or-later
"""Every opcode in every form, a block each: to see which of them a processor refuses."""

from collections.abc import Iterator, Sequence
from typing import Final

from block_layout import (
    CODE32,
    CODE64,
    CODE_BASE,
    CODE_PAGES,
    DATA_BASE,
    DATA_PAGES,
    FXSAVE_BYTES,
    PAGE,
    Block,
    Instruction,
    code_is_mapped,
)

ESCAPES: Final = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
ONE_BYTE: Final = (
    "mmmm....mmmm...." * 4
    + "." * 32
    + "..mm.....m.m...."
    + "." * 16
    + "m" * 16
    + "." * 48
    + "mm..mmmm........"
    + "mmmm....mmmmmmmm"
    + "." * 16
    + "......mm......mm"
)
TWO_BYTES: Final = (
    "mmmm.........m.m"
    + "m" * 32
    + "." * 16
    + "m" * 48
    + "mmmmmmm.mmmmmmmm"
    + "." * 16
    + "m" * 16
    + "...mmmmm...mmmmm"
    + "m" * 16
    + "mmmmmmmm........"
    + "m" * 48
)
"""Which opcodes have ModRM (SDM vol. 2D, appendix A)."""

PREFIX_BYTES: Final = frozenset(b"\xf0\xf2\xf3\x26\x2e\x36\x3e\x64\x65\x66\x67")
VECTOR_EXTENSIONS: Final = frozenset(b"\xc4\xc5\x62")
"""What begins with these is decoded further where AVX is known, and ends who knows where."""
SYSTEM_CALLS: Final = frozenset((0x05, 0x34))
HYPERCALLS: Final = frozenset((0xC1, 0xD9))
NOWHERE: Final = DATA_BASE + 0x140
"""Where all registers point: to a page that is missing, since #UD goes before what an operand raises."""

Encoding = bytes


def _forms(escape: bytes, opcode: int) -> Iterator[bytes]:
    modrm = {b"": ONE_BYTE, b"\x0f": TWO_BYTES}.get(escape, "m" * 256)[opcode] == "m"
    if not modrm:
        yield b""
        return
    many = (escape, opcode) in ((b"\x0f", 0x01), (b"\x0f", 0xAE)) or (not escape and 0xD8 <= opcode <= 0xDF)
    registers = range(0xC0, 0x100) if many else range(0xC1, 0x100, 8)
    for byte in (*range(0, 0x40, 8), *registers):
        if (escape, opcode) != (b"\x0f", 0x01) or byte not in HYPERCALLS:
            yield bytes((byte,))


def encodings(prefix: bytes, bits: int) -> Iterator[Encoding]:
    """Prefix, opcode and ModRM of all there are, but for system calls and what would not come back."""
    for escape in ESCAPES:
        for opcode in range(256):
            if not escape and (opcode in PREFIX_BYTES or opcode in VECTOR_EXTENSIONS or opcode == 0x0F):
                continue
            if not escape and (opcode in (0xCD, 0xF4) or (bits == 64 and opcode >> 4 == 4)):
                continue
            if escape == b"\x0f" and (opcode in SYSTEM_CALLS or opcode in (0x38, 0x3A)):
                continue
            for form in _forms(escape, opcode):
                yield prefix + escape + bytes((opcode,)) + form


def block_of(encoding: Encoding, address: int, bits: int) -> Block:
    """The encoding with immediates of zero."""
    state = bytearray(FXSAVE_BYTES)
    state[0:2], state[24:28] = b"\x7f\x03", b"\x80\x1f\0\0"
    return Block(
        address,
        [Instruction(encoding, encoding.hex())],
        [NOWHERE] * 16,
        0x202,
        bytes(state),
        cs=CODE64 if bits == 64 else CODE32,
        ends=b"\0" * 4 + b"\xcc" * 4,
    )


def lay_out(some: Sequence[Encoding], bits: int) -> tuple[list[Block], bytes]:
    """A block for each, and the code pages that hold them."""
    blocks, code, address = [], bytearray(b"\xcc" * CODE_PAGES * PAGE), CODE_BASE
    for encoding in some:
        if address % PAGE > PAGE - 64:
            address += PAGE - address % PAGE
        while not code_is_mapped(address):
            address += PAGE
        block = block_of(encoding, address, bits)
        code[address - CODE_BASE : address - CODE_BASE + len(block.code)] = block.code
        blocks.append(block)
        address += 32
    return blocks, bytes(code)


EMPTY_DATA: Final = bytes(DATA_PAGES * PAGE)
