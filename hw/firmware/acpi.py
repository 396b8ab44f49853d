# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's description of the machine: ACPI tables, and with them the older MP table.

::

    RSDP -> XSDT -> FADT -> FACS, DSDT
                 -> MADT
                 -> MCFG
                 -> SRAT, SLIT      only when the machine has several hosts: one node for each

Source: the ACPI Specification 6.4; section numbers below are its. Fixed-feature hardware (section 4.8) is
that of a PC whose chip set is always in ACPI mode: no SMI command port, a power button, no sleep button, no
GPEs. Processor devices are left out on purpose: cores come from the MADT, and with no idle states to offer
a processor device only costs the guest a driver and an idle governor for each core.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.topology import Node, Topology
from coremesh.core.x86.memory_map import (
    ACPI_TABLES_BASE,
    ACPI_TABLES_END,
    IOAPIC_BASE,
    LAPIC_BASE,
    PCI_WINDOW_BASE,
    PCI_WINDOW_END,
    MemoryMap,
)
from coremesh.hw.board.board import Board, Chip
from coremesh.hw.board.pc import PC, ioapic_id
from coremesh.hw.decode import PORT
from coremesh.hw.firmware import aml
from coremesh.hw.firmware.mptable import build_mp_table
from coremesh.hw.isa.acpi_pm import PM1_CNT, PM1_STS, PM_TMR
from coremesh.hw.pci.function import INTA, INTB, INTC, INTD, pirq_of
from coremesh.hw.pci.host import SLOTS

OEM_ID: Final = b"COREMS"
OEM_TABLE_ID: Final = b"COREMESH"
CREATOR_ID: Final = b"CMSH"
REVISION: Final = 1

RESET_VALUE: Final = 0x06
S5_SLEEP_TYPE: Final = 5
RTC_CENTURY_INDEX: Final = 0x32

BROADCAST_APIC_ID: Final = 0xFF
LARGEST_APIC_ID: Final = 0xFFFF_FFFE
ALL_PROCESSORS: Final = 0xFF
NMI_LINT: Final = 1

LOCAL_DISTANCE: Final = 10
REMOTE_DISTANCE: Final = 100
"""Relative cost of memory of the own node and of another one (5.2.17); local is 10 by definition.

Above 30 (node_reclaim_distance) Linux neither places new programs on other nodes nor lets a waker pull a task
from there: to look at the run queues of another host costs a round trip for each, thousands of times a
second.
"""

_PRESENT: Final = 0x0F
"""_STA: present, enabled, shown and functioning (6.3.7)."""
_ALIGNMENT: Final = 64
"""What the FACS needs (5.2.10); the other tables can live with it."""
_SYSTEM_IO: Final = 1
_MOST_RELATIVE: Final = 64 << 10


def build_firmware(
    apic_ids: Sequence[int], memory: MemoryMap, topology: Topology | None = None, board: Board = PC
) -> tuple[list[tuple[int, bytes]], int]:
    """All tables as (guest-physical address, bytes), and the address of the RSDP.

    ``apic_ids`` are the cores' APIC ids, the bootstrap processor's first, each 0 to FFFF_FFFEh and different.
    ``topology`` divides the same cores and the same memory into hosts; with more than one, the guest is told
    that each is a NUMA node. ``board`` has the chips, their addresses and interrupts.
    Raises :class:`ConfigurationError` for ids that no such machine can have, and
    for a ``topology`` of another one. Pure; any thread may call.
    """
    placer = _Placer(ACPI_TABLES_BASE, ACPI_TABLES_END)
    rsdp_gpa = placer.reserve(36)
    _, _, xsdt_gpa = _place_tables(placer, apic_ids, memory, topology, board)
    tables = [(rsdp_gpa, rsdp(xsdt_gpa)), *placer.tables, *build_mp_table(apic_ids, board)]
    for gpa, data in tables:
        if not memory.is_ram(gpa, len(data)):
            raise ConfigurationError(
                f"the firmware's table at {gpa:#x} needs memory there; give at least 2 MiB"
            )
    return tables, rsdp_gpa


@dataclass(frozen=True)
class RelativeTables:
    """Tables in one piece ``data``, whose pointers count from its beginning; the XSDT is at ``root``.

    ``pointers`` are (offset, bytes) of each pointer, ``summed`` (offset, length) of the tables with pointers,
    whose checksums change with them.
    """

    data: bytes
    root: int
    pointers: list[tuple[int, int]]
    summed: list[tuple[int, int]]


def relative_tables(
    apic_ids: Sequence[int], memory: MemoryMap, topology: Topology | None = None, board: Board = PC
) -> RelativeTables:
    """The same tables without the RSDP and the MP table, for firmware that lays them itself.

    Raises as :func:`build_firmware`. Pure; any thread may call.
    """
    placer = _Placer(0, _MOST_RELATIVE)
    described, fadt_at, root = _place_tables(placer, apic_ids, memory, topology, board)
    data = bytearray(placer.end)
    for at, content in placer.tables:
        data[at : at + len(content)] = content
    lengths = {at: len(content) for at, content in placer.tables}
    pointers = [(fadt_at + 36, 4), (fadt_at + 40, 4), (fadt_at + 132, 8), (fadt_at + 140, 8)]
    pointers += [(root + 36 + 8 * number, 8) for number in range(len(described))]
    return RelativeTables(bytes(data), root, pointers, [(at, lengths[at]) for at in (fadt_at, root)])


def _place_tables(
    placer: "_Placer", apic_ids: Sequence[int], memory: MemoryMap, topology: Topology | None, board: Board
) -> tuple[list[int], int, int]:
    """Lay all tables but the RSDP; return where those are that the XSDT lists, the FADT and the XSDT."""
    _check_apic_ids(apic_ids)
    several = topology is not None and topology.hosts > 1
    device_node = topology.device_host if topology is not None and several else None
    dsdt_gpa = placer.place(dsdt(board, device_node))
    facs_gpa = placer.place(facs())
    fadt_gpa = placer.place(fadt(board, facs_gpa, dsdt_gpa))
    described = [fadt_gpa, placer.place(madt(board, apic_ids)), placer.place(mcfg(board))]
    if topology is not None and several:
        _check_topology(apic_ids, memory, topology)
        described += [placer.place(srat(topology.nodes)), placer.place(slit(topology.hosts))]
    xsdt_gpa = placer.place(table(b"XSDT", 1, struct.pack(f"<{len(described)}Q", *described)))
    return described, fadt_gpa, xsdt_gpa


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes zero, modulo 256."""
    return -sum(data) & 0xFF


def table(kind: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header (5.2.6), with length and checksum, before ``body``."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        kind,
        36 + len(body),
        revision,
        0,
        OEM_ID,
        OEM_TABLE_ID,
        REVISION,
        CREATOR_ID,
        REVISION,
    )
    whole = bytearray(header + body)
    whole[9] = checksum(whole)
    return bytes(whole)


def rsdp(xsdt_gpa: int) -> bytes:
    """The root pointer, revision 2 (5.2.5.3); it has no RSDT, for which revision 1 had the first checksum."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt_gpa, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def facs() -> bytes:
    """The firmware control structure, version 2 (5.2.10): no waking vector, and the global lock is free."""
    return struct.pack("<4s5IQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def fadt(board: Board, facs_gpa: int, dsdt_gpa: int) -> bytes:
    """The fixed description, revision 6.3 (5.2.9)."""
    pm_base, reset_port = board["acpi-pm"].base, board["reset"].base
    event, control, timer = (pm_base + block.offset for block in (PM1_STS, PM1_CNT, PM_TMR))
    wbinvd, proc_c1, sleep_button, fixed_rtc, reset_register = (1 << bit for bit in (0, 2, 5, 6, 10))
    # A set button or RTC bit says that there is no such fixed feature: only the power button (bit 4) is one.
    legacy_devices, keyboard_8042, no_aspm = 1 << 0, 1 << 1, 1 << 4
    body = bytearray(276 - 36)

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, body, offset - 36, *values)

    put(36, "II", facs_gpa, dsdt_gpa)
    put(45, "B", 4)  # preferred profile: enterprise server
    put(46, "H", board.irq("acpi-pm"))
    put(56, "I", event)
    put(64, "I", control)
    put(76, "I", timer)
    put(88, "BBxB", 4, 2, 4)  # lengths of the PM1 event and control blocks and of the timer
    put(96, "HH", 101, 1001)  # latencies that mean: no C2, no C3
    put(108, "B", RTC_CENTURY_INDEX)
    put(109, "H", legacy_devices | keyboard_8042 | no_aspm)
    put(112, "I", wbinvd | proc_c1 | sleep_button | fixed_rtc | reset_register)
    put(116, "4BQ", *_io_address(8, reset_port))
    put(128, "BxxB", RESET_VALUE, 3)  # ... and the minor version
    put(132, "QQ", facs_gpa, dsdt_gpa)
    put(148, "4BQ", *_io_address(32, event))
    put(172, "4BQ", *_io_address(16, control))
    put(208, "4BQ", *_io_address(32, timer))
    return table(b"FACP", 6, bytes(body))


def madt(board: Board, apic_ids: Sequence[int]) -> bytes:
    """The interrupt controllers, revision 5 (5.2.12): cores, the I/O APIC, and what drives its inputs."""
    pcat_compat = enabled = 1
    active_high_level = 0b11 << 2 | 0b01
    parts = [struct.pack("<II", LAPIC_BASE, pcat_compat)]
    wide = False
    for uid, apic_id in enumerate(apic_ids):
        if apic_id < BROADCAST_APIC_ID:
            parts.append(struct.pack("<BBBBI", 0, 8, uid & 0xFF, apic_id, enabled))
        else:
            wide = True
            parts.append(struct.pack("<BBHIII", 9, 16, 0, apic_id, enabled, uid))
    parts.append(struct.pack("<BBBBII", 1, 12, ioapic_id(apic_ids), 0, IOAPIC_BASE, 0))
    for irq in sorted(board.levels | set(board.pins)):
        flags = active_high_level if irq in board.levels else 0
        parts.append(struct.pack("<BBBBIH", 2, 10, 0, irq, board.pin(irq), flags))
    parts.append(struct.pack("<BBBHB", 4, 6, ALL_PROCESSORS, 0, NMI_LINT))
    if wide:
        parts.append(struct.pack("<BBHIB3x", 10, 12, 0, 0xFFFF_FFFF, NMI_LINT))
    return table(b"APIC", 5, b"".join(parts))


def mcfg(board: Board) -> bytes:
    """Where configuration space is memory (PCI Firmware Specification 3.0, 4.1.2): that of bus 0."""
    segment = first_bus = last_bus = 0
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", board["ecam"].base, segment, first_bus, last_bus))


def srat(nodes: Sequence[Node]) -> bytes:
    """Which cores and which memory are near each other, revision 3 (5.2.16)."""
    enabled = 1
    parts = [struct.pack("<IQ", 1, 0)]
    for node in nodes:
        for apic_id in node.apic_ids:
            if apic_id < BROADCAST_APIC_ID:
                low, high = node.host & 0xFF, (node.host >> 8).to_bytes(3, "little")
                parts.append(struct.pack("<BBBBIB3sI", 0, 16, low, apic_id, enabled, 0, high, 0))
            else:
                parts.append(struct.pack("<BBHIIIII", 2, 24, 0, node.host, apic_id, enabled, 0, 0))
    for node in nodes:
        for region in node.regions:
            parts.append(
                struct.pack("<BBIHQQIIQ", 1, 40, node.host, 0, region.start, region.size, 0, enabled, 0)
            )
    return table(b"SRAT", 3, b"".join(parts))


def slit(nodes: int) -> bytes:
    """How far the nodes are from each other (5.2.17): any two as far as any other two."""
    rows = (
        bytes(LOCAL_DISTANCE if here == there else REMOTE_DISTANCE for there in range(nodes))
        for here in range(nodes)
    )
    return table(b"SLIT", 1, struct.pack("<Q", nodes) + b"".join(rows))


def dsdt(board: Board, device_node: int | None = None) -> bytes:
    """The differentiated description: power-off, the PCI root, its interrupt lines, the ISA devices, ECAM.

    ``device_node`` is the NUMA node that the devices are near to (_PXM, 6.2.14), if there are several.
    """
    s5 = aml.integer(S5_SLEEP_TYPE)
    configuration = board["pci"].base
    root = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        b"" if device_node is None else aml.name("_PXM", aml.integer(device_node)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.word_bus_number(0, 0),
                aml.io_ports(configuration, 8),
                aml.word_io(0x0000, configuration - 1),
                aml.word_io(configuration + 8, 0xFFFF),
                aml.dword_memory(PCI_WINDOW_BASE, PCI_WINDOW_END - 1),
            ),
        ),
        aml.name("_PRT", aml.package(*_routing(board))),
        *(_isa_device(chip) for chip in board.chips if chip.acpi),
    )
    # An operating system trusts the MCFG only where something else says that the range is taken
    # (PCI Firmware Specification 3.0, 4.1.2).
    (ecam,) = board["ecam"].ranges
    taken = aml.device(
        "ECAM",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(ecam.base, ecam.length))),
    )
    return table(
        b"DSDT",
        2,
        aml.name("\\_S5", aml.package(s5, s5, aml.integer(0), aml.integer(0)))
        + aml.scope("\\_SB", root, taken),
    )


def _routing(board: Board) -> list[bytes]:
    """Which I/O APIC pin each interrupt pin of each slot reaches (6.2.13), whatever is in the slot.

    These are for a guest that uses the I/O APIC; one that does not reads the interrupt line registers.
    """
    if not board.pirq_pins:
        return []
    any_function = 0xFFFF
    return [
        aml.package(
            aml.integer(slot << 16 | any_function),
            aml.integer(pin - INTA),
            aml.integer(0),
            aml.integer(board.pirq_pins[pirq_of(slot, pin)]),
        )
        for slot in range(1, SLOTS)
        for pin in (INTA, INTB, INTC, INTD)
    ]


def _isa_device(chip: Chip) -> bytes:
    assert chip.acpi is not None
    resources = [aml.io_ports(r.base, r.length) for r in chip.described if r.space == PORT]
    if chip.irq is not None:
        resources.append(aml.irq(chip.irq))
    return aml.device(
        chip.acpi.path,
        aml.name("_HID", aml.eisa_id(chip.acpi.hid)),
        aml.name("_UID", aml.integer(chip.acpi.uid)),
        aml.name("_STA", aml.integer(_PRESENT)),
        aml.name("_CRS", aml.resource_template(*resources)),
    )


def _io_address(bits: int, port: int) -> tuple[int, int, int, int, int]:
    """A generic address structure (5.2.3.2): space, width, offset, access size as a logarithm, address."""
    return _SYSTEM_IO, bits, 0, bits.bit_length() - 3, port


def _check_apic_ids(apic_ids: Sequence[int]) -> None:
    if not apic_ids:
        raise ConfigurationError("a machine without vCPUs cannot start; give at least one")
    if len(set(apic_ids)) != len(apic_ids):
        raise ConfigurationError("two vCPUs have the same APIC id; give each its own")
    for apic_id in apic_ids:
        if not 0 <= apic_id <= LARGEST_APIC_ID or apic_id == BROADCAST_APIC_ID:
            raise ConfigurationError(
                f"{apic_id:#x} is no APIC id of a core; give 0 to FEh, or 100h and above with x2APIC"
            )


def _check_topology(apic_ids: Sequence[int], memory: MemoryMap, topology: Topology) -> None:
    regions = [region for node in topology.nodes for region in node.regions]
    if sorted(apic_ids) != sorted(topology.all_apic_ids) or (
        sum(region.size for region in regions) != memory.ram_bytes
        or not all(memory.is_ram(region.start, region.size) for region in regions)
    ):
        raise ConfigurationError("the hosts' vCPUs and memory are not the machine's; describe the same one")


class _Placer:
    """Lays tables one behind the other into a window of guest-physical addresses."""

    def __init__(self, start: int, end: int) -> None:
        self._next = start
        self._end = end
        self.tables: list[tuple[int, bytes]] = []

    @property
    def end(self) -> int:
        """Behind the last table, aligned."""
        return self._next

    def reserve(self, size: int) -> int:
        gpa = self._next
        self._next = -(-(gpa + size) // _ALIGNMENT) * _ALIGNMENT
        if self._next > self._end:
            raise ConfigurationError(
                "the firmware's tables outgrow their 64 KiB; give the machine fewer vCPUs"
            )
        return gpa

    def place(self, data: bytes) -> int:
        gpa = self.reserve(len(data))
        self.tables.append((gpa, data))
        return gpa
