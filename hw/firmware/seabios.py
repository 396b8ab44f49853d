# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that begins with its own firmware: where its ROM lies, and what fw_cfg tells it.

SeaBIOS takes the description of the machine from here as it would from QEMU, whose host bridge and subsystem
ids this machine shows (hw/pci/host.py): memory and processors, ACPI tables with a script that says how to lay
them (*table loader*), the boot order, a serial console.

Sources: QEMU docs/specs/fw_cfg; SeaBIOS docs/Runtime_config.md and src/fw/romfile_loader.h (the script's
format); Intel 82441FX datasheet, section 3.2.17 (PAM).
"""

import struct
from collections.abc import Sequence
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import GIB, KIB, Region
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import ECAM, E820Type, MemoryMap
from coremesh.hw.board.board import Board
from coremesh.hw.firmware import acpi, boot_order, linux_rom
from coremesh.hw.firmware.linux_rom import LinuxImage
from coremesh.hw.isa.fw_cfg import ForFirmware, Item

ROM_UNIT: Final = 64 * KIB
LARGEST_ROM: Final = 16 << 20
_LOW_COPY: Final = 128 * KIB
"""The end of the ROM also answers below 1 MiB, where real mode reaches it."""

UPPER_MEMORY: Final = Region(0xC_0000, 0x4_0000)
SHADOWS: Final = (
    *(Region(start, 0x4000) for start in range(0xC_0000, 0xF_0000, 0x4000)),
    Region(0xF_0000, 0x1_0000),
)
"""What the PAM registers steer, by rising address."""

TABLES, ROOT, LOADER = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
_NAME: Final = 56
_ENTRY: Final = 128
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_HIGH, _FSEG = 1, 2

VGA_ROM: Final = "vgaroms/vgabios.bin"
"""SeaBIOS runs the ROMs of this folder first, as those of cards whose own ROM it cannot find."""

BOOT_ORDER: Final = {0x38: 0x41, 0x3D: 0x32}
"""CMOS cells, as SeaBIOS has them: disk, CD-ROM, network; no look for a diskette's signature."""


def check_rom(image: bytes) -> None:
    """Raise :class:`ConfigurationError` for an image that is no PC firmware."""
    if not image or len(image) % ROM_UNIT or len(image) > LARGEST_ROM:
        raise ConfigurationError(
            f"a firmware image of {len(image)} bytes does not fit below 4 GiB; give a multiple of 64 KiB "
            "up to 16 MiB, such as SeaBIOS' bios-256k.bin"
        )


def rom_region(size: int) -> Region:
    """Where a whole image of ``size`` bytes lies: it ends at 4 GiB, so that the reset vector is in it."""
    return Region(4 * GIB - size, size)


def rom_writes(image: bytes) -> list[tuple[int, bytes]]:
    """What is laid before the start, while each shadow shows its ROM: the image, and its end below 1 MiB.

    C0000 to DFFFF has no ROM: nothing drives the bus there.
    """
    low = image[-_LOW_COPY:].rjust(UPPER_MEMORY.size, b"\xff")
    return [(rom_region(len(image)).start, image), (UPPER_MEMORY.start, low)]


def describe_machine(
    apic_ids: Sequence[int],
    memory: MemoryMap,
    topology: Topology | None,
    board: Board,
    serial: int,
    *,
    boot: Sequence[str] = (),
    linux: LinuxImage | None = None,
    vga_bios: bytes = b"",
) -> ForFirmware:
    """What the firmware of this machine is told; ``serial`` is the port of its console.

    ``boot`` are the devices to try first, as of :mod:`coremesh.hw.firmware.boot_order`; a kernel comes before
    them. ``vga_bios`` is the option ROM of the VGA, which answers INT 10h. Raises as :func:`linux_items`.
    """
    count = struct.pack("<H", len(apic_ids))
    kernel: dict[int, bytes] = {}
    roms = {VGA_ROM: vga_bios} if vga_bios else {}
    if linux is not None:
        kernel, roms[linux_rom.FILE] = linux_rom.linux_items(linux, memory)
        boot = [linux_rom.BOOT_PATH, *boot]
    files = {
        "etc/e820": _e820(memory),
        "etc/max-cpus": count,
        "etc/sercon-port": struct.pack("<Q", serial),
        "etc/boot-fail-wait": struct.pack("<I", 0xFFFF_FFFF),  # stay, instead of a reset after a minute
        "etc/boot-menu-wait": struct.pack("<H", 0),
        **loadable_tables(apic_ids, memory, topology, board),
        **roms,
        **({boot_order.FILE: boot_order.boot_order(boot)} if boot else {}),
    }
    items = {
        Item.RAM_SIZE: struct.pack("<Q", memory.low_ram_bytes),
        Item.NOGRAPHIC: struct.pack("<H", 1),
        Item.NB_CPUS: count,
        Item.MAX_CPUS: count,
        Item.BOOT_MENU: struct.pack("<H", 0),
        Item.NUMA: _numa(apic_ids, topology),
        **kernel,
    }
    return ForFirmware(items, files, BOOT_ORDER)


def _e820(memory: MemoryMap) -> bytes:
    """RAM, and what the MCFG needs to be reserved: firmware itself knows what it takes of RAM."""
    ranges = [*((region, E820Type.RAM) for region in memory.regions), (ECAM, E820Type.RESERVED)]
    return b"".join(struct.pack("<QQI", region.start, region.size, kind) for region, kind in ranges)


def _numa(apic_ids: Sequence[int], topology: Topology | None) -> bytes:
    if topology is None or topology.hosts == 1:
        return struct.pack("<Q", 0)
    nodes = [0] * (max(apic_ids) + 1)
    for apic_id, host in topology.vcpu_hosts.items():
        nodes[apic_id] = host
    sizes = [sum(region.size for region in node.regions) for node in topology.nodes]
    return struct.pack(f"<Q{len(nodes)}Q{len(sizes)}Q", topology.hosts, *nodes, *sizes)


def loadable_tables(
    apic_ids: Sequence[int], memory: MemoryMap, topology: Topology | None, board: Board
) -> dict[str, bytes]:
    """The machine's ACPI tables as files, and the script by which firmware lays them: three files by name.

    Pointers in the tables count from the beginning of their file; the script adds where the firmware has put
    that, and makes the checksums right again.
    """
    found = acpi.relative_tables(apic_ids, memory, topology, board)
    script = [
        _allocate(ROOT, 16, _FSEG),
        _allocate(TABLES, 64, _HIGH),
        *(_add_pointer(TABLES, at, size) for at, size in found.pointers),
        *(_add_checksum(TABLES, start + 9, start, length) for start, length in found.summed),
        _add_pointer(ROOT, 24, 8),
        _add_checksum(ROOT, 8, 0, 20),
        _add_checksum(ROOT, 32, 0, 36),
    ]
    return {TABLES: found.data, ROOT: acpi.rsdp(found.root), LOADER: b"".join(script)}


def _entry(command: int, layout: str, *values: bytes | int) -> bytes:
    return struct.pack("<I" + layout, command, *values).ljust(_ENTRY, b"\0")


def _allocate(file: str, align: int, zone: int) -> bytes:
    return _entry(_ALLOCATE, f"{_NAME}sIB", file.encode(), align, zone)


def _add_pointer(file: str, at: int, size: int) -> bytes:
    return _entry(_ADD_POINTER, f"{_NAME}s{_NAME}sIB", file.encode(), TABLES.encode(), at, size)


def _add_checksum(file: str, at: int, start: int, length: int) -> bytes:
    return _entry(_ADD_CHECKSUM, f"{_NAME}sIII", file.encode(), at, start, length)
