# SPDX-License-Identifier: GPL-2.0-or-later
"""What the loaders of Multiboot, Multiboot 2 and PVH kernels share: where things go, how the kernel starts.

All three start the kernel in flat 32-bit protected mode without paging. Modules follow the kernel. What the
loader tells, with the GDT before it, is one block in conventional memory, where the kernel leaves room.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from coremesh.core.elf import ElfImage, Segment, check_segments
from coremesh.core.errors import ConfigurationError
from coremesh.core.image import BootPlan, RegisterValue
from coremesh.core.memory_layout import MIB, PAGE_BYTES, Region
from coremesh.core.x86.boot import (
    FLAT_CODE_32,
    LOADER_AREA,
    LOADER_END,
    bios_data_area,
    flat_gdt,
    protected_mode,
)
from coremesh.core.x86.memory_map import CONVENTIONAL_MEMORY, KERNEL_AREA, MemoryMap
from coremesh.core.x86.real_mode import real_mode_vectors

Modules = Sequence[tuple[bytes, str]]
"""Bytes, and a text for the kernel."""

LONGEST_TEXT: Final = 0xFFFF
BOOT_LOADER_NAME: Final = b"Coremesh\0"
_GDT: Final = flat_gdt(FLAT_CODE_32)
_BLOCK_ALIGN: Final = 16


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel with its place decided: its bytes, its physical entry point, the memory it takes."""

    writes: list[tuple[int, bytes]]
    entry: int
    taken: list[Region] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first address behind all of it, at 1 MiB at the lowest."""
        return max([MIB, *(region.end for region in self.taken)])


def load_segments(segments: Sequence[Segment], entry: int, memory: MemoryMap) -> LoadedKernel:
    """Place what a kernel names by address. Raises GuestImageError where that is not free memory."""
    check_segments(segments, memory.layout, (CONVENTIONAL_MEMORY, KERNEL_AREA))
    writes = [(segment.paddr, segment.data) for segment in segments if segment.data]
    return LoadedKernel(writes, entry, [segment.region for segment in segments])


def load_elf(elf: ElfImage, memory: MemoryMap) -> LoadedKernel:
    """Place an ELF kernel by its physical addresses."""
    return load_segments(elf.segments, elf.entry, memory)


def place_modules(modules: Modules, kernel_end: int, memory: MemoryMap) -> list[Region]:
    """Where each module goes, page-aligned and in order, as close behind the kernel as that allows."""
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
        placed.append(Region(start, len(data)))
    return placed


def start_kernel(
    name: str,
    kernel: LoadedKernel,
    modules: Modules,
    placed: Sequence[Region],
    information: Callable[[int], bytes],
    registers: Callable[[int], dict[str, RegisterValue]],
    memory: MemoryMap,
) -> BootPlan:
    """Put the plan together. ``information(address)`` gives what the loader tells, for that address, and
    ``registers(address)`` those that differ from :func:`protected_mode`'s.

    The size of the information does not depend on its address. Raises ConfigurationError when it finds no
    room in conventional memory.
    """
    gdt = place_low(len(_GDT) + len(information(0)), kernel.taken)
    address = gdt + len(_GDT)
    return BootPlan(
        writes=[
            *real_mode_vectors(memory),
            *bios_data_area(),
            (gdt, _GDT + information(address)),
            *kernel.writes,
            *((place.start, data) for place, (data, _) in zip(placed, modules, strict=True) if data),
        ],
        registers={**protected_mode(gdt, kernel.entry), **registers(address)},
        entry_name=name,
        zeros=list(kernel.taken),
    )


def place_low(size: int, taken: Iterable[Region]) -> int:
    """The lowest address in conventional memory for ``size`` bytes beside ``taken``."""
    start = LOADER_AREA
    for other in sorted(taken, key=lambda region: region.start):
        if start + size <= other.start:
            break
        start = max(start, -(-other.end // _BLOCK_ALIGN) * _BLOCK_ALIGN)
    if start + size > LOADER_END:
        raise ConfigurationError(
            f"the command line, the modules' texts and what else the kernel is told, {size} bytes, find no "
            "room in conventional memory; shorten them, or pack the modules into one"
        )
    return start


class Block:
    """Bytes that point to each other by physical address: what a loader hands to a kernel."""

    def __init__(self, address: int, size: int = 0) -> None:
        self.address = address
        self.data = bytearray(size)

    def append(self, data: bytes, align: int = 4) -> int:
        """Add ``data`` on an ``align``-byte border; its address."""
        self.data.extend(bytes(-len(self.data) % align))
        address = self.address + len(self.data)
        self.data.extend(data)
        return address
