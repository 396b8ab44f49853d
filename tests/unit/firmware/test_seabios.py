# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine tells its firmware: the tables as the loader's script lays them, memory, counts."""

import struct

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import GIB, MIB
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.board.pc import PC_WITH_FIRMWARE
from coremesh.hw.firmware import seabios
from coremesh.hw.isa.fw_cfg import ForFirmware, Item

TABLES_AT, ROOT_AT = 0x1FFF_0000, 0xF_5C00


def described(vcpus: int = 4, hosts: int = 1, ram: int = GIB) -> ForFirmware:
    memory = MemoryMap(ram)
    topology = Topology(memory.layout, [vcpus // hosts] * hosts)
    return seabios.describe_machine(topology.all_apic_ids, memory, topology, PC_WITH_FIRMWARE, 0x3F8)


def run_script(files: dict[str, bytes]) -> dict[str, tuple[int, bytearray]]:
    """Lay the files as the script says: the address and the bytes of each. What firmware does."""
    laid: dict[str, tuple[int, bytearray]] = {}
    places = {seabios.TABLES: TABLES_AT, seabios.ROOT: ROOT_AT}
    script = files[seabios.LOADER]
    assert len(script) % 128 == 0
    for start in range(0, len(script), 128):
        entry = script[start : start + 128]
        command = struct.unpack_from("<I", entry)[0]
        name = entry[4:60].rstrip(b"\0").decode()
        if command == 1:
            align, zone = struct.unpack_from("<IB", entry, 60)
            assert places[name] % align == 0 and zone == (2 if name == seabios.ROOT else 1)
            laid[name] = places[name], bytearray(files[name])
        elif command == 2:
            source = entry[60:116].rstrip(b"\0").decode()
            at, size = struct.unpack_from("<IB", entry, 116)
            data = laid[name][1]
            value = int.from_bytes(data[at : at + size], "little")
            assert value < len(laid[source][1]), "a pointer leads out of its file"
            data[at : at + size] = (value + laid[source][0]).to_bytes(size, "little")
        else:
            assert command == 3
            at, begin, length = struct.unpack_from("<III", entry, 60)
            data = laid[name][1]
            data[at] = data[at] - sum(data[begin : begin + length]) & 0xFF
    return laid


@pytest.mark.parametrize("vcpus,hosts", [(1, 1), (8, 2), (255, 1)])
def test_the_script_lays_tables_that_an_operating_system_finds(vcpus: int, hosts: int) -> None:
    laid = run_script(dict(described(vcpus, hosts).files))
    root = laid[seabios.ROOT][1]
    assert root[:8] == b"RSD PTR " and sum(root[:20]) & 0xFF == 0 and sum(root) & 0xFF == 0
    base, blob = laid[seabios.TABLES]

    def table(gpa: int, kind: bytes = b"") -> bytes:
        at = gpa - base
        length = int.from_bytes(blob[at + 4 : at + 8], "little")
        found = bytes(blob[at : at + length])
        assert sum(found) & 0xFF == 0 and found.startswith(kind)
        return found

    xsdt = table(struct.unpack_from("<Q", root, 24)[0], b"XSDT")
    tables = {table(gpa)[:4]: table(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[36:])}
    assert set(tables) == {b"FACP", b"APIC", b"MCFG", *([b"SRAT", b"SLIT"] if hosts > 1 else [])}
    facs, dsdt = struct.unpack_from("<QQ", tables[b"FACP"], 132)
    assert struct.unpack_from("<II", tables[b"FACP"], 36) == (facs, dsdt)
    assert facs % 64 == 0 and blob[facs - base :].startswith(b"FACS")
    table(dsdt, b"DSDT")
    madt = tables[b"APIC"]
    cores, at = 0, 44
    while at < len(madt):
        cores += madt[at] == 0
        at += madt[at + 1]
    assert cores == vcpus


def test_counts_memory_and_nodes_are_those_of_the_machine() -> None:
    found = described(8, 2, 5 * GIB)
    assert found.items[Item.NB_CPUS] == found.items[Item.MAX_CPUS] == b"\x08\0"
    ram = [
        (start, size)
        for start, size, kind in struct.iter_unpack("<QQI", found.files["etc/e820"])
        if kind == 1
    ]
    assert ram == [(0, 3 * GIB), (4 * GIB, 2 * GIB)]
    count, *rest = struct.unpack("<11Q", found.items[Item.NUMA])
    assert count == 2 and rest[:8] == [0, 0, 0, 0, 1, 1, 1, 1] and sum(rest[8:]) == 5 * GIB
    assert found.cells[0x3D] & 0xF == 2, "the first to boot from is a disk"


def test_the_rom_ends_at_4_gib_and_its_end_is_also_below_1_mib() -> None:
    image = bytes(range(256)) * 1024
    (top, whole), (low, copy) = seabios.rom_writes(image)
    assert top + len(whole) == 4 * GIB and whole == image
    assert (low, len(copy)) == (0xC_0000, 0x4_0000)
    assert copy[0x2_0000:] == image[-0x2_0000:] and set(copy[:0x2_0000]) == {0xFF}
    small = seabios.rom_writes(image[: 64 << 10])[1][1]
    assert small[0x3_0000:] == image[: 64 << 10] and set(small[:0x3_0000]) == {0xFF}


@pytest.mark.parametrize("size", [0, 1000, 17 * MIB])
def test_an_image_that_is_no_firmware_is_refused_with_the_way_out(size: int) -> None:
    with pytest.raises(ConfigurationError, match="multiple of 64 KiB"):
        seabios.check_rom(bytes(size))
