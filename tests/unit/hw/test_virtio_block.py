# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio disk as a driver uses it: requests of VIRTIO 1.2, section 5.2.6, on a raw image and on others."""

import errno
import os
import struct
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.hw.backend.block import RawImage
from coremesh.hw.virtio import block
from coremesh.hw.virtio.block import VirtioBlock
from coremesh.hw.virtio.pci import VirtioPci
from virtio_driver import Driver, Ram, plug

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
SECTORS = 2048
ALL = vd.VERSION_1 | block.FLUSH | block.CONFIG_WCE


class Disk:
    """A started disk and its first queue."""

    def __init__(self, make_pc: Any, image: Any, features: int = ALL) -> None:
        self.ram = Ram(8 << 20)
        model = VirtioBlock(image, name="vd", queues=2, serial="CM00001")
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(model, bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        (self.ring,) = self.driver.start(features, size=64)
        self.page = self.driver.page(4 << 20)

    def request(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, cut: tuple[int, ...] = ()
    ) -> tuple[int, bytes, int]:
        """Returns (status, what was read, bytes written by the used ring).

        ``cut`` are places where the buffers to read are split beyond the usual one behind the header.
        """
        header = struct.pack("<IIQ", kind, 0, sector)
        self.ram.ram_write(self.page, header + out + b"\xee" * (room + 1))
        places = sorted({0, *(cut or (16,)), 16 + len(out)})
        segments = [(self.page + a, b - a, False) for a, b in pairwise(places) if b > a]
        at = self.page + 16 + len(out)
        if room:
            segments.append((at, room, True))
        segments.append((at + room, 1, True))
        self.ring.offer(self.ring.chain(segments))
        self.ring.ring()
        ((_, written),) = self.ring.wait()
        answer = self.ram.ram_read(at, room + 1)
        return answer[-1], answer[:-1], written

    def config(self, at: int, size: int) -> int:
        return self.driver.access(vd.DEVICE_CFG, at, size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.write_bytes(os.urandom(4096) + bytes(SECTORS * 512 - 4096))
    return place


@pytest.fixture
def disk(make_pc: Any, path: Path) -> Iterator[Disk]:
    image = RawImage(path)
    disk = Disk(make_pc, image)
    yield disk
    disk.pc.node.stop()
    image.close()


def test_the_configuration_says_what_the_disk_is(disk: Disk) -> None:
    """5.2.4: capacity in sectors of 512, segments, queues, and the limits of discard and write zeroes."""
    assert disk.config(0, 4) == SECTORS and disk.config(4, 4) == 0
    assert disk.config(12, 4) == 254 and disk.config(20, 4) == 512 and disk.config(34, 2) == 2
    assert disk.config(36, 4) and disk.config(40, 4) == 64 and disk.config(56, 1) == 1


def test_data_goes_to_the_image_and_comes_back(disk: Disk, path: Path) -> None:
    """5.2.6: OUT, FLUSH, IN; the used length counts what was written to memory, the status too."""
    assert disk.request(IN, 1, room=1024) == (OK, path.read_bytes()[512:1536], 1025)
    data = os.urandom(3 * 512)
    assert disk.request(OUT, 100, data) == (OK, b"", 1)
    assert disk.request(FLUSH) == (OK, b"", 1)
    assert path.read_bytes()[51200 : 51200 + 1536] == data
    assert disk.request(IN, 100, room=1536) == (OK, data, 1537)


def test_long_requests_are_whole(disk: Disk, path: Path) -> None:
    """5.2.6: more than is moved at a time, in both directions."""
    whole = os.urandom(SECTORS * 512)
    assert disk.request(OUT, 0, whole)[0] == OK
    assert path.read_bytes() == whole
    assert disk.request(IN, 0, room=len(whole)) == (OK, whole, len(whole) + 1)


@pytest.mark.parametrize("cut", [(16, 17, 500), (5, 11), (600,), (1, 2, 3)])
def test_any_division_into_buffers_is_the_same_request(disk: Disk, path: Path, cut: tuple[int, ...]) -> None:
    """2.7.4.1 (ANY_LAYOUT): the header may be cut, and may share a buffer with the data."""
    data = os.urandom(1024)
    assert disk.request(OUT, 7, data, cut=cut) == (OK, b"", 1)
    assert path.read_bytes()[7 * 512 : 7 * 512 + 1024] == data


def test_the_serial_number(disk: Disk) -> None:
    """5.2.6.1: 20 bytes, filled with zeroes; a shorter buffer takes what fits."""
    assert disk.request(GET_ID, room=20) == (OK, b"CM00001".ljust(20, b"\0"), 21)
    assert disk.request(GET_ID, room=4) == (OK, b"CM00", 5)


@pytest.mark.parametrize(("kind", "room"), [(2, 0), (99, 512), (0xFFFF_FFFF, 0)])
def test_unknown_requests_are_unsupported(disk: Disk, kind: int, room: int) -> None:
    """5.2.6.1: VIRTIO_BLK_S_UNSUPP, and the device goes on."""
    assert disk.request(kind, room=room)[0] == UNSUPP
    assert disk.request(FLUSH)[0] == OK


@pytest.mark.parametrize("sector", [SECTORS, SECTORS - 1, 1 << 55, (1 << 64) - 1])
def test_beyond_the_end_is_an_error(disk: Disk, path: Path, sector: int) -> None:
    """5.2.6.1: an access that leaves the disk, in whole or in part, is VIRTIO_BLK_S_IOERR."""
    assert disk.request(IN, sector, room=1024)[0] == IOERR
    assert disk.request(OUT, sector, bytes(1024))[0] == IOERR
    assert path.stat().st_size == SECTORS * 512


def test_parts_of_a_sector_are_an_error(disk: Disk) -> None:
    """5.2.6.1: data is a multiple of 512 bytes."""
    assert disk.request(IN, 0, room=100)[0] == IOERR
    assert disk.request(OUT, 0, bytes(513))[0] == IOERR


def ranges(*triples: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *triple) for triple in triples)


def test_discard_and_write_zeroes(disk: Disk, path: Path) -> None:
    """5.2.6.2: several segments at once; zeroes are zeroes, with and without unmap."""
    disk.request(OUT, 0, b"\xff" * 65536)
    assert disk.request(WRITE_ZEROES, 0, ranges((0, 8, 0), (64, 8, 1)))[0] == OK
    data = path.read_bytes()
    assert data[:4096] == bytes(4096) and data[4096:32768] == b"\xff" * 28672
    assert data[32768:36864] == bytes(4096)
    assert disk.request(DISCARD, 0, ranges((96, 16, 0)))[0] == OK
    assert path.read_bytes()[49152:57344] == bytes(8192)


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (DISCARD, ranges((0, 8, 1)), UNSUPP),
        (WRITE_ZEROES, ranges((0, 8, 2)), UNSUPP),
        (DISCARD, ranges((SECTORS - 1, 2, 0)), IOERR),
        (WRITE_ZEROES, ranges((0, 0xFFFF_FFFF, 0)), IOERR),
        (WRITE_ZEROES, ranges(*[(0, 1, 0)] * 65), UNSUPP),
        (DISCARD, b"", UNSUPP),
        (DISCARD, bytes(10), UNSUPP),
    ],
)
def test_discards_that_are_not_right(disk: Disk, kind: int, data: bytes, status: int) -> None:
    """5.2.6.2: unknown flags are unsupported, ranges beyond the disk an error."""
    assert disk.request(kind, 0, data)[0] == status


def test_a_read_only_disk_says_so_and_keeps_its_content(make_pc: Any, path: Path) -> None:
    """5.2.6.2: RO is offered, and writes fail."""
    before = path.read_bytes()
    disk = Disk(make_pc, RawImage(path, read_only=True), vd.VERSION_1 | block.RO)
    assert disk.driver.features() & block.RO and not disk.driver.features() & block.DISCARD
    assert disk.request(OUT, 0, bytes(512))[0] == IOERR
    assert disk.request(WRITE_ZEROES, 0, ranges((0, 8, 0)))[0] == IOERR
    assert disk.request(IN, 0, room=512) == (OK, before[:512], 513)
    disk.pc.node.stop()
    assert path.read_bytes() == before


class Recorder:
    """A backend that fails when told, and remembers what was asked of it."""

    size, read_only, can_discard = 1 << 20, False, True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, offset: int, buffers: Any) -> None:
        self._call("read")
        for buffer in buffers:
            buffer[:] = bytes([offset // 512 % 256]) * len(buffer)

    def write(self, offset: int, buffers: Any) -> None:
        self._call("write")

    def flush(self) -> None:
        self._call("flush")

    def discard(self, offset: int, length: int) -> None:
        self._call("discard")

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._call(f"zeroes {unmap}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_error_of_the_hosts_disk_reaches_the_guest(make_pc: Any, number: int) -> None:
    """Given a backend that fails, then the request is an I/O error, but a discard, which may do nothing."""
    backend = Recorder()
    disk = Disk(make_pc, backend)
    assert disk.request(IN, 3, room=512) == (OK, b"\3" * 512, 513)
    backend.error = number
    assert disk.request(IN, 3, room=512)[0] == IOERR
    assert disk.request(OUT, 3, bytes(512))[0] == IOERR
    assert disk.request(FLUSH)[0] == IOERR
    assert disk.request(WRITE_ZEROES, 0, ranges((0, 8, 1)))[0] == IOERR
    assert disk.request(DISCARD, 0, ranges((0, 8, 0)))[0] == OK
    backend.error = 0
    assert disk.request(OUT, 3, bytes(512))[0] == OK
    disk.pc.node.stop()
    assert disk.pc.node.counters()["vd"]["errors"] == 4


def test_a_driver_that_cannot_flush_gets_durable_writes(make_pc: Any) -> None:
    """5.2.5.2: without FLUSH each write is durable; with CONFIG_WCE the driver chooses."""
    backend = Recorder()
    disk = Disk(make_pc, backend, vd.VERSION_1)
    disk.request(OUT, 0, bytes(512))
    assert backend.calls == ["write", "flush"]
    disk.driver.next_page = Ram.BASE
    (disk.ring,) = disk.driver.start(ALL, size=64)
    disk.page = disk.driver.page(1 << 20)
    backend.calls.clear()
    disk.request(OUT, 0, bytes(512))
    disk.driver.access(vd.DEVICE_CFG, 32, 1, 0)
    disk.request(OUT, 0, bytes(512))
    assert backend.calls == ["write", "write", "flush"]
    assert disk.config(32, 1) == 0
    disk.pc.node.stop()


def test_each_queue_has_its_own_worker(disk: Disk) -> None:
    """Given requests on both queues, when both are rung, then both are answered, and are counted together."""
    disk.driver.next_page = Ram.BASE
    rings = disk.driver.start(ALL, queues=(0, 1), size=64)
    page = disk.driver.page()
    disk.ram.ram_write(page, struct.pack("<IIQ", FLUSH, 0, 0))
    for count in range(20):
        for number, ring in enumerate(rings):
            ring.offer(ring.chain([(page, 16, False), (page + 64 + number, 1, True)], 2 * (count % 16)))
    for ring in rings:
        ring.ring()
    for ring in rings:
        assert len(ring.wait(20)) == 20
    assert disk.pc.node.counters()["vd"]["flushes"] == 40


def test_the_hosts_kernel_moves_the_data_where_one_host_has_the_memory(path: Path) -> None:
    """Given a machine of one host, then whole and cut buffers are read and written in its RAM itself."""
    from coremesh.core._native import Interrupts, VirtQueue
    from coremesh.core.engine import Host
    from coremesh.core.x86.memory_map import MemoryMap

    memory = MemoryMap(16 << 20)
    host = Host(memory=memory.layout, apic_ids=[0], total_vcpus=1)
    bus = host.bus_master()
    queue = VirtQueue(bus, Interrupts(bus, 1, lambda level: None))
    image = RawImage(path)
    model = VirtioBlock(image, name="vd", queues=1)
    model.bind(None, [queue])  # type: ignore[arg-type]
    rings, data, at = 0x10_0000, 0x20_0000, 0x30_0000
    host.ram_write(rings, bytes(0x3000))
    queue.start(8, rings, rings + 0x1000, rings + 0x2000, False, False)
    model.start()

    def request(kind: int, sector: int, pieces: list[tuple[int, int]], number: int) -> None:
        host.ram_write(at, struct.pack("<IIQ", kind, 0, sector))
        writes = vd.WRITE if kind == IN else 0
        chain = [(at, 16, 0), *((gpa, size, writes) for gpa, size in pieces), (at + 64, 1, vd.WRITE)]
        for i, (gpa, size, flags) in enumerate(chain):
            last = i == len(chain) - 1
            entry = struct.pack("<QIHH", gpa, size, flags | (0 if last else vd.NEXT), i + 1)
            host.ram_write(rings + 16 * i, entry)
        host.ram_write(rings + 0x1000 + 4 + 2 * number, b"\0\0")
        host.ram_write(rings + 0x1002, (number + 1).to_bytes(2, "little"))
        queue.ring()
        deadline = time.monotonic() + 10
        while int.from_bytes(host.ram_read(rings + 0x2002, 2), "little") != number + 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert host.ram_read(at + 64, 1) == b"\0"

    content = os.urandom(8192)
    host.ram_write(data, content)
    request(OUT, 4, [(data, 1000), (data + 1000, 96), (data + 1096, 7096)], 0)
    assert path.read_bytes()[2048 : 2048 + 8192] == content
    request(IN, 4, [(data + 0x9001, 100), (data + 0xA000, 8092)], 1)
    assert host.ram_read(data + 0x9001, 100) + host.ram_read(data + 0xA000, 8092) == content
    model.stop()
    image.close()
    host.stop()
