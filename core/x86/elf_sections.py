# SPDX-License-Identifier: GPL-2.0-or-later
"""An ELF kernel's section headers as Multiboot hands them on, with its symbols in memory."""

import struct
from dataclasses import dataclass, field
from typing import Final

from coremesh.core.x86.memory_map import MemoryMap

MOST_SECTIONS: Final = 4096
_SYMBOLS, _STRINGS = 2, 3  # types of sections (System V ABI, figure 4-9)
_ALIGN: Final = 16

# Offsets in the ELF header and in a section's, and how an address is packed, by word size.
_HEADER: Final = {64: ("<Q", 0x28, 0x3A), 32: ("<I", 0x20, 0x2E)}
_SECTION: Final = {64: struct.Struct("<IIQQQQIIQQ"), 32: struct.Struct("<10I")}


@dataclass(frozen=True, slots=True)
class Sections:
    """``headers`` are ``count`` section headers of ``entry_bytes`` each; ``names`` is that of their names.

    Tables of symbols and of strings, which no segment loads, are in ``writes``, and their headers say where.
    ``end`` is the first address behind the kernel and them.
    """

    end: int
    count: int = 0
    entry_bytes: int = 0
    names: int = 0
    headers: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)


def load_sections(image: bytes, bits: int, kernel_end: int, memory: MemoryMap) -> Sections:
    """Lay symbols and strings behind the kernel. A file without sections, or with damaged ones, has none."""
    word, table_at, sizes_at = _HEADER[bits]
    (offset,) = struct.unpack_from(word, image, table_at)
    entry_bytes, count, names = struct.unpack_from("<3H", image, sizes_at)
    form = _SECTION[bits]
    table = image[offset : offset + count * form.size]
    if not 0 < count <= MOST_SECTIONS or entry_bytes != form.size or len(table) < count * form.size:
        return Sections(end=kernel_end)
    headers, writes = [], []
    cursor = kernel_end
    for at in range(0, len(table), form.size):
        header = list(form.unpack_from(table, at))
        kind, address, begin, size = header[1], header[3], header[4], header[5]
        start = -(-cursor // _ALIGN) * _ALIGN
        loads = kind in (_SYMBOLS, _STRINGS) and not address and size
        if loads and begin + size <= len(image) and start + size <= memory.low.end:
            header[3] = start
            writes.append((start, image[begin : begin + size]))
            cursor = start + size
        headers.append(form.pack(*header))
    return Sections(cursor, count, form.size, names, b"".join(headers), writes)
