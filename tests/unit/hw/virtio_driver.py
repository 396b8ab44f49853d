# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio driver for tests: finds a device by its capabilities and drives it through its registers and RAM.

It sees what a guest's driver sees, and nothing else: configuration space, base addresses, memory.
"""

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coremesh.core._native import PythonBusMaster
from coremesh.hw.decode import MMIO, PORT

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1, EVENT_IDX, INDIRECT_DESC = 1 << 32, 1 << 29, 1 << 28
COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5


class Ram:
    """RAM from 1 MiB on, as a host answers: an IndexError for all else."""

    BASE = 0x10_0000

    def __init__(self, size: int = 1 << 20) -> None:
        self.data = bytearray(size)

    def _at(self, gpa: int, length: int) -> int:
        if not self.BASE <= gpa <= gpa + length <= self.BASE + len(self.data):
            raise IndexError("not a range of guest RAM")
        return gpa - self.BASE

    def ram_read(self, gpa: int, length: int) -> bytes:
        at = self._at(gpa, length)
        return bytes(self.data[at : at + length])

    def ram_write(self, gpa: int, data: bytes) -> None:
        at = self._at(gpa, len(data))
        self.data[at : at + len(data)] = data


class Messages:
    """The fabric of a machine that is built after its devices: ``to`` is set when it is."""

    to: Any

    def msi(self, address: int, data: int) -> None:
        self.to.msi(address, data)


def plug(make_pc: Any, ram: Ram, make: Any) -> Any:
    """A running PC with one virtio device, which ``make(bus)`` builds: ``pc.device``."""
    messages = Messages()
    device = make(PythonBusMaster(ram, messages))
    pc = make_pc(functions=[device.function])
    messages.to, pc.device = pc.fabric, device
    return pc


@dataclass
class Capability:
    at: int
    kind: int
    bar: int
    offset: int
    length: int
    multiplier: int = 0


@dataclass
class Ring:
    """One queue as the driver has laid it into RAM."""

    driver: "Driver"
    index: int
    size: int
    descriptors: int
    available: int
    used: int
    seen: int = 0  # used elements that the driver has looked at
    offered: int = 0
    free: list[int] = field(default_factory=list)

    def describe(self, number: int, gpa: int, length: int, flags: int = 0, following: int = 0) -> None:
        entry = struct.pack("<QIHH", gpa, length, flags, following)
        self.driver.ram.ram_write(self.descriptors + 16 * number, entry)

    def offer(self, head: int) -> None:
        """Make a chain available, without ringing."""
        ram = self.driver.ram
        ram.ram_write(self.available + 4 + 2 * (self.offered % self.size), struct.pack("<H", head))
        self.offered = (self.offered + 1) & 0xFFFF
        ram.ram_write(self.available + 2, struct.pack("<H", self.offered))

    def chain(self, segments: Sequence[tuple[int, int, bool]], first: int = 0) -> int:
        """Lay (gpa, length, whether the device writes) as a chain from descriptor ``first`` on."""
        for i, (gpa, length, writes) in enumerate(segments):
            last = i == len(segments) - 1
            flags = (WRITE if writes else 0) | (0 if last else NEXT)
            self.describe(first + i, gpa, length, flags, 0 if last else first + i + 1)
        return first

    def ring(self) -> None:
        self.driver.notify(self.index)

    def used_index(self) -> int:
        return int.from_bytes(self.driver.ram.ram_read(self.used + 2, 2), "little")

    def wait(self, count: int = 1, seconds: float = 10.0) -> list[tuple[int, int]]:
        """The next ``count`` used elements as (head, bytes written)."""
        deadline = time.monotonic() + seconds
        while (self.used_index() - self.seen) & 0xFFFF < count:
            assert time.monotonic() < deadline, "the device has not answered"
            time.sleep(0.0002)
        found = []
        for _ in range(count):
            entry = self.driver.ram.ram_read(self.used + 4 + 8 * (self.seen % self.size), 8)
            found.append(struct.unpack("<II", entry))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def quiet(self, seconds: float = 0.05) -> bool:
        """Whether the device answers nothing for so long."""
        before = self.used_index()
        time.sleep(seconds)
        return self.used_index() == before


class Driver:
    """Of the device in ``slot`` of the PC ``pc``; its rings and buffers are in ``ram``."""

    def __init__(self, pc: Any, ram: Ram, slot: int = 3) -> None:
        self.pc, self.ram, self.slot = pc, ram, slot
        self.capabilities: dict[int, Capability] = {}
        self.msix = 0
        at = self.config(0x34, 1)
        while at:
            if self.config(at, 1) == 0x09:
                kind = self.config(at + 3, 1)
                found = Capability(
                    at, kind, self.config(at + 4, 1), self.config(at + 8, 4), self.config(at + 12, 4)
                )
                if kind == NOTIFY_CFG:
                    found.multiplier = self.config(at + 16, 4)
                self.capabilities.setdefault(kind, found)
            elif self.config(at, 1) == 0x11:
                self.msix = at
            at = self.config(at + 1, 1)
        self.next_page = Ram.BASE
        self.rings: list[Ring] = []

    # --- the bus

    def config(self, at: int, size: int, value: int | None = None) -> int:
        self.pc.outl(0xCF8, 1 << 31 | self.slot << 11 | at & 0xFC)
        port = 0xCFC + at % 4
        return int(self.pc.node.access(PORT, port, size, value is not None, value or 0))

    def bar(self, number: int) -> int:
        return self.config(0x10 + 4 * number, 4) & ~0xF

    def access(self, kind: int, at: int, size: int, value: int | None = None) -> int:
        capability = self.capabilities[kind]
        address = self.bar(capability.bar) + capability.offset + at
        return int(self.pc.node.access(MMIO, address, size, value is not None, value or 0))

    def common(self, at: int, size: int, value: int | None = None) -> int:
        return self.access(COMMON_CFG, at, size, value)

    def notify(self, queue: int) -> None:
        self.common(22, 2, queue)
        offset = self.common(30, 2) * self.capabilities[NOTIFY_CFG].multiplier
        self.access(NOTIFY_CFG, offset, 2, queue)

    # --- starting

    @property
    def status(self) -> int:
        return self.common(20, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.common(20, 1, value)

    def reset(self) -> None:
        self.status = 0
        deadline = time.monotonic() + 10
        while self.status:
            assert time.monotonic() < deadline, "the device does not come to rest"
            time.sleep(0.001)

    def features(self) -> int:
        words = []
        for select in (0, 1):
            self.common(0, 4, select)
            words.append(self.common(4, 4))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> bool:
        for select in (0, 1):
            self.common(8, 4, select)
            self.common(12, 4, features >> 32 * select & 0xFFFF_FFFF)
        self.status = self.status | FEATURES_OK
        return bool(self.status & FEATURES_OK)

    def page(self, size: int = 4096) -> int:
        at = self.next_page
        self.next_page += -(-size // 4096) * 4096
        return at

    def lay_queue(self, index: int, size: int | None = None, vector: int | None = None) -> Ring:
        """Put a queue into RAM and enable it; address fields are written as Linux does, in halves."""
        self.common(22, 2, index)
        size = size or self.common(24, 2)
        self.common(24, 2, size)
        ring = Ring(self, index, size, self.page(16 * size), self.page(6 + 2 * size), self.page(6 + 8 * size))
        for gpa, length in (
            (ring.descriptors, 16 * size), (ring.available, 6 + 2 * size), (ring.used, 6 + 8 * size)
        ):  # fmt: skip
            self.ram.ram_write(gpa, bytes(length))
        for at, gpa in ((32, ring.descriptors), (40, ring.available), (48, ring.used)):
            self.common(at, 4, gpa & 0xFFFF_FFFF)
            self.common(at + 4, 4, gpa >> 32)
        if vector is not None:
            self.common(26, 2, vector)
        self.common(28, 2, 1)
        self.rings.append(ring)
        return ring

    def start(
        self,
        features: int = VERSION_1,
        queues: Iterable[int] = (0,),
        *,
        size: int | None = None,
        msix: bool = True,
    ) -> list[Ring]:
        """From reset to DRIVER_OK."""
        self.config(4, 2, 0x6)  # memory and bus master
        self.reset()
        self.status = ACKNOWLEDGE | DRIVER
        assert self.accept(features)
        if msix:
            self.enable_msix()
            self.common(16, 2, 0)
        rings = [self.lay_queue(index, size, index + 1 if msix else None) for index in queues]
        self.status = self.status | DRIVER_OK
        return rings

    # --- interrupts

    def enable_msix(self, on: bool = True, masked: bool = False) -> None:
        vectors = (self.config(self.msix + 2, 2) & 0x7FF) + 1
        for vector in range(vectors if on else 0):
            self.vector(vector, 0xFEE0_0000, 0x40 + vector)
        self.config(self.msix + 2, 2, (0x8000 if on else 0) | (0x4000 if masked else 0))

    def vector(self, number: int, address: int, data: int, masked: bool = False) -> None:
        for at, value in ((0, address), (4, 0), (8, data), (12, int(masked))):
            self.table(16 * number + at, value)

    def table(self, at: int, value: int | None = None) -> int:
        base = self.bar(self.config(self.msix + 4, 4) & 7) + (self.config(self.msix + 4, 4) & ~7)
        return int(self.pc.node.access(MMIO, base + at, 4, value is not None, value or 0))

    def pending(self) -> int:
        base = self.bar(self.config(self.msix + 8, 4) & 7) + (self.config(self.msix + 8, 4) & ~7)
        return int(self.pc.node.access(MMIO, base, 8, False, 0))
