# SPDX-License-Identifier: GPL-2.0-or-later
"""A board as data: the one source of a chip's addresses and interrupt, for decoding and for the tables.

The device node decodes what stands here, and the firmware's tables tell the guest the same: an address is
written once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from coremesh.core.errors import ConfigurationError
from coremesh.hw.decode import MMIO, PORT, At
from coremesh.hw.device import Device


@dataclass(frozen=True)
class Range:
    """``length`` addresses of ``space`` (PORT or MMIO) from ``base``; the first is the chip's ``offset``."""

    space: int
    base: int
    length: int
    offset: int = 0
    widths: tuple[int, ...] = ()


ports = partial(Range, PORT)
memory = partial(Range, MMIO)


@dataclass(frozen=True)
class AcpiName:
    """How the DSDT names a chip: its path below the bus, its EISA id and its ``_UID``."""

    path: str
    hid: str
    uid: int = 0


@dataclass(frozen=True)
class Chip:
    """A place on the board: the chip's ``name``, where it answers, its ISA interrupt, its ACPI device.

    ``acpi_ranges`` are those of its ranges that the guest is told of, by default all.
    """

    name: str
    ranges: tuple[Range, ...]
    irq: int | None = None
    acpi: AcpiName | None = None
    acpi_ranges: tuple[Range, ...] = ()

    @property
    def base(self) -> int:
        """The first address of the first range."""
        return self.ranges[0].base

    @property
    def described(self) -> tuple[Range, ...]:
        """The ranges that the DSDT lists."""
        return self.acpi_ranges or self.ranges


@dataclass(frozen=True)
class Board:
    """The chips in the order in which a person reads them, and where interrupt wires are not one to one.

    ``pins`` maps an ISA interrupt to another pin of the I/O APIC; ``levels`` are those interrupts that are
    active high and level-triggered, where the ISA bus has edges.

    ``pirq_pins`` are the I/O APIC pins of the PCI bus's interrupt lines PIRQA# to PIRQD#; ``pirq_irqs`` the
    ISA interrupts that firmware steers them to for a guest that uses the 8259A pair. ``pci_ports`` and
    ``pci_memory``, first and last address, are where base addresses of PCI functions may lie.
    """

    chips: tuple[Chip, ...]
    pins: Mapping[int, int] = field(default_factory=dict)
    levels: frozenset[int] = frozenset()
    pirq_pins: tuple[int, ...] = ()
    pirq_irqs: tuple[int, ...] = ()
    pci_ports: tuple[int, int] = (0, -1)
    pci_memory: tuple[int, int] = (0, -1)

    def __getitem__(self, name: str) -> Chip:
        """The chip called ``name``. KeyError without it."""
        for chip in self.chips:
            if chip.name == name:
                return chip
        raise KeyError(name)

    def irq(self, name: str) -> int:
        """The ISA interrupt of chip ``name``. Raises ConfigurationError when it has none."""
        irq = self[name].irq
        if irq is None:
            raise ConfigurationError(f"{name} has no interrupt on this board; give it one")
        return irq

    def pin(self, irq: int) -> int:
        """The I/O APIC pin that an ISA interrupt reaches."""
        return self.pins.get(irq, irq)

    def windows(self) -> list[tuple[int, int, int]]:
        """``(space, first, last)`` of the addresses where PCI functions may come to answer."""
        ranges = (PORT, *self.pci_ports), (MMIO, *self.pci_memory)
        return [(space, first, last) for space, first, last in ranges if first <= last]

    def mappings(self, devices: Iterable[Device]) -> list[At]:
        """Where ``devices`` answer: each at the ranges of the chip of its name.

        Raises ConfigurationError for a device without a place, and for a place that stays empty.
        """
        by_name = {device.name: device for device in devices}
        places = {chip.name for chip in self.chips}
        if places != set(by_name):
            odd = ", ".join(sorted(places ^ set(by_name)))
            raise ConfigurationError(f"the board and its devices differ in {odd}; give each place its device")
        return [
            At(r.space, r.base, r.length, by_name[chip.name], r.offset, r.widths)
            for chip in self.chips
            for r in chip.ranges
        ]
