# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration space as memory: the same registers as through the ports, and nothing behind 256 bytes."""

from typing import Any

import pytest
from coremesh.core.x86.memory_map import ECAM
from coremesh.hw.decode import MMIO
from coremesh.hw.device import Device
from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import Bar, PciFunction

ADDRESS, DATA = 0xCF8, 0xCFC
PIIX3 = 1


class Chip(Device):
    """Answers with its offset."""

    widths = (4,)

    def read(self, offset: int, size: int) -> int:
        return 0x1000 + offset


def at(slot: int, register: int, function: int = 0) -> int:
    return ECAM.start | slot << 15 | function << 12 | register


def read(pc: Any, address: int, size: int = 4) -> int:
    return int(pc.node.access(MMIO, address, size, False, 0))


def write(pc: Any, address: int, value: int, size: int = 4) -> None:
    pc.node.access(MMIO, address, size, True, value)


def test_every_register_reads_as_through_the_ports(pc: Any) -> None:
    """When a guest reads all of bus 0 in both ways, then it finds the same, absent functions included."""
    for slot in range(32):
        for function in (0, 1, 7):
            for register in range(0, 256, 4):
                pc.outl(ADDRESS, 1 << 31 | slot << 11 | function << 8 | register)
                assert read(pc, at(slot, register, function)) == pc.inl(DATA), (slot, function, register)
    assert (read(pc, at(0, 0, 0), 2), read(pc, at(0, 2, 0), 2), read(pc, at(0, 1, 0), 1)) == (
        0x8086, 0x1237, 0x80,
    )  # fmt: skip


def test_a_write_of_either_kind_is_seen_by_the_other(pc: Any) -> None:
    write(pc, at(PIIX3, 0x60), 0x0A, 1)
    pc.outl(ADDRESS, 1 << 31 | PIIX3 << 11 | 0x60)
    assert pc.inb(DATA) == 0x0A
    pc.outb(DATA + 1, 0x0B)
    assert read(pc, at(PIIX3, 0x60), 2) == 0x0B0A
    write(pc, at(PIIX3, 0), 0)
    assert read(pc, at(PIIX3, 0)) == 0x7000_8086, "identity is read-only here too"


@pytest.mark.parametrize("register", [0x100, 0x104, 0xFFC])
def test_a_conventional_function_has_no_extended_space(pc: Any, register: int) -> None:
    """When software looks for an extended capability, then no function answers, and a write changes none."""
    before = [read(pc, at(0, place)) for place in range(0, 256, 4)]
    assert [read(pc, at(0, register), size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
    write(pc, at(0, register), 0x1234_5678)
    assert [read(pc, at(0, place)) for place in range(0, 256, 4)] == before


def test_a_base_address_moves_a_device(make_pc: Any) -> None:
    """Given a function with a base address, when a guest gives it one through ECAM, it answers there."""

    chip = Chip("chip")
    card = PciFunction(
        "card", vendor=0x1234, device=1, class_code=0xFF0000, bars=(Bar(0, MMIO, 0x1000, chip),)
    )
    pc = make_pc(functions=[card])
    write(pc, at(3, 0x10), 0xD000_0000)
    write(pc, at(3, COMMAND.offset), COMMAND.MEMORY, 2)
    assert read(pc, 0xD000_0008) == 0x1008
    write(pc, at(3, 0x10), ECAM.start)
    assert read(pc, at(0, 0)) == 0x1237_8086, "and where configuration space is, that stays"
