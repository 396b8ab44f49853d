# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI machine language: as much of its encoding as the machine's DSDT needs.

Each function returns the bytes of one term, so that a table reads as the ASL it stands for. Source: ACPI 6.4,
chapter 20 (encoding) and section 6.4 (resource descriptors).
"""

import struct
from typing import Final

_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_DEVICE_OP: Final = b"\x5b\x82"
_DUAL_NAME_PREFIX: Final = b"\x2e"

_END_TAG: Final = b"\x79\x00"
_MEMORY, _IO, _BUS = 0, 1, 2
_FIXED_RANGE: Final = 0x0C
"""General flags of an address space: both ends are fixed, the device produces the range, positive decode."""


def integer(value: int) -> bytes:
    """An integer constant in its shortest form, 0 to 2**64 - 1."""
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    for prefix, size in ((b"\x0a", 1), (b"\x0b", 2), (b"\x0c", 4), (b"\x0e", 8)):
        if value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer of 64 bits")


def name_string(path: str) -> bytes:
    r"""A name of up to two segments, padded with underscores: ``PCI0``, ``\_SB``, ``_SB.PCI0``."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.lstrip("\\").split(".")]
    if len(segments) > 2 or any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{path!r} is no name of one or two segments of four characters")
    return root + (_DUAL_NAME_PREFIX if len(segments) == 2 else b"") + b"".join(segments)


def package_length(body: int) -> bytes:
    """The length that precedes ``body`` bytes; it counts itself (ACPI 6.4, 20.2.4)."""
    if body + 1 < 1 << 6:
        return bytes([body + 1])
    for following in (1, 2, 3):
        total = body + 1 + following
        if total < 1 << 4 + 8 * following:
            return bytes([following << 6 | total & 0xF]) + (total >> 4).to_bytes(following, "little")
    raise ValueError(f"{body} bytes do not fit an AML package length")


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return _NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) { terms }``."""
    body = name_string(path) + b"".join(terms)
    return _SCOPE_OP + package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) { terms }``."""
    body = name_string(path) + b"".join(terms)
    return _DEVICE_OP + package_length(len(body)) + body


def package(*elements: bytes) -> bytes:
    """``Package () { elements }``, at most 255 of them."""
    body = bytes([len(elements)]) + b"".join(elements)
    return _PACKAGE_OP + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """``Buffer () { data }``."""
    body = integer(len(data)) + data
    return _BUFFER_OP + package_length(len(body)) + body


def eisa_id(text: str) -> bytes:
    """``EisaId ("PNP0A03")``: three letters of five bits, four hex digits, big-endian (ACPI 6.4, 19.6.35)."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - 0x40) & 0x1F
    return integer(int.from_bytes(struct.pack(">HH", letters, int(text[3:], 16)), "little"))


def resource_template(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () { descriptors }``: closed by an end tag whose checksum 0 means unchecked."""
    return buffer(b"".join(descriptors) + _END_TAG)


def io_ports(first: int, count: int) -> bytes:
    """``IO (Decode16, first, first, 1, count)``."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def irq(line: int) -> bytes:
    """``IRQNoFlags () {line}``: an ISA interrupt, edge-triggered and active high."""
    return struct.pack("<BH", 0x22, 1 << line)


def word_bus_number(first: int, last: int) -> bytes:
    """``WordBusNumber`` of a bridge that produces the buses ``first`` to ``last``."""
    return _word_space(_BUS, 0, first, last)


def word_io(first: int, last: int) -> bytes:
    """``WordIO (..., EntireRange)`` of a bridge that passes on the ports ``first`` to ``last``."""
    return _word_space(_IO, 0x03, first, last)


def dword_memory(first: int, last: int) -> bytes:
    """``DWordMemory (..., NonCacheable, ReadWrite)`` of a bridge, from ``first`` to ``last`` below 4 GiB."""
    head = struct.pack("<BHBBB", 0x87, 23, _MEMORY, _FIXED_RANGE, 0x01)
    return head + struct.pack("<5I", 0, first, last, 0, last - first + 1)


def memory32_fixed(first: int, length: int) -> bytes:
    """``Memory32Fixed (ReadWrite, first, length)``."""
    return struct.pack("<BHBII", 0x86, 9, 1, first, length)


def _word_space(kind: int, specific: int, first: int, last: int) -> bytes:
    head = struct.pack("<BHBBB", 0x88, 13, kind, _FIXED_RANGE, specific)
    return head + struct.pack("<5H", 0, first, last, 0, last - first + 1)
