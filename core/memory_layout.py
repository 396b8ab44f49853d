# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's memory as a list of regions: where it is in the guest's addresses, where in the memory file.

The machine's memory map declares the list once; everything else, the native code and the engine included,
takes whatever list it gets. Addresses, offsets and sizes are in bytes.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from coremesh.core.errors import ConfigurationError

PAGE_BYTES: Final = 4096
KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
MAXIMUM_REGIONS: Final = 64
"""The engine looks for an address in one region after the other."""


class MemoryKind(Enum):
    """What a guest may do with a region. Both kinds can be executed."""

    RAM = "ram"
    ROM = "rom"
    """A guest's write is dropped, as on a bus without a chip that takes it. Loaders do write it."""


@dataclass(frozen=True, slots=True)
class Region:
    """A range ``[start, start + size)`` of guest-physical addresses, in bytes."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind the region."""
        return self.start + self.size

    def contains(self, start: int, size: int) -> bool:
        """Tell whether all of ``[start, start + size)`` lies inside."""
        return self.start <= start and size >= 0 and start + size <= self.end

    def overlaps(self, other: "Region") -> bool:
        """Tell whether the two share a byte; an empty region shares none."""
        return max(self.start, other.start) < min(self.end, other.end)


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """``bytes`` of memory at guest-physical address ``gpa``, and at ``offset`` of the memory file."""

    gpa: int
    bytes: int
    offset: int
    kind: MemoryKind = MemoryKind.RAM

    @property
    def end(self) -> int:
        """The first guest-physical address behind the region."""
        return self.gpa + self.bytes

    def __str__(self) -> str:
        return f"{self.kind.name} of {self.bytes:#x} bytes at {self.gpa:#x}, offset {self.offset:#x}"


@dataclass(frozen=True, slots=True)
class MemoryShadow:
    """``bytes`` of RAM at ``gpa`` that ROM at ``rom_offset`` of the memory file can stand in for.

    The machine steers reads and writes of such an address while it runs; at first it shows the ROM.
    """

    gpa: int
    bytes: int
    rom_offset: int


@dataclass(frozen=True)
class MemoryLayout:
    """All memory of a machine, the same on each of its hosts. Immutable; sorted by address.

    Multiples of 4096 throughout. No two regions share an address. By offset the regions cover the memory file
    without gap or overlap, RAM first and ROM behind it, so that the pages of RAM count from 0.
    Raises :class:`ConfigurationError` for a list that is not so.
    """

    regions: tuple[MemoryRegion, ...]
    shadows: tuple[MemoryShadow, ...] = ()
    """Each inside a region of RAM; their ROM follows the regions in the memory file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(sorted(self.regions, key=lambda region: region.gpa)))
        _check(self.regions)

    @classmethod
    def of(
        cls, ram: Iterable[Region], rom: Iterable[Region] = (), shadows: Iterable[Region] = ()
    ) -> "MemoryLayout":
        """The layout of these ranges; the offsets follow their order."""
        regions: list[MemoryRegion] = []
        offset = 0
        for kind, ranges in ((MemoryKind.RAM, ram), (MemoryKind.ROM, rom)):
            for region in ranges:
                regions.append(MemoryRegion(region.start, region.size, offset, kind))
                offset += region.size
        shadowed: list[MemoryShadow] = []
        for region in shadows:
            shadowed.append(MemoryShadow(region.start, region.size, offset))
            offset += region.size
        return cls(tuple(regions), tuple(shadowed))

    @property
    def ram_bytes(self) -> int:
        """How much of the memory is RAM."""
        return sum(region.bytes for region in self.regions if region.kind is MemoryKind.RAM)

    @property
    def total_bytes(self) -> int:
        """The size of the memory file, ROM included."""
        return sum(region.bytes for region in self.regions) + sum(shadow.bytes for shadow in self.shadows)

    def is_ram(self, start: int, size: int) -> bool:
        """Tell whether all of ``[start, start + size)`` is RAM of one region."""
        return any(
            region.kind is MemoryKind.RAM and region.gpa <= start and 0 <= size <= region.end - start
            for region in self.regions
        )

    def region_at(self, gpa: int) -> MemoryRegion:
        """The region that the byte at ``gpa`` lies in. IndexError for an address without memory."""
        for region in self.regions:
            if region.gpa <= gpa < region.end:
                return region
        raise IndexError(f"there is no memory at guest-physical address {gpa:#x}")

    def offset_of(self, gpa: int) -> int:
        """Where the byte at ``gpa`` is in the memory file. IndexError for an address without memory."""
        region = self.region_at(gpa)
        return region.offset + gpa - region.gpa

    def addresses(self, first: int, end: int) -> tuple[Region, ...]:
        """The guest-physical addresses of offsets ``[first, end)``, rising."""
        found = []
        for region in self.regions:
            low = max(first, region.offset)
            high = min(end, region.offset + region.bytes)
            if low < high:
                found.append(Region(region.gpa + low - region.offset, high - low))
        return tuple(found)


def _check(regions: tuple[MemoryRegion, ...]) -> None:
    if not 1 <= len(regions) <= MAXIMUM_REGIONS:
        raise ConfigurationError(f"{len(regions)} regions of memory; give 1 to {MAXIMUM_REGIONS}")
    for region in regions:
        numbers = (region.gpa, region.bytes, region.offset)
        if region.bytes <= 0 or min(numbers) < 0 or any(number % PAGE_BYTES for number in numbers):
            raise ConfigurationError(
                f"{region}: give address, size and offset as multiples of {PAGE_BYTES}, the size not 0"
            )
    for before, after in itertools.pairwise(regions):
        if after.gpa < before.end:
            raise ConfigurationError(f"{before} and {after} have addresses in common; give each its own")
    offset = 0
    kind = MemoryKind.RAM
    for region in sorted(regions, key=lambda region: region.offset):
        if region.offset != offset:
            raise ConfigurationError(
                f"{region}: the region before it ends at offset {offset:#x}; leave no gap and no overlap"
            )
        if region.kind is MemoryKind.RAM and kind is MemoryKind.ROM:
            raise ConfigurationError(f"{region} has ROM before it in the memory file; put RAM first")
        offset += region.bytes
        kind = region.kind
