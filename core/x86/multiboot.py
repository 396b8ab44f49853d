# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 1: kernels that carry a small header and start in 32-bit protected mode.

Source: Multiboot Specification 0.6.96; section numbers below are its. The information structure and all that
it points to, modules aside, lies in conventional memory; the modules follow the kernel, each on its own page.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coremesh.core.elf import Segment, check_segments, elf_class, read_elf
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan, encode_command_line
from coremesh.core.memory_layout import KIB, MIB, PAGE_BYTES
from coremesh.core.x86.boot import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    FLAT_CODE_32,
    LOADER_AREA,
    LOADER_END,
    RFLAGS_FIXED,
    bios_data_area,
    flat_gdt,
    flat_segments,
)
from coremesh.core.x86.memory_map import EBDA_BASE, EXTENDED_MEMORY_BASE, KERNEL_FLOOR, MemoryMap
from coremesh.core.x86.real_mode import real_mode_vectors

HEADER_MAGIC: Final = 0x1BADB002
LOADER_MAGIC: Final = 0x2BADB002
SEARCHED_BYTES: Final = 8192
BOOT_LOADER_NAME: Final = b"Coremesh\0"

FLAG_PAGE_ALIGN: Final = 1 << 0
FLAG_MEMORY_INFO: Final = 1 << 1
FLAG_VIDEO_MODE: Final = 1 << 2
FLAG_ADDRESSES: Final = 1 << 16
REQUIREMENTS: Final = 0xFFFF
"""Bits 0 to 15 ask for something that a loader must do or refuse; the others are hints (3.1.2)."""
KNOWN_REQUIREMENTS: Final = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO

INFO_MEMORY: Final = 1 << 0
INFO_CMDLINE: Final = 1 << 2
INFO_MODULES: Final = 1 << 3
INFO_MEMORY_MAP: Final = 1 << 6
INFO_LOADER_NAME: Final = 1 << 9
INFO_BYTES: Final = 116

GDT_ADDRESS: Final = LOADER_AREA
INFO_ADDRESS: Final = LOADER_AREA + PAGE_BYTES
LONGEST_COMMAND_LINE: Final = 0xFFFF

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


@dataclass(frozen=True, slots=True)
class _Kernel:
    writes: list[tuple[int, bytes]]
    entry: int
    end: int


def find_header(image: bytes) -> Header | None:
    """The first header whose checksum holds, on a 4-byte border in the file's first 8 KiB (3.1)."""
    window = image[:SEARCHED_BYTES]
    for offset in range(0, len(window) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", window, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            fields = window[offset + 12 : offset + 32].ljust(20, b"\0")
            return Header(offset, flags, *struct.unpack("<5I", fields))
    return None


def load_multiboot(
    image: bytes, modules: Sequence[tuple[bytes, str]], cmdline: str, memory: MemoryMap
) -> BootPlan:
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
    if header.flags & FLAG_VIDEO_MODE:
        raise GuestImageError(
            "this kernel asks for a video mode, and the machine has no display; build it for a serial port"
        )
    unknown = header.flags & REQUIREMENTS & ~KNOWN_REQUIREMENTS
    if unknown:
        raise GuestImageError(
            f"the Multiboot header requires features that nobody has defined (flags {unknown:#x}); "
            "the file is corrupt, build it again"
        )
    kernel = (
        _place_by_addresses(image, header, memory)
        if header.flags & FLAG_ADDRESSES
        else _place_elf(image, memory)
    )
    placed = _place_modules(modules, kernel.end, memory)
    gdt = flat_gdt(FLAT_CODE_32)
    return BootPlan(
        writes=[
            *real_mode_vectors(memory),
            *bios_data_area(),
            (GDT_ADDRESS, gdt),
            (INFO_ADDRESS, _information(placed, modules, cmdline, memory)),
            *kernel.writes,
            *((start, data) for (start, _), (data, _) in zip(placed, modules, strict=True) if data),
        ],
        registers={
            **flat_segments(FLAT_CODE_32),
            "rip": kernel.entry,
            "rax": LOADER_MAGIC,
            "rbx": INFO_ADDRESS,
            "rflags": RFLAGS_FIXED,
            "cr0": CR0_NE | CR0_ET | CR0_PE,
            "cr3": 0,
            "cr4": 0,
            "efer": 0,
            "gdtr": (GDT_ADDRESS, len(gdt) - 1),
            "idtr": (0, 0),
        },
        entry_name="Multiboot",
    )


def _place_by_addresses(image: bytes, header: Header, memory: MemoryMap) -> _Kernel:
    """The header's own addresses say what goes where: for kernels that are no ELF file (3.1.3)."""
    if header.offset + 32 > len(image):
        raise GuestImageError("the file ends inside its Multiboot header; it is truncated, build it again")
    offset = header.offset - (header.header_addr - header.load_addr)
    if header.load_addr > header.header_addr or offset < 0:
        raise GuestImageError(
            f"the Multiboot header is to lie at {header.header_addr:#x}, which the load address "
            f"{header.load_addr:#x} does not allow; correct the header's address fields"
        )
    load_end = header.load_end_addr or header.load_addr + len(image) - offset
    size = load_end - header.load_addr
    if size <= 0 or offset + size > len(image):
        raise GuestImageError(
            f"the Multiboot header announces {max(size, 0)} bytes from file offset {offset}, but the file "
            f"has {len(image)}; it is truncated, or its load_end_addr is wrong"
        )
    end = header.bss_end_addr or load_end
    if end < load_end:
        raise GuestImageError("the Multiboot header's bss_end_addr lies before load_end_addr; correct it")
    if not header.load_addr <= header.entry_addr < load_end:
        raise GuestImageError(
            f"the entry point {header.entry_addr:#x} lies outside what is loaded; correct entry_addr"
        )
    segment = Segment(
        header.load_addr, header.load_addr, end - header.load_addr, image[offset : offset + size]
    )
    check_segments((segment,), memory.layout, KERNEL_FLOOR)
    return _Kernel([(segment.paddr, segment.data)], header.entry_addr, end)


def _place_elf(image: bytes, memory: MemoryMap) -> _Kernel:
    if elf_class(image) != 32:
        raise GuestImageError(
            "this Multiboot kernel is no 32-bit ELF file and gives no load addresses; convert it with "
            "'objcopy -O elf32-i386', or set bit 16 and the address fields of its header"
        )
    elf = read_elf(image, bits=32, machine="EM_386")
    check_segments(elf.segments, memory.layout, KERNEL_FLOOR)
    end = max(segment.region.end for segment in elf.segments)
    writes = [(segment.paddr, segment.data) for segment in elf.segments if segment.data]
    return _Kernel(writes, elf.entry, end)


def _place_modules(
    modules: Sequence[tuple[bytes, str]], kernel_end: int, memory: MemoryMap
) -> list[tuple[int, int]]:
    """(start, end) of each module, page-aligned and in order, as close behind the kernel as that allows."""
    placed = []
    cursor = kernel_end
    for data, _ in modules:
        start = -(-cursor // PAGE_BYTES) * PAGE_BYTES
        cursor = start + len(data)
        if cursor > memory.low.end:
            raise ConfigurationError(
                f"the modules need {-(-cursor // MIB)} MiB of memory, but the machine has "
                f"{memory.low_ram_bytes // MIB} MiB below 4 GiB; give it more memory"
            )
        placed.append((start, cursor))
    return placed


def _information(
    placed: Sequence[tuple[int, int]], modules: Sequence[tuple[bytes, str]], cmdline: str, memory: MemoryMap
) -> bytes:
    """The information structure (3.3) and, behind it, everything it points to."""
    block = bytearray(INFO_BYTES)

    def append(data: bytes) -> int:
        block.extend(bytes(-len(block) % 4))
        address = INFO_ADDRESS + len(block)
        block.extend(data)
        return address

    command_line = append(encode_command_line(cmdline, LONGEST_COMMAND_LINE))
    loader_name = append(BOOT_LOADER_NAME)
    ranges = b"".join(
        _MEMORY_RANGE.pack(_MEMORY_RANGE.size - 4, entry.start, entry.size, entry.kind)
        for entry in memory.e820()
    )
    memory_map = append(ranges)
    strings = [append(encode_command_line(text, LONGEST_COMMAND_LINE)) for _, text in modules]
    module_table = append(
        b"".join(
            _MODULE.pack(start, end, string, 0) for (start, end), string in zip(placed, strings, strict=True)
        )
    )
    if INFO_ADDRESS + len(block) > LOADER_END:
        raise ConfigurationError(
            f"the command line and {len(modules)} modules' strings do not fit into conventional memory; "
            "shorten them, or pack the modules into one"
        )
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
    upper_kib = (memory.low.end - EXTENDED_MEMORY_BASE) // KIB
    for offset, values in (
        (0, (flags, EBDA_BASE // KIB, upper_kib)),
        (16, (command_line, len(modules), module_table)),
        (44, (len(ranges), memory_map)),
        (64, (loader_name,)),
    ):
        struct.pack_into(f"<{len(values)}I", block, offset, *values)
    return bytes(block)
