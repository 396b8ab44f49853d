# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 1: kernels that carry a small header and start in 32-bit protected mode.

Source: Multiboot Specification 0.6.96; section numbers below are its. The information structure and all that
it points to, modules aside, lies in conventional memory; the modules follow the kernel, each on its own page.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coremesh.core.elf import Segment, elf_class, read_elf
from coremesh.core.errors import GuestImageError
from coremesh.core.image import BootPlan, encode_command_line
from coremesh.core.memory_layout import KIB, Region
from coremesh.core.x86.boot import TEXT_ADDRESS, TEXT_COLUMNS, TEXT_ROWS
from coremesh.core.x86.loader import (
    BOOT_LOADER_NAME,
    LONGEST_TEXT,
    Block,
    LoadedKernel,
    Modules,
    load_elf,
    load_segments,
    place_modules,
    start_kernel,
)
from coremesh.core.x86.memory_map import EBDA_BASE, EXTENDED_MEMORY_BASE, MemoryMap

HEADER_MAGIC: Final = 0x1BADB002
LOADER_MAGIC: Final = 0x2BADB002
SEARCHED_BYTES: Final = 8192

FLAG_PAGE_ALIGN: Final = 1 << 0
FLAG_MEMORY_INFO: Final = 1 << 1
FLAG_VIDEO_MODE: Final = 1 << 2
FLAG_ADDRESSES: Final = 1 << 16
REQUIREMENTS: Final = 0xFFFF
"""Bits 0 to 15 ask for something that a loader must do or refuse; the others are hints (3.1.2)."""
KNOWN_REQUIREMENTS: Final = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO_MODE
"""A video mode is a preference (3.1.4): the kernel is told of the text mode that there is."""

INFO_MEMORY: Final = 1 << 0
INFO_CMDLINE: Final = 1 << 2
INFO_MODULES: Final = 1 << 3
INFO_MEMORY_MAP: Final = 1 << 6
INFO_LOADER_NAME: Final = 1 << 9
INFO_FRAMEBUFFER: Final = 1 << 12
INFO_BYTES: Final = 116
FRAMEBUFFER_TEXT: Final = 2
CELL_BITS: Final = 16

_MODULE: Final = struct.Struct("<4I")
_MEMORY_RANGE: Final = struct.Struct("<IQQI")


@dataclass(frozen=True, slots=True)
class Header:
    """A Multiboot header: its place in the file, and the address fields, meaningful with FLAG_ADDRESSES."""

    offset: int
    flags: int
    header_addr: int
    load_addr: int
    load_end_addr: int
    bss_end_addr: int
    entry_addr: int


def find_header(image: bytes) -> Header | None:
    """The first header whose checksum holds, on a 4-byte border in the file's first 8 KiB (3.1)."""
    window = image[:SEARCHED_BYTES]
    for offset in range(0, len(window) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", window, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            fields = window[offset + 12 : offset + 32].ljust(20, b"\0")
            return Header(offset, flags, *struct.unpack("<5I", fields))
    return None


def load_multiboot(image: bytes, modules: Modules, cmdline: str, memory: MemoryMap) -> BootPlan:
    """Plan the start of a Multiboot kernel; ``modules`` are (bytes, string for the kernel), kept in order.

    Raises :class:`GuestImageError` for a kernel that cannot start, :class:`ConfigurationError` when modules
    or command line find no room. May be called from any thread.
    """
    header = find_header(image)
    if header is None:
        raise GuestImageError(
            f"no Multiboot header in the kernel's first {SEARCHED_BYTES} bytes; put it into a section "
            "that the linker places first"
        )
    unknown = header.flags & REQUIREMENTS & ~KNOWN_REQUIREMENTS
    if unknown:
        raise GuestImageError(
            f"the Multiboot header requires features that are not defined (flags {unknown:#x}); "
            "the file is corrupt, build it again"
        )
    kernel = (
        _place_by_addresses(image, header, memory)
        if header.flags & FLAG_ADDRESSES
        else _place_elf(image, memory)
    )
    placed = place_modules(modules, kernel.end, memory)
    return start_kernel(
        "Multiboot",
        kernel,
        modules,
        placed,
        lambda address: _information(address, placed, modules, cmdline, memory),
        lambda address: {"rax": LOADER_MAGIC, "rbx": address},
        memory,
    )


def _place_by_addresses(image: bytes, header: Header, memory: MemoryMap) -> LoadedKernel:
    """The header's own addresses say what goes where: for kernels that are no ELF file (3.1.3)."""
    if header.offset + 32 > len(image):
        raise GuestImageError("the file ends inside its Multiboot header; it is truncated, build it again")
    addresses = (header.header_addr, header.load_addr, header.load_end_addr, header.bss_end_addr)
    return place_by_addresses(image, header.offset, addresses, header.entry_addr, memory)


def place_by_addresses(
    image: bytes, offset: int, addresses: tuple[int, int, int, int], entry: int, memory: MemoryMap
) -> LoadedKernel:
    """Load the file by the address fields of a header of either Multiboot, which lies at ``offset`` in it.

    ``addresses`` are header_addr, load_addr, load_end_addr (0: the file's end), bss_end_addr (0: no bss).
    """
    header_addr, load_addr, load_end, end = addresses
    begin = offset - (header_addr - load_addr)
    if load_addr > header_addr or begin < 0:
        raise GuestImageError(
            f"the Multiboot header is to lie at {header_addr:#x}, which the load address "
            f"{load_addr:#x} does not allow; correct the header's address fields"
        )
    load_end = load_end or load_addr + len(image) - begin
    size = load_end - load_addr
    if size <= 0 or begin + size > len(image):
        raise GuestImageError(
            f"the Multiboot header announces {max(size, 0)} bytes from file offset {begin}, but the file "
            f"has {len(image)}; it is truncated, or its load_end_addr is wrong"
        )
    end = end or load_end
    if end < load_end:
        raise GuestImageError("the Multiboot header's bss_end_addr lies before load_end_addr; correct it")
    if not load_addr <= entry < load_end:
        raise GuestImageError(f"the entry point {entry:#x} lies outside what is loaded; correct entry_addr")
    segment = Segment(load_addr, load_addr, end - load_addr, image[begin : begin + size])
    return load_segments((segment,), entry, memory)


def _place_elf(image: bytes, memory: MemoryMap) -> LoadedKernel:
    if elf_class(image) != 32:
        raise GuestImageError(
            "this Multiboot kernel is no 32-bit ELF file and gives no load addresses; convert it with "
            "'objcopy -O elf32-i386', or set bit 16 and the address fields of its header"
        )
    return load_elf(read_elf(image, bits=32, machine="EM_386"), memory)


def upper_memory_kib(memory: MemoryMap) -> int:
    """How much memory follows 1 MiB without a hole, in KiB."""
    return (memory.low.end - EXTENDED_MEMORY_BASE) // KIB


def _information(
    address: int, placed: Sequence[Region], modules: Modules, cmdline: str, memory: MemoryMap
) -> bytes:
    """The information structure (3.3) for ``address`` and, behind it, everything it points to."""
    block = Block(address, INFO_BYTES)
    command_line = block.append(encode_command_line(cmdline, LONGEST_TEXT))
    loader_name = block.append(BOOT_LOADER_NAME)
    ranges = b"".join(
        _MEMORY_RANGE.pack(_MEMORY_RANGE.size - 4, entry.start, entry.size, entry.kind)
        for entry in memory.e820()
    )
    memory_map = block.append(ranges)
    strings = [block.append(encode_command_line(text, LONGEST_TEXT)) for _, text in modules]
    module_table = block.append(
        b"".join(
            _MODULE.pack(place.start, place.end, string, 0)
            for place, string in zip(placed, strings, strict=True)
        )
    )
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME | INFO_FRAMEBUFFER
    for offset, layout, values in (
        (0, "3I", (flags, EBDA_BASE // KIB, upper_memory_kib(memory))),
        (16, "3I", (command_line, len(modules), module_table)),
        (44, "2I", (len(ranges), memory_map)),
        (64, "I", (loader_name,)),
        (88, "Q3I2B", framebuffer()),
    ):
        struct.pack_into("<" + layout, block.data, offset, *values)
    return bytes(block.data)


def framebuffer() -> tuple[int, int, int, int, int, int]:
    """The text screen in terms of a frame buffer: address, bytes a row, columns, rows, bits a cell, type."""
    return TEXT_ADDRESS, TEXT_COLUMNS * CELL_BITS // 8, TEXT_COLUMNS, TEXT_ROWS, CELL_BITS, FRAMEBUFFER_TEXT
