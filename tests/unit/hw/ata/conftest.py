# SPDX-License-Identifier: GPL-2.0-or-later
"""An IDE channel as a driver sees it: registers by name, a bus master's table in RAM, media of memory."""

import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from coremesh.core._native import PythonBusMaster
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.channel import IdeChannel
from coremesh.hw.ata.disk import Disk
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.registers import DEVICE, STATUS

sys.path.append(str(Path(__file__).parent))

RAM_BYTES = 1 << 20
TABLE = 0x8000


class MemoryMedium:
    """A medium of plain bytes that writes down what was asked of it, and fails where it is told."""

    def __init__(self, size: int = 1 << 20, *, read_only: bool = False) -> None:
        self.size = size
        self.read_only = read_only
        self.data = bytearray(size)
        self.calls: list[str] = []
        self.bad: range = range(0)
        self.can_discard = not read_only

    def fill(self) -> "MemoryMedium":
        """Every sector tells its number."""
        for sector in range(self.size // 512):
            self.data[sector * 512 : sector * 512 + 512] = sector.to_bytes(4, "little") * 128
        return self

    def _check(self, offset: int, length: int) -> None:
        assert offset >= 0 and offset + length <= self.size, "the drive went beyond its medium"
        if offset < self.bad.stop and offset + length > self.bad.start:
            raise OSError(errno.EIO, "a bad place")

    def read(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
        self.calls.append("read")
        for buffer in buffers:
            self._check(offset, len(buffer))
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.calls.append("write")
        assert not self.read_only
        for data in buffers:
            self._check(offset, len(data))
            self.data[offset : offset + len(data)] = data
            offset += len(data)

    def flush(self) -> None:
        self.calls.append("flush")

    def discard(self, offset: int, length: int) -> None:
        self.calls.append("discard")
        self._check(offset, length)
        self.data[offset : offset + length] = bytes(length)

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.discard(offset, length)

    def close(self) -> None:
        self.calls.append("close")


class ByteRam:
    """Guest RAM of some MiB; ``touched`` is called before each access."""

    def __init__(self, size: int = RAM_BYTES) -> None:
        self.data = bytearray(size)
        self.touched: Callable[[], None] = lambda: None

    def ram_read(self, gpa: int, length: int) -> bytes:
        self.touched()
        if gpa < 0 or gpa + length > len(self.data):
            raise IndexError(gpa)
        return bytes(self.data[gpa : gpa + length])

    def ram_write(self, gpa: int, data: bytes) -> None:
        self.touched()
        if gpa < 0 or gpa + len(data) > len(self.data):
            raise IndexError(gpa)
        self.data[gpa : gpa + len(data)] = data


class Ide:
    """A channel, its interrupt line, and what a driver does with them."""

    def __init__(self, wire: Any, drives: Sequence[Drive | None]) -> None:
        self.wire = wire
        self.ram = ByteRam()
        self.channel = IdeChannel(wire.line, PythonBusMaster(self.ram, object()), drives, "ide0")

    def inb(self, offset: int) -> int:
        return self._read(offset, 1)

    def _read(self, offset: int, size: int) -> int:
        with self.channel.lock:
            value = self.channel.read(offset, size)
        assert 0 <= value < 1 << 8 * size
        return value

    def outb(self, offset: int, value: int, size: int = 1) -> None:
        with self.channel.lock:
            self.channel.write(offset, size, value)

    def work(self) -> None:
        """Do all that the channel's worker could."""
        self.channel.native.serve()

    @property
    def status(self) -> int:
        """The alternate status, which changes nothing."""
        return self.inb(8)

    @property
    def bus_master_status(self) -> int:
        return self.inb(18)

    def command(
        self,
        code: int,
        lba: int = 0,
        count: int = 1,
        *,
        drive: int = 0,
        wide: bool = False,
        features: int = 0,
    ) -> None:
        """Write the task file and the command, and let the worker run."""
        self.outb(6, DEVICE.LBA | drive << 4 | (0 if wide else lba >> 24 & 0x0F))
        if wide:
            for register, value in ((2, count >> 8), (3, lba >> 24), (4, lba >> 32), (5, lba >> 40)):
                self.outb(register, value & 0xFF)
        self.outb(1, features)
        for register, value in ((2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.outb(register, value & 0xFF)
        self.outb(7, code)
        self.work()

    def data_in(self, length: int, size: int = 2) -> bytes:
        return b"".join(self._read(0, size).to_bytes(size, "little") for _ in range(length // size))

    def data_out(self, data: bytes, size: int = 2) -> None:
        for at in range(0, len(data), size):
            self.outb(0, int.from_bytes(data[at : at + size], "little"), size)
        self.work()

    def table(self, regions: Iterable[tuple[int, int]], at: int = TABLE, *, ended: bool = True) -> None:
        """Lay a table of (address, length) regions and point the bus master at it."""
        entries = list(regions)
        for i, (address, length) in enumerate(entries):
            last = 1 << 31 if ended and i == len(entries) - 1 else 0
            self.ram.data[at + 8 * i : at + 8 * i + 8] = address.to_bytes(4, "little") + (
                length & 0xFFFF | last
            ).to_bytes(4, "little")
        self.outb(20, at, 4)

    def start(self, *, to_memory: bool = True) -> None:
        self.outb(16, 0x01 | (0x08 if to_memory else 0))
        self.work()

    def stop(self) -> None:
        self.outb(16, 0)

    def packet(self, packet: bytes, *, dma: bool = False, limit: int = 0xFFFE, drive: int = 0) -> None:
        """PACKET, and the packet itself, filled up to twelve bytes."""
        self.outb(6, drive << 4)
        self.outb(1, int(dma))
        self.outb(4, limit & 0xFF)
        self.outb(5, limit >> 8)
        self.outb(7, 0xA0)
        self.work()
        if self.status & STATUS.DRQ:
            self.data_out(packet.ljust(12, b"\0"))


@pytest.fixture
def medium() -> MemoryMedium:
    return MemoryMedium().fill()


@pytest.fixture
def make_medium() -> type[MemoryMedium]:
    return MemoryMedium


@pytest.fixture
def make_ide(make_wire: Any) -> Callable[..., Ide]:
    """A channel with these drives."""
    return lambda *drives: Ide(make_wire(), drives)


@pytest.fixture
def ide(make_ide: Callable[..., Ide], medium: MemoryMedium) -> Ide:
    """A disk of 2048 sectors as device 0."""
    return make_ide(Disk(medium))


@pytest.fixture
def cd(make_ide: Callable[..., Ide], medium: MemoryMedium) -> Ide:
    """A CD-ROM drive with 512 blocks as device 0."""
    medium.read_only = True
    return make_ide(Cdrom(medium))


@pytest.fixture
def make_ram() -> type[ByteRam]:
    return ByteRam
