# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the PC's physical addresses lead: RAM, the devices' hole below 4 GiB, and what firmware says of it.

::

    0000_0000  conventional memory, 639 KiB     boot structures of the loaders below LOADER_END
    0009_FC00  extended BIOS data area          reserved
    000E_0000  ACPI tables                      reserved, RAM behind it
    000F_0000  MP table                         reserved, RAM behind it
    000F_7000  real-mode interrupt stubs        reserved, RAM behind it
    000F_8000  unused                           reserved, RAM behind it
    0010_0000  extended memory                  up to 3 GiB
    C000_0000  PCI configuration space (ECAM)   never RAM
    C010_0000  PCI window, I/O APIC, local APIC never RAM
    1_0000_0000 the rest of RAM

Addresses are guest-physical and in bytes throughout.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from coremesh.core.errors import ConfigurationError, shown
from coremesh.core.memory_layout import GIB, PAGE_BYTES, MemoryLayout, Region

PHYSICAL_ADDRESS_BITS: Final = 40
"""MAXPHYADDR as CPUID 8000_0008h tells it; nothing of the machine lies at or above 2**40."""

LOW_RAM_LIMIT: Final = 0xC000_0000
"""RAM below 4 GiB ends here at the latest; the devices' addresses follow."""
HIGH_RAM_BASE: Final = 4 * GIB

ECAM: Final = Region(0xC000_0000, 0x10_0000)
"""Configuration space of PCI bus 0. At the low end of what a PC has for PCI: firmware gives base addresses
from the high end down."""
PCI_WINDOW_BASE: Final = ECAM.end
PCI_WINDOW_END: Final = 0xFEC0_0000
IOAPIC_BASE: Final = 0xFEC0_0000
LAPIC_BASE: Final = 0xFEE0_0000

EBDA_BASE: Final = 0x9_FC00
"""The extended BIOS data area: the last KiB of the 640 KiB of conventional memory."""
ACPI_TABLES_BASE: Final = 0xE_0000
ACPI_TABLES_END: Final = 0xF_0000
MP_TABLE_BASE: Final = 0xF_0000
MP_TABLE_END: Final = 0xF_7000
BIOS_BASE: Final = 0xF_7000
"""Where real-mode interrupt vectors lead, up to ``KERNEL_FLOOR``."""
CONVENTIONAL_MEMORY: Final = Region(0x500, EBDA_BASE - 0x500)
"""What a kernel may take below 1 MiB: behind the BIOS data area, up to the extended one."""
KERNEL_FLOOR: Final = 0xF_8000
"""Segments of an ELF kernel may begin here: a linker told to put the text at 1 MiB puts the ELF headers, if
it loads them, a page lower."""
EXTENDED_MEMORY_BASE: Final = 0x10_0000
KERNEL_AREA: Final = Region(KERNEL_FLOOR, (1 << PHYSICAL_ADDRESS_BITS) - KERNEL_FLOOR)

MINIMUM_RAM: Final = 2 << 20
MAXIMUM_RAM: Final = (1 << PHYSICAL_ADDRESS_BITS) - (HIGH_RAM_BASE - LOW_RAM_LIMIT)


class E820Type(IntEnum):
    """Address range types of the BIOS call INT 15h, E820h (ACPI 6.4, table 15.4)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


@dataclass(frozen=True, slots=True)
class E820Entry:
    """One line of the memory map that firmware hands to an operating system."""

    start: int
    size: int
    kind: E820Type


class MemoryMap:
    """The RAM of a machine of ``ram_bytes`` and the map that its firmware reports. Immutable.

    ``rom`` are ranges of ROM beside the RAM, such as a firmware's below 4 GiB; the map does not report them.
    ``shadows`` are ranges of RAM that ROM can stand in for.
    Raises :class:`ConfigurationError` when the size is no multiple of 4 KiB, below 2 MiB, or too large for
    the 40 address bits of the guest's cores, or when a ROM does not fit beside it.
    """

    def __init__(self, ram_bytes: int, rom: Iterable[Region] = (), shadows: Iterable[Region] = ()) -> None:
        if isinstance(ram_bytes, bool) or not isinstance(ram_bytes, int):
            raise ConfigurationError(
                f"the memory size {shown(ram_bytes)} is no number of bytes; give a whole number such as {GIB}"
            )
        if ram_bytes < MINIMUM_RAM:
            raise ConfigurationError(
                f"{shown(ram_bytes)} bytes of memory are too little for a PC; "
                "give at least 2 MiB, for Linux 256 MiB"
            )
        if ram_bytes > MAXIMUM_RAM:
            raise ConfigurationError(
                f"{shown(ram_bytes)} bytes of memory do not fit the guest's "
                f"{PHYSICAL_ADDRESS_BITS} address bits; give at most {MAXIMUM_RAM // GIB} GiB"
            )
        if ram_bytes % PAGE_BYTES:
            down = ram_bytes // PAGE_BYTES * PAGE_BYTES
            raise ConfigurationError(
                f"{ram_bytes} bytes of memory are no whole number of 4 KiB pages; "
                f"give {down} or {down + PAGE_BYTES}"
            )
        self.ram_bytes: Final = ram_bytes
        self.low: Final = Region(0, min(ram_bytes, LOW_RAM_LIMIT))
        self.regions: Final = (
            (self.low,)
            if ram_bytes <= LOW_RAM_LIMIT
            else (self.low, Region(HIGH_RAM_BASE, ram_bytes - LOW_RAM_LIMIT))
        )
        self.layout: Final = MemoryLayout.of(self.regions, rom, shadows)

    @property
    def low_ram_bytes(self) -> int:
        """How much of the RAM lies below 4 GiB."""
        return self.low.size

    @property
    def high_ram_bytes(self) -> int:
        """How much of the RAM lies at 4 GiB and above; 0 up to a size of 3 GiB."""
        return self.ram_bytes - self.low.size

    def is_ram(self, start: int, size: int) -> bool:
        """Tell whether all of ``[start, start + size)`` is RAM of one region."""
        return self.layout.is_ram(start, size)

    def e820(self) -> list[E820Entry]:
        """The firmware's memory map, in rising order and without overlap."""
        entries = [
            E820Entry(0, EBDA_BASE, E820Type.RAM),
            E820Entry(EBDA_BASE, EXTENDED_MEMORY_BASE - EBDA_BASE, E820Type.RESERVED),
            E820Entry(EXTENDED_MEMORY_BASE, self.low.end - EXTENDED_MEMORY_BASE, E820Type.RAM),
        ]
        entries.append(E820Entry(ECAM.start, ECAM.size, E820Type.RESERVED))
        entries += [E820Entry(high.start, high.size, E820Type.RAM) for high in self.regions[1:]]
        return entries

    def place_below(
        self, size: int, limit: int, taken: Iterable[Region], align: int = PAGE_BYTES
    ) -> int | None:
        """Find the highest aligned address for ``size`` bytes that end at or below ``limit``.

        Only extended memory below 4 GiB is looked at. Returns None when there is no room beside ``taken``.
        """
        ceiling = min(limit, self.low.end)
        for other in sorted(taken, key=lambda region: region.start, reverse=True):
            start = (ceiling - size) // align * align
            if start >= max(other.end, EXTENDED_MEMORY_BASE):
                return start
            ceiling = min(ceiling, other.start)
        start = (ceiling - size) // align * align
        return start if start >= EXTENDED_MEMORY_BASE else None
