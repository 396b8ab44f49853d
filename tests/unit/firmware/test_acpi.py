# SPDX-License-Identifier: GPL-2.0-or-later
"""The ACPI tables, found and read as an operating system does, and by Intel's disassembler if it is here."""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import MIB
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.firmware.acpi import build_firmware

Install = Callable[[Sequence[int]], tuple[bytes, int]]

CORES = [[0], [0, 1], list(range(8)), list(range(255)), [*range(255), *range(256, 300)]]


def table(ram: bytes, gpa: int, kind: bytes) -> bytes:
    """A table by its address; signature, length and checksum must hold."""
    length = struct.unpack_from("<I", ram, gpa + 4)[0]
    data = ram[gpa : gpa + length]
    assert data[:4] == kind
    assert sum(data) & 0xFF == 0, f"{kind!r} has a wrong checksum"
    return data


def all_tables(ram: bytes, rsdp: int) -> dict[str, bytes]:
    """From the root pointer to every table, by the 64-bit addresses."""
    xsdt = table(ram, struct.unpack_from("<Q", ram, rsdp + 24)[0], b"XSDT")
    found = {}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        kind = ram[gpa : gpa + 4]
        found[kind.decode()] = table(ram, gpa, kind)
    facs_gpa, dsdt_gpa = struct.unpack_from("<QQ", found["FACP"], 132)
    assert facs_gpa % 64 == 0
    found["FACS"] = ram[facs_gpa : facs_gpa + 64]
    found["DSDT"] = table(ram, dsdt_gpa, b"DSDT")
    return found


def madt_entries(madt: bytes) -> Iterator[tuple[int, bytes]]:
    at = 44
    while at < len(madt):
        kind, length = madt[at], madt[at + 1]
        assert length >= 2
        yield kind, madt[at : at + length]
        at += length
    assert at == len(madt)


@pytest.mark.parametrize("apic_ids", CORES)
def test_a_guest_finds_every_table_and_every_checksum_holds(install: Install, apic_ids: list[int]) -> None:
    ram, rsdp = install(apic_ids)
    scanned = [at for at in range(0xE_0000, 0x10_0000, 16) if ram[at : at + 8] == b"RSD PTR "]
    assert scanned == [rsdp]
    assert sum(ram[rsdp : rsdp + 20]) & 0xFF == 0 and sum(ram[rsdp : rsdp + 36]) & 0xFF == 0
    assert ram[rsdp + 15] == 2
    assert set(all_tables(ram, rsdp)) == {"FACP", "FACS", "APIC", "DSDT", "MCFG"}


@pytest.mark.parametrize("apic_ids", CORES)
def test_the_madt_lists_every_core_in_the_form_its_id_needs(install: Install, apic_ids: list[int]) -> None:
    madt = all_tables(*install(apic_ids))["APIC"]
    told, uids = [], []
    for kind, entry in madt_entries(madt):
        if kind == 0:
            uid, apic_id, flags = struct.unpack_from("<BBI", entry, 2)
            assert apic_id < 255
        elif kind == 9:
            apic_id, flags, uid = struct.unpack_from("<III", entry, 4)
            assert apic_id >= 255
        else:
            continue
        assert flags == 1
        told.append(apic_id)
        uids.append(uid)
    assert told == apic_ids
    assert len(set(uids)) == len(uids)


def test_the_madt_routes_the_timer_to_pin_2_and_the_sci_as_a_level(install: Install) -> None:
    madt = all_tables(*install([0, 1]))["APIC"]
    assert struct.unpack_from("<I", madt, 36)[0] == 0xFEE0_0000
    by_kind: dict[int, list[bytes]] = {}
    for kind, entry in madt_entries(madt):
        by_kind.setdefault(kind, []).append(entry)
    (ioapic,) = by_kind[1]
    assert struct.unpack_from("<B", ioapic, 2)[0] not in (0, 1), "not the id of a core"
    assert struct.unpack_from("<II", ioapic, 4) == (0xFEC0_0000, 0)
    overrides = {
        source: (gsi, flags)
        for _, source, gsi, flags in (struct.unpack_from("<BBIH", e, 2) for e in by_kind[2])
    }
    assert overrides == {0: (2, 0), 9: (9, 0b1101)}
    (nmi,) = by_kind[4]
    assert struct.unpack_from("<BHB", nmi, 2) == (0xFF, 0, 1)


def test_the_fadt_names_the_ports_of_the_chips(install: Install) -> None:
    fadt = all_tables(*install([0]))["FACP"]

    def io_port(offset: int) -> tuple[int, int, int]:
        space, bits, bit_offset, _, address = struct.unpack_from("<4BQ", fadt, offset)
        assert bit_offset == 0
        return space, bits, address

    assert len(fadt) == 276 and fadt[8] == 6
    assert io_port(148) == (1, 32, 0x600) and struct.unpack_from("<I", fadt, 56)[0] == 0x600
    assert io_port(172) == (1, 16, 0x604) and struct.unpack_from("<I", fadt, 64)[0] == 0x604
    assert io_port(208) == (1, 32, 0x608) and struct.unpack_from("<I", fadt, 76)[0] == 0x608
    assert io_port(116) == (1, 8, 0xCF9) and fadt[128] == 6
    assert struct.unpack_from("<H", fadt, 46)[0] == 9
    flags = struct.unpack_from("<I", fadt, 112)[0]
    no_power_button, no_sleep_button, reset_register, hardware_reduced = 1 << 4, 1 << 5, 1 << 10, 1 << 20
    assert flags & reset_register and not flags & hardware_reduced
    assert flags & no_sleep_button and not flags & no_power_button, "PM1 has a power button and no other"
    assert struct.unpack_from("<I", fadt, 48)[0] == 0, "no SMI port: always in ACPI mode"


def test_the_mcfg_announces_configuration_space_that_all_maps_call_taken(install: Install) -> None:
    """Linux takes an MCFG for true only where the memory map or a motherboard device reserves the range."""
    mcfg = all_tables(*install([0]))["MCFG"]
    base, segment, first, last = struct.unpack_from("<QHBB", mcfg, 44)
    assert len(mcfg) == 60 and (segment, first, last) == (0, 0, 0)
    for size in (512 * MIB, 5 << 30):
        taken = [entry for entry in MemoryMap(size).e820() if entry.start == base]
        assert [(entry.size, entry.kind) for entry in taken] == [(MIB, 2)]


def test_absurd_cores_are_refused() -> None:
    memory = MemoryMap(2 * MIB)
    for apic_ids, complaint in (
        ([], "at least one"),
        ([0, 0], "same APIC id"),
        ([255], "no APIC id"),
        ([-1], "no APIC id"),
        ([1 << 32], "no APIC id"),
        (list(range(256, 8000)), "fewer vCPUs"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            build_firmware(apic_ids, memory)


def disassemble(tables: dict[str, bytes], folder: Path) -> dict[str, str]:
    """Each table as iasl reads it."""
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("Intel's ACPI disassembler is not installed (apt install acpica-tools)")
    for kind, data in tables.items():
        (folder / f"{kind}.dat").write_bytes(data)
    done = subprocess.run(
        [iasl, "-d", *(f"{kind}.dat" for kind in tables)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Invalid" not in done.stderr and "Checksum" not in done.stderr, done.stderr
    return {kind: (folder / f"{kind}.dsl").read_text() for kind in tables}


def test_the_reference_disassembler_reads_the_same(install: Install, tmp_path: Path) -> None:
    sources = disassemble(all_tables(*install([*range(255), 256])), tmp_path)
    dsdt = sources["DSDT"]
    for phrase in (
        'Name (_HID, EisaId ("PNP0A03")',
        'Name (_HID, EisaId ("PNP0501")',
        'Name (_HID, EisaId ("PNP0B00")',
        "Name (_PRT, Package (0x7C)",
        "0x0003FFFF,",  # any function of slot 3 ...
        "0xFEBFFFFF,         // Range Maximum",
        "WordBusNumber (ResourceProducer",
        "0xC0100000,         // Range Minimum",
        'Name (_HID, EisaId ("PNP0C02")',
        "0xC0000000,         // Address Base",
    ):
        assert phrase in dsdt
    assert "Name (\\_S5, Package (0x04)" in dsdt and "0x05" in dsdt.split("Scope")[0]
    assert "Reset Register Supported (V2) : 1" in sources["FACP"]
    assert "Base Address : 00000000C0000000" in sources["MCFG"]
    assert "Hardware Reduced (V5) : 0" in sources["FACP"]
    assert sources["APIC"].count("Subtable Type : 00 [Processor Local APIC]") == 255
    assert sources["APIC"].count("Subtable Type : 09 [Processor Local x2APIC]") == 1


def test_the_reference_compiler_takes_the_dsdt_back_unchanged(install: Install, tmp_path: Path) -> None:
    tables = all_tables(*install([0]))
    disassemble(tables, tmp_path)
    iasl = shutil.which("iasl")
    assert iasl is not None
    done = subprocess.run(
        [iasl, "-oa", "-p", "again", "DSDT.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 Errors, 0 Warnings" in done.stdout
    header_bytes = 36
    assert (tmp_path / "again.aml").read_bytes()[header_bytes:] == tables["DSDT"][header_bytes:]
