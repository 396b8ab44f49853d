# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 2: a header of tags in the kernel, information of tags for it; otherwise as Multiboot 1.

Source: Multiboot2 Specification 2.0; section numbers below are its. An ELF kernel may be of 32 or of 64 bits;
either starts in 32-bit protected mode.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coremesh.core.elf import elf_class, read_elf
from coremesh.core.errors import GuestImageError
from coremesh.core.image import BootPlan, encode_command_line
from coremesh.core.memory_layout import GIB, KIB, Region
from coremesh.core.x86.elf_sections import Sections, load_sections
from coremesh.core.x86.loader import (
    BOOT_LOADER_NAME,
    LONGEST_TEXT,
    LoadedKernel,
    Modules,
    load_elf,
    place_modules,
    start_kernel,
)
from coremesh.core.x86.memory_map import EBDA_BASE, MemoryMap
from coremesh.core.x86.multiboot import framebuffer, place_by_addresses, upper_memory_kib

HEADER_MAGIC: Final = 0xE85250D6
LOADER_MAGIC: Final = 0x36D76289
SEARCHED_BYTES: Final = 32768
ARCHITECTURE_I386: Final = 0
OPTIONAL: Final = 1 << 0

_HEADER: Final = struct.Struct("<4I")
_HEADER_TAG: Final = struct.Struct("<HHI")
_TAG: Final = struct.Struct("<2I")
_RANGE: Final = struct.Struct("<2Q2I")


class HeaderTag:
    """Types of the tags in the kernel's header (3.1.3 to 3.1.13)."""

    END, INFORMATION, ADDRESS, ENTRY, CONSOLE, FRAMEBUFFER, MODULE_ALIGN = range(7)
    BOOT_SERVICES, EFI_ENTRY_32, EFI_ENTRY_64, RELOCATABLE = range(7, 11)
    # The machine has no EFI, modules are always on pages, and a kernel stays where it was linked.
    NOTHING_TO_DO = (
        CONSOLE, FRAMEBUFFER, MODULE_ALIGN, BOOT_SERVICES, EFI_ENTRY_32, EFI_ENTRY_64, RELOCATABLE,
    )  # fmt: skip


class Tag:
    """Types of the tags of the information (3.6)."""

    END, COMMAND_LINE, LOADER_NAME, MODULE, MEMORY = range(5)
    MEMORY_MAP, FRAMEBUFFER, ELF_SECTIONS = 6, 8, 9
    OLD_RSDP, NEW_RSDP, LOAD_BASE = 14, 15, 21
    # What a kernel may ask for; the boot device and EFI's are not there, which it is told by their absence.
    GIVEN = frozenset({*range(1, 5), MEMORY_MAP, FRAMEBUFFER, ELF_SECTIONS, OLD_RSDP, NEW_RSDP, LOAD_BASE})


@dataclass(frozen=True, slots=True)
class Header:
    """A Multiboot 2 header: its place in the file, its architecture, its tags (type, flags, bytes)."""

    offset: int
    architecture: int
    tags: tuple[tuple[int, int, bytes], ...]

    def tag(self, kind: int) -> bytes | None:
        """The bytes of the first tag of this type."""
        return next((data for found, _, data in self.tags if found == kind), None)


def find_header(image: bytes) -> Header | None:
    """The first header whose checksum holds, on an 8-byte border in the file's first 32 KiB (3.1.1)."""
    window = image[:SEARCHED_BYTES]
    for offset in range(0, len(window) - _HEADER.size + 1, 8):
        magic, architecture, length, checksum = _HEADER.unpack_from(window, offset)
        if magic == HEADER_MAGIC and (magic + architecture + length + checksum) & 0xFFFF_FFFF == 0:
            tags = _header_tags(window[offset + _HEADER.size : offset + length])
            return Header(offset, architecture, tags)
    return None


def _header_tags(area: bytes) -> tuple[tuple[int, int, bytes], ...]:
    """The tags up to the one that ends the list, or up to one that is damaged."""
    tags = []
    at = 0
    while at + _HEADER_TAG.size <= len(area):
        kind, flags, size = _HEADER_TAG.unpack_from(area, at)
        if kind == HeaderTag.END or size < _HEADER_TAG.size or at + size > len(area):
            break
        tags.append((kind, flags, area[at + _HEADER_TAG.size : at + size]))
        at = -(-(at + size) // 8) * 8
    return tuple(tags)


def load_multiboot2(
    image: bytes, modules: Modules, cmdline: str, memory: MemoryMap, rsdp: bytes = b""
) -> BootPlan:
    """Plan the start of a Multiboot 2 kernel; ``rsdp`` are the bytes of ACPI's root pointer, 36 or none.

    Raises :class:`GuestImageError` for a kernel that cannot start, :class:`ConfigurationError` when modules
    or command line find no room. May be called from any thread.
    """
    header = find_header(image)
    if header is None:
        raise GuestImageError(
            f"no Multiboot 2 header in the kernel's first {SEARCHED_BYTES} bytes; put it into a section "
            "that the linker places first"
        )
    _check_requirements(header)
    kernel, sections = _place(image, header, memory)
    placed = place_modules(modules, sections.end, memory)
    return start_kernel(
        "Multiboot 2",
        kernel,
        modules,
        placed,
        lambda _: _information(kernel, sections, placed, modules, cmdline, memory, rsdp),
        lambda address: {"rax": LOADER_MAGIC, "rbx": address},
        memory,
    )


def _check_requirements(header: Header) -> None:
    if header.architecture != ARCHITECTURE_I386:
        raise GuestImageError(
            f"the Multiboot 2 header is for architecture {header.architecture}; build it for i386, number 0"
        )
    for kind, flags, data in header.tags:
        if flags & OPTIONAL:
            continue
        if kind == HeaderTag.INFORMATION:
            asked = struct.unpack_from(f"<{len(data) // 4}I", data)
            for wanted in asked:
                if wanted not in Tag.GIVEN:
                    raise GuestImageError(
                        f"the kernel requires the Multiboot 2 information of type {wanted}, which this "
                        "machine has not; make the request's tag optional (flag 1)"
                    )
        elif kind not in (HeaderTag.ADDRESS, HeaderTag.ENTRY, *HeaderTag.NOTHING_TO_DO):
            raise GuestImageError(
                f"the Multiboot 2 header requires tag {kind}, which is not defined; the file is corrupt, or "
                "make the tag optional (flag 1)"
            )


def _place(image: bytes, header: Header, memory: MemoryMap) -> tuple[LoadedKernel, Sections]:
    entry = _words(header, HeaderTag.ENTRY, 1)
    addresses = _words(header, HeaderTag.ADDRESS, 4)
    if addresses:
        if not entry:
            raise GuestImageError(
                "the Multiboot 2 header has an address tag and no entry tag; add the entry's address"
            )
        kernel = place_by_addresses(
            image, header.offset, (addresses[0], addresses[1], addresses[2], addresses[3]), entry[0], memory
        )
        return kernel, Sections(end=kernel.end)
    bits = elf_class(image)
    if not bits:
        raise GuestImageError(
            "this Multiboot 2 kernel is no ELF file and gives no load addresses; link it to ELF, or add the "
            "address tag to its header"
        )
    elf = read_elf(image, bits=bits, machine="EM_X86_64" if bits == 64 else "EM_386")
    kernel = load_elf(elf, memory)
    start = entry[0] if entry else elf.entry
    if start >= 4 * GIB or not any(region.contains(start, 1) for region in kernel.taken):
        raise GuestImageError(
            f"the entry point {start:#x} lies outside what is loaded below 4 GiB; correct the entry's address"
        )
    sections = load_sections(image, bits, kernel.end, memory)
    return LoadedKernel([*kernel.writes, *sections.writes], start, kernel.taken), sections


def _words(header: Header, kind: int, count: int) -> tuple[int, ...]:
    data = header.tag(kind)
    if data is None:
        return ()
    if len(data) < 4 * count:
        raise GuestImageError(f"tag {kind} of the Multiboot 2 header is too short; build the kernel again")
    return struct.unpack_from(f"<{count}I", data)


def _information(
    kernel: LoadedKernel,
    sections: Sections,
    placed: Sequence[Region],
    modules: Modules,
    cmdline: str,
    memory: MemoryMap,
    rsdp: bytes,
) -> bytes:
    """The information (3.6): it has no pointers into itself, so it is the same at any address."""
    ranges = b"".join(_RANGE.pack(entry.start, entry.size, entry.kind, 0) for entry in memory.e820())
    lowest = min(region.start for region in kernel.taken)
    tags = [
        (Tag.COMMAND_LINE, encode_command_line(cmdline, LONGEST_TEXT)),
        (Tag.LOADER_NAME, BOOT_LOADER_NAME),
        *(
            (Tag.MODULE, struct.pack("<2I", place.start, place.end) + encode_command_line(text, LONGEST_TEXT))
            for place, (_, text) in zip(placed, modules, strict=True)
        ),
        (Tag.MEMORY, struct.pack("<2I", EBDA_BASE // KIB, upper_memory_kib(memory))),
        (Tag.MEMORY_MAP, struct.pack("<2I", _RANGE.size, 0) + ranges),
        (Tag.FRAMEBUFFER, struct.pack("<Q3I2BH", *framebuffer(), 0)),
        (Tag.LOAD_BASE, struct.pack("<I", lowest)),
    ]
    if sections.count:
        head = struct.pack("<3I", sections.count, sections.entry_bytes, sections.names)
        tags.append((Tag.ELF_SECTIONS, head + sections.headers))
    if rsdp:
        tags += [(Tag.OLD_RSDP, rsdp[:20]), (Tag.NEW_RSDP, rsdp)]
    body = b""
    for kind, data in (*tags, (Tag.END, b"")):
        tag = _TAG.pack(kind, _TAG.size + len(data)) + data
        body += tag + bytes(-len(tag) % 8)
    return struct.pack("<2I", 8 + len(body), 0) + body
