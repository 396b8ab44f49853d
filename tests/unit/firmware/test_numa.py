# SPDX-License-Identifier: GPL-2.0-or-later
"""SRAT and SLIT: a guest of several hosts finds each core and each byte of memory in one node."""

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import GIB, MIB
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.firmware.acpi import build_firmware


def tables_of(memory: MemoryMap, topology: Topology | None, apic_ids: list[int]) -> dict[str, bytes]:
    """The tables that the XSDT names, by signature."""
    laid, rsdp_gpa = build_firmware(apic_ids, memory, topology)
    by_gpa = dict(laid)
    xsdt = by_gpa[struct.unpack_from("<Q", by_gpa[rsdp_gpa], 24)[0]]
    found = {}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        data = by_gpa[gpa]
        assert sum(data) & 0xFF == 0 and struct.unpack_from("<I", data, 4)[0] == len(data)
        found[data[:4].decode()] = data
    return found


def affinities(srat: bytes) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """Node by APIC id, and (start, size, node) of the memory."""
    assert srat[8] == 3 and srat[36:48] == struct.pack("<IQ", 1, 0)
    cores: dict[int, int] = {}
    memory = []
    at = 48
    while at < len(srat):
        kind, length = srat[at], srat[at + 1]
        entry = srat[at : at + length]
        if kind == 0:
            low, apic_id, flags = struct.unpack_from("<BBI", entry, 2)
            cores[apic_id] = low | int.from_bytes(entry[9:12], "little") << 8
        elif kind == 2:
            node, apic_id, flags = struct.unpack_from("<III", entry, 4)
            cores[apic_id] = node
        else:
            assert kind == 1
            node, _, start, size, _, flags = struct.unpack_from("<IHQQII", entry, 2)
            memory.append((start, size, node))
        assert flags == 1 and length == {0: 16, 1: 40, 2: 24}[kind]
        at += length
    assert at == len(srat)
    return cores, memory


def machine(ram_bytes: int, hosts: list[int]) -> tuple[Topology, dict[str, bytes]]:
    memory = MemoryMap(ram_bytes)
    topology = Topology(memory.layout, hosts)
    return topology, tables_of(memory, topology, topology.all_apic_ids)


@pytest.mark.parametrize(
    ("ram_bytes", "hosts"),
    [
        (2 * MIB, [1, 1]),
        (GIB, [4, 4]),
        (GIB, [6, 2]),
        (4 * GIB, [2, 2, 2, 2]),
        (16 * GIB, [100, 100, 55]),
        (GIB, [1] * 64),
    ],
)
def test_every_core_and_every_byte_is_in_the_node_of_its_host(ram_bytes: int, hosts: list[int]) -> None:
    topology, tables = machine(ram_bytes, hosts)
    assert set(tables) == {"FACP", "APIC", "MCFG", "SRAT", "SLIT"}
    cores, memory = affinities(tables["SRAT"])
    assert cores == topology.vcpu_hosts
    assert memory == [(r.start, r.size, node.host) for node in topology.nodes for r in node.regions]
    assert sum(size for _, size, _ in memory) == ram_bytes


def test_any_other_node_is_as_far_as_the_next() -> None:
    _, tables = machine(GIB, [1, 1, 1])
    slit = tables["SLIT"]
    assert struct.unpack_from("<Q", slit, 36)[0] == 3
    assert list(slit[44:]) == [10, 100, 100, 100, 10, 100, 100, 100, 10]


def test_a_machine_of_one_host_has_the_tables_that_it_always_had() -> None:
    memory = MemoryMap(GIB)
    ids = list(range(8))
    plain = build_firmware(ids, memory)
    assert build_firmware(ids, memory, Topology(memory.layout, [8])) == plain
    digest = hashlib.sha256(repr(plain).encode()).hexdigest()
    assert digest == "e4982ad75f36f8adf993bf4486d3e0afcbda04f5345ab002dde16a0e1729570b"


def test_hosts_of_another_machine_are_refused() -> None:
    memory = MemoryMap(GIB)
    with pytest.raises(ConfigurationError, match="not the machine's"):
        build_firmware([0, 1, 2], memory, Topology(memory.layout, [1, 1]))
    with pytest.raises(ConfigurationError, match="not the machine's"):
        build_firmware([0, 1], memory, Topology(MemoryMap(512 * MIB).layout, [1, 1]))


def test_the_devices_are_near_the_first_node(tmp_path: Path) -> None:
    memory = MemoryMap(GIB)
    several, _ = build_firmware([0, 1], memory, Topology(memory.layout, [1, 1]))
    one, _ = build_firmware([0, 1], memory)
    (dsdt,) = [data for _, data in several if data[:4] == b"DSDT"]
    (plain,) = [data for _, data in one if data[:4] == b"DSDT"]
    assert b"_PXM" in dsdt and b"_PXM" not in plain
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("Intel's ACPI compiler is not installed (apt install acpica-tools)")
    (tmp_path / "DSDT.dat").write_bytes(dsdt)
    for command in (["-d", "DSDT.dat"], ["-oa", "-p", "again", "DSDT.dsl"]):
        done = subprocess.run([iasl, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 Errors, 0 Warnings" in done.stdout
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]


def test_the_reference_disassembler_reads_the_same(tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("Intel's ACPI disassembler is not installed (apt install acpica-tools)")
    _, tables = machine(4 * GIB, [5, 5])
    for kind in ("SRAT", "SLIT"):
        (tmp_path / f"{kind}.dat").write_bytes(tables[kind])
    done = subprocess.run(
        [iasl, "-d", "SRAT.dat", "SLIT.dat"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "Invalid" not in done.stderr and "Checksum" not in done.stderr
    srat = (tmp_path / "SRAT.dsl").read_text()
    assert srat.count("Subtable Type : 00 [Processor Local APIC/SAPIC Affinity]") == 10
    assert srat.count("Subtable Type : 01 [Memory Affinity]") == 3
    assert "Base Address : 0000000100000000" in srat
    assert "Localities : 0000000000000002" in (tmp_path / "SLIT.dsl").read_text()
    # ... and compiles what it read to the same bytes again.
    for kind in ("SRAT", "SLIT"):
        done = subprocess.run(
            [iasl, "-p", f"{kind}2", f"{kind}.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / f"{kind}2.aml").read_bytes()[36:] == tables[kind][36:]
