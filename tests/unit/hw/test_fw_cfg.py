# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg as firmware reads it: by bytes and by DMA, whatever a guest asks for."""

import struct
from typing import Any

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw.isa.fw_cfg import DMA_SIGNATURE, FwCfg, Item
from coremesh.hw.memory import GuestMemory
from hypothesis import given, settings
from hypothesis import strategies as st

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
FILES = {"etc/e820": b"abc" * 100, "bootorder": b"/pci\n", "etc/big": bytes(range(256)) * 5000}


class Ram:
    """16 MiB, as a host answers."""

    def __init__(self) -> None:
        self.data = bytearray(16 << 20)

    def ram_read(self, gpa: int, length: int) -> bytes:
        if not 0 <= gpa <= len(self.data) - length:
            raise IndexError("not a range of guest RAM")
        return bytes(self.data[gpa : gpa + length])

    def ram_write(self, gpa: int, data: bytes) -> None:
        if not 0 <= gpa <= len(self.data) - len(data):
            raise IndexError("not a range of guest RAM")
        self.data[gpa : gpa + len(data)] = data


class Reader:
    """A guest's driver."""

    def __init__(self, chip: Any, ram: Ram) -> None:
        self.chip, self.ram = chip, ram

    def item(self, key: int, length: int) -> bytes:
        self.chip.write(0, key, 2)
        return bytes(self.chip.read(1) for _ in range(length))

    def dma(self, control: int, length: int, address: int, at: int = 0x1000) -> int:
        self.ram.data[at : at + 16] = struct.pack(">IIQ", control, length, address)
        self.chip.write(4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"), 4)
        self.chip.write(8, int.from_bytes((at & 0xFFFF_FFFF).to_bytes(4, "big"), "little"), 4)
        return int.from_bytes(self.ram.data[at : at + 4], "big")

    def directory(self) -> dict[str, tuple[int, int]]:
        count = int.from_bytes(self.item(Item.FILE_DIR, 4), "big")
        raw = bytes(self.chip.read(1) for _ in range(64 * count))
        return {
            name.rstrip(b"\0").decode(): (key, size)
            for size, key, _, name in struct.iter_unpack(">IHH56s", raw)
        }


@pytest.fixture
def reader(guest_access: Any) -> Reader:
    ram = Ram()
    return Reader(guest_access(FwCfg(GuestMemory(ram), {Item.NB_CPUS: b"\x08\0"}, FILES)), ram)


def test_firmware_recognises_it_and_finds_the_items(reader: Reader) -> None:
    assert reader.item(Item.SIGNATURE, 4) == b"QEMU"
    assert reader.item(Item.ID, 4) == b"\x03\0\0\0"
    assert reader.item(Item.NB_CPUS, 4) == b"\x08\0\0\0", "behind the end are zeros"
    assert reader.chip.read(4, 8) == int.from_bytes(DMA_SIGNATURE.to_bytes(8, "big"), "little")
    assert reader.item(0x3333, 2) == b"\0\0"


def test_files_are_found_by_name_and_read_both_ways(reader: Reader) -> None:
    found = reader.directory()
    assert {name: size for name, (_, size) in found.items()} == {n: len(data) for n, data in FILES.items()}
    for name, (key, size) in found.items():
        assert reader.dma(key << 16 | SELECT | READ, size, 0x10_0000) == 0
        assert reader.ram.data[0x10_0000 : 0x10_0000 + size] == FILES[name]
    key, _ = found["etc/e820"]
    assert reader.item(key, 9) == b"abcabcabc"


def test_a_transfer_goes_on_skips_and_stops_at_the_end(reader: Reader) -> None:
    key, size = reader.directory()["etc/e820"]
    assert reader.dma(key << 16 | SELECT | SKIP, size - 2, 0) == 0
    reader.ram.data[0x2000:0x2008] = b"\xff" * 8
    assert reader.dma(READ, 6, 0x2000) == 0
    assert reader.ram.data[0x2000:0x2008] == b"bc\0\0\0\0\xff\xff"


def test_what_cannot_be_done_ends_in_the_error_bit(reader: Reader) -> None:
    key, _ = reader.directory()["etc/big"]
    assert reader.dma(key << 16 | SELECT | READ, 4096, (16 << 20) - 100) == ERROR
    assert reader.dma(key << 16 | SELECT | READ, 0xFFFF_FFFF, 0x10_0000) == ERROR
    assert reader.dma(key << 16 | SELECT | WRITE, 4, 0x2000) == ERROR
    assert reader.item(key, 3) == FILES["etc/big"][:3]
    reader.chip.write(8, 0xFFFF_FFFF, 4)  # a description outside of RAM: nowhere to answer


def test_a_name_that_does_not_fit_the_directory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="fw_cfg file"):
        FwCfg(GuestMemory(Ram()), {}, {"etc/" + "x" * 60: b""})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
        ),
        max_size=30,
    )
)
def test_whatever_a_guest_writes_there_is_answered(
    accesses: list[tuple[int, int, int]],
) -> None:
    """Given random accesses and random DMA descriptions, then nothing but RAM of the guest is touched."""
    ram = Ram()
    device = FwCfg(GuestMemory(ram), {}, FILES)
    for first, second, third in accesses:
        if first < 12 and second in (1, 2, 4, 8):
            device.write(first, second, third & (1 << 8 * second) - 1)
            assert 0 <= device.read(first, second) < 1 << 8 * second
        else:
            ram.data[0x1000:0x1010] = struct.pack(">IIQ", first, second & 0xFF_FFFF, third)
            device.write(4, 4, 0)
            device.write(8, 4, int.from_bytes((0x1000).to_bytes(4, "big"), "little"))
    assert device.faults == 0
