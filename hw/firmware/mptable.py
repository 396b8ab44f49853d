# SPDX-License-Identifier: GPL-2.0-or-later
"""The MP configuration table, for operating systems and test kernels that do not read ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4. It knows APIC ids of eight bits; cores beyond are
left out. The machine is in virtual wire mode: the 8259A pair drives LINT0 of the bootstrap processor.
"""

import struct
from collections.abc import Sequence
from typing import Final

from coremesh.core.x86 import cpuid
from coremesh.core.x86.memory_map import IOAPIC_BASE, LAPIC_BASE, MP_TABLE_BASE
from coremesh.hw.board.board import Board
from coremesh.hw.board.pc import PC, ioapic_id
from coremesh.hw.pci.function import INTA, INTB, INTC, INTD, pirq_of
from coremesh.hw.pci.host import SLOTS

SPEC_REVISION: Final = 4
OEM_ID: Final = b"COREMESH"
PRODUCT_ID: Final = b"PC".ljust(12)
LARGEST_XAPIC_ID: Final = 0xFE
LAPIC_VERSION: Final = 0x14
IOAPIC_VERSION: Final = 0x20
PCI_BUS: Final = 0
"""Must be the number of the PCI bus itself (appendix D.3)."""
ISA_BUS: Final = 1
ISA_IRQS: Final = (0, 1, *range(3, 16))
"""The cascade, IRQ 2, is no interrupt of its own."""
ALL_LAPICS: Final = 0xFF

_PROCESSOR, _BUS, _IOAPIC, _INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _SMI, _EXTINT = range(4)
_ENABLED: Final = 1 << 0
_BOOTSTRAP: Final = 1 << 1
_CONFORMING: Final = 0
_ACTIVE_HIGH_LEVEL: Final = 0b11 << 2 | 0b01
_ACTIVE_LOW_LEVEL: Final = 0b11 << 2 | 0b11


def build_mp_table(apic_ids: Sequence[int], board: Board = PC) -> list[tuple[int, bytes]]:
    """The floating pointer and the table as (guest-physical address, bytes); the first id is the BSP's."""
    pointer_bytes = 16
    table_gpa = MP_TABLE_BASE + pointer_bytes
    pointer = bytearray(
        struct.pack("<4sIBBB5B", b"_MP_", table_gpa, pointer_bytes // 16, SPEC_REVISION, 0, 0, 0, 0, 0, 0)
    )
    pointer[10] = -sum(pointer) & 0xFF
    return [(MP_TABLE_BASE, bytes(pointer)), (table_gpa, configuration_table(apic_ids, board))]


def configuration_table(apic_ids: Sequence[int], board: Board = PC) -> bytes:
    """Header and base entries (4.2, 4.3), in the order of their types."""
    usable = [apic_id for apic_id in apic_ids if apic_id <= LARGEST_XAPIC_ID]
    ioapic = ioapic_id(usable)
    features = int(cpuid.BASE_EDX)
    entries = [
        struct.pack(
            "<BBBBII8x",
            _PROCESSOR,
            apic_id,
            LAPIC_VERSION,
            _ENABLED | (_BOOTSTRAP if index == 0 else 0),
            cpuid.signature(),
            features,
        )
        for index, apic_id in enumerate(usable)
    ]
    if board.pirq_pins:
        entries.append(struct.pack("<BB6s", _BUS, PCI_BUS, b"PCI   "))
    entries.append(struct.pack("<BB6s", _BUS, ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", _IOAPIC, ioapic, IOAPIC_VERSION, _ENABLED, IOAPIC_BASE))
    # The 8259A pair's output also reaches the I/O APIC's first pin (figure 3-5 of the specification).
    entries.append(struct.pack("<BBHBBBB", _INTERRUPT, _EXTINT, _CONFORMING, ISA_BUS, 0, ioapic, 0))
    for irq in ISA_IRQS:
        flags = _ACTIVE_HIGH_LEVEL if irq in board.levels else _CONFORMING
        entries.append(struct.pack("<BBHBBBB", _INTERRUPT, _INT, flags, ISA_BUS, irq, ioapic, board.pin(irq)))
    entries += _pci_interrupts(board, ioapic)
    for kind, lint in ((_EXTINT, 0), (_NMI, 1)):
        entries.append(
            struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, kind, _CONFORMING, ISA_BUS, 0, ALL_LAPICS, lint)
        )
    body = b"".join(entries)
    table = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBx",
            b"PCMP",
            44 + len(body),
            SPEC_REVISION,
            0,
            OEM_ID,
            PRODUCT_ID,
            0,
            0,
            len(entries),
            LAPIC_BASE,
            0,
            0,
        )
        + body
    )
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _pci_interrupts(board: Board, ioapic: int) -> list[bytes]:
    """Every interrupt pin of every slot: the source is slot << 2 | pin (appendix D.3)."""
    return [
        struct.pack(
            "<BBHBBBB",
            _INTERRUPT,
            _INT,
            _ACTIVE_LOW_LEVEL,
            PCI_BUS,
            slot << 2 | pin - INTA,
            ioapic,
            board.pirq_pins[pirq_of(slot, pin)],
        )
        for slot in range(1, SLOTS)
        for pin in (INTA, INTB, INTC, INTD)
        if board.pirq_pins
    ]
