# SPDX-License-Identifier: GPL-2.0-or-later
"""The MP configuration table, found and read as the MultiProcessor Specification 1.4 says."""

import struct
from collections.abc import Callable, Sequence

import pytest

Install = Callable[[Sequence[int]], tuple[bytes, int]]

ENTRY_BYTES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def find_pointer(ram: bytes) -> int:
    (at,) = (at for at in range(0xF_0000, 0x10_0000, 16) if ram[at : at + 4] == b"_MP_")
    return at


def entries(ram: bytes) -> dict[int, list[bytes]]:
    """The base entries by type; signatures, lengths, the count and both checksums must hold."""
    pointer = find_pointer(ram)
    assert sum(ram[pointer : pointer + 16]) & 0xFF == 0
    gpa, paragraphs, revision = struct.unpack_from("<IBB", ram, pointer + 4)
    assert (paragraphs, revision) == (1, 4)
    assert ram[gpa : gpa + 4] == b"PCMP"
    length = struct.unpack_from("<H", ram, gpa + 4)[0]
    assert sum(ram[gpa : gpa + length]) & 0xFF == 0
    assert struct.unpack_from("<I", ram, gpa + 36)[0] == 0xFEE0_0000
    found: dict[int, list[bytes]] = {}
    at, count = gpa + 44, 0
    while at < gpa + length:
        kind = ram[at]
        found.setdefault(kind, []).append(ram[at : at + ENTRY_BYTES[kind]])
        at += ENTRY_BYTES[kind]
        count += 1
    assert at == gpa + length and count == struct.unpack_from("<H", ram, gpa + 34)[0]
    return found


@pytest.mark.parametrize("vcpus", [1, 2, 16, 255])
def test_every_core_is_listed_and_the_first_is_the_bootstrap_processor(install: Install, vcpus: int) -> None:
    cores = entries(install(range(vcpus))[0])[0]
    assert [core[1] for core in cores] == list(range(vcpus))
    assert [core[3] for core in cores] == [0b11] + [0b01] * (vcpus - 1)


def test_cores_that_need_x2apic_are_left_to_acpi(install: Install) -> None:
    cores = entries(install([0, 254, 256, 1000])[0])[0]
    assert [core[1] for core in cores] == [0, 254]


def test_isa_interrupts_reach_the_ioapic_as_the_chips_are_wired(install: Install) -> None:
    found = entries(install(range(4))[0])
    pci, bus = found[1]
    assert (pci[1], pci[2:], bus[2:]) == (0, b"PCI   ", b"ISA   ")
    (ioapic,) = found[2]
    assert ioapic[2] == 0x20, "the version that the chip's own register reads"
    assert ioapic[1] == 4 and struct.unpack_from("<I", ioapic, 4)[0] == 0xFEC0_0000
    extint, *lines = found[3]
    assert extint[1] == 3 and extint[7] == 0, "the 8259A pair on the first pin"
    pins = {}
    for entry in lines:
        kind, flags, source_bus, irq, target, pin = struct.unpack_from("<BHBBBB", entry, 1)
        assert (kind, target) == (0, ioapic[1])
        if source_bus == bus[1]:
            pins[irq] = (pin, flags)
    assert pins[0] == (2, 0) and pins[9] == (9, 0b1101) and 2 not in pins
    assert all(pins[irq] == (irq, 0) for irq in (1, 4, 8, 12, 15))


def test_pci_interrupts_are_low_levels_and_turn_from_slot_to_slot(install: Install) -> None:
    found = entries(install(range(2))[0])
    lines = [struct.unpack_from("<BHBBBB", entry, 1) for entry in found[3]]
    pci = {
        (source >> 2, source & 3): (flags, pin) for _, flags, bus, source, _, pin in lines if bus == 0 < pin
    }
    assert {flags for flags, _ in pci.values()} == {0b1111}
    assert [pci[3, pin][1] for pin in range(4)] == [18, 19, 16, 17]
    assert [pci[slot, 0][1] for slot in (1, 2, 3, 4, 5)] == [16, 17, 18, 19, 16]


def test_the_8259_reaches_lint0_and_nmi_lint1_of_every_core(install: Install) -> None:
    local = [struct.unpack_from("<BHBBBB", entry, 1) for entry in entries(install([0])[0])[4]]
    extint, nmi = 3, 1
    assert [(kind, target, lint) for kind, _, _, _, target, lint in local] == [
        (extint, 0xFF, 0),
        (nmi, 0xFF, 1),
    ]
