# SPDX-License-Identifier: GPL-2.0-or-later
"""PVH: an ELF kernel names its 32-bit entry point in a note and is told of memory, modules and ACPI.

Source: Xen's public headers ``arch-x86/hvm/start_info.h`` and ``elfnote.h``, and ``docs/misc/pvh``. It is how
unikernels and other systems start without firmware; Linux has such an entry too, but is started by its own
protocol, which tells it more.
"""

import struct
from collections.abc import Sequence
from typing import Final

from coremesh.core.elf import ElfImage, elf_class, read_elf
from coremesh.core.errors import GuestImageError
from coremesh.core.image import BootPlan, encode_command_line
from coremesh.core.memory_layout import GIB, Region
from coremesh.core.x86.loader import (
    LONGEST_TEXT,
    Block,
    LoadedKernel,
    Modules,
    load_elf,
    place_modules,
    start_kernel,
)
from coremesh.core.x86.memory_map import MemoryMap

NOTE_OWNER: Final = b"Xen"
NOTE_ENTRY: Final = 18
"""XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the entry point."""
START_MAGIC: Final = 0x336EC578
START_VERSION: Final = 1

_START_INFO: Final = struct.Struct("<4I4Q2I")
_MODULE: Final = struct.Struct("<4Q")
_RANGE: Final = struct.Struct("<2Q2I")


def find_entry(image: bytes) -> int | None:
    """The PVH entry point of an ELF file; None for any other file."""
    if not elf_class(image):
        return None
    try:
        return _entry(_read(image))
    except GuestImageError:
        return None


def load_pvh(image: bytes, modules: Modules, cmdline: str, memory: MemoryMap, acpi_rsdp: int) -> BootPlan:
    """Plan the start of a kernel by its PVH entry; the initramfs is the first of ``modules``.

    Raises :class:`GuestImageError` for a kernel that cannot start, :class:`ConfigurationError` when modules
    or command line find no room. May be called from any thread.
    """
    elf = _read(image)
    entry = _entry(elf)
    if entry is None:
        raise GuestImageError("this kernel has no PVH entry point; build it with CONFIG_PVH=y")
    kernel = load_elf(elf, memory)
    if entry >= 4 * GIB or not any(region.contains(entry, 1) for region in kernel.taken):
        raise GuestImageError(
            f"the PVH entry point {entry:#x} lies outside what is loaded; the file is corrupt, build it again"
        )
    placed = place_modules(modules, kernel.end, memory)
    return start_kernel(
        "PVH",
        LoadedKernel(kernel.writes, entry, kernel.taken),
        modules,
        placed,
        lambda address: _start_info(address, placed, modules, cmdline, memory, acpi_rsdp),
        lambda address: {"rbx": address},
        memory,
    )


def _read(image: bytes) -> ElfImage:
    bits = elf_class(image)
    return read_elf(image, bits=bits, machine="EM_X86_64" if bits == 64 else "EM_386")


def _entry(elf: ElfImage) -> int | None:
    data = elf.note(NOTE_OWNER, NOTE_ENTRY)
    return int.from_bytes(data[:8], "little") if data else None


def _start_info(
    address: int,
    placed: Sequence[Region],
    modules: Modules,
    cmdline: str,
    memory: MemoryMap,
    acpi_rsdp: int,
) -> bytes:
    """Struct hvm_start_info for ``address`` and, behind it, what it points to."""
    block = Block(address, _START_INFO.size)
    command_line = block.append(encode_command_line(cmdline, LONGEST_TEXT))
    texts = [block.append(encode_command_line(text, LONGEST_TEXT)) for _, text in modules]
    table = b"".join(
        _MODULE.pack(place.start, place.size, text, 0) for place, text in zip(placed, texts, strict=True)
    )
    list_at = block.append(table, 8) if modules else 0
    ranges = memory.e820()
    map_at = block.append(b"".join(_RANGE.pack(e.start, e.size, e.kind, 0) for e in ranges), 8)
    _START_INFO.pack_into(
        block.data,
        0,
        *(START_MAGIC, START_VERSION, 0, len(modules)),
        *(list_at, command_line, acpi_rsdp, map_at),
        *(len(ranges), 0),
    )
    return bytes(block.data)
