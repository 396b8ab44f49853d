# SPDX-License-Identifier: GPL-2.0-or-later
"""A network card of several pairs of queues, as a driver uses it: control queue, and where a frame goes."""

import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.core._native import FlowTable
from coremesh.hw.virtio import net
from coremesh.hw.virtio.net import VirtioNet
from coremesh.hw.virtio.pci import VirtioPci
from virtio_driver import Driver, Ram, plug

MAC = bytes.fromhex("525400123456")
HEADER = 12


def tcp(source: int, target: int, sport: int, dport: int, data: bytes = b"") -> bytes:
    """A frame of a TCP conversation between two addresses of 10.0.0.0/24."""
    ip = struct.pack(
        ">BBHHHBBHII", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0, 0x0A000000 + source, 0x0A000000 + target
    )
    return MAC * 2 + b"\x08\x00" + ip + struct.pack(">HHIIHHHH", sport, dport, 0, 0, 0x5000, 0, 0, 0) + data


class Wire:
    """A network that keeps what the guest sends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.receive: Callable[[Sequence[bytes]], None] = lambda frames: None

    def start(self, receive: Callable[[Sequence[bytes]], None]) -> None:
        self.receive = receive

    def send(self, frames: Sequence[bytes]) -> None:
        self.sent += frames

    def stop(self) -> None:
        pass

    def counts(self) -> dict[str, int]:
        return {}


class Guest:
    """A card with a driver that has given each receive queue eight buffers of 2 KiB."""

    def __init__(self, make_pc: Any, pairs: int, features: int = net.MQ | net.CTRL_VQ) -> None:
        self.ram = Ram(4 << 20)
        self.wire = Wire()
        self.model = VirtioNet(self.wire, name="net", mac=MAC, pairs=pairs)  # type: ignore[arg-type]
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(self.model, bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        queues = range(2 * pairs + 1 if features & net.MQ and pairs > 1 else 3 if pairs > 1 else 2)
        self.rings = self.driver.start(vd.VERSION_1 | features, queues=queues, size=8)
        self.control_queue = len(self.rings) - 1
        self.page = self.driver.page(1 << 16)
        self.buffers: dict[int, int] = {}
        for number in range(0, len(self.rings) - (pairs > 1), 2):
            at = self.buffers[number] = self.driver.page(8 * 2048)
            for i in range(8):
                self.rings[number].describe(i, at + 2048 * i, 2048, vd.WRITE)
                self.rings[number].offer(i)
            self.rings[number].ring()

    def send(self, pair: int, frame: bytes) -> None:
        before = self.wire.sent.count(frame)  # the same may have been sent before
        self.ram.ram_write(self.page, bytes(HEADER) + frame)
        ring = self.rings[2 * pair + 1]
        ring.offer(ring.chain([(self.page, HEADER + len(frame), False)]))
        ring.ring()
        ring.wait()
        deadline = time.monotonic() + 10
        while self.wire.sent.count(frame) == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def received(self, pair: int) -> bytes:
        ((head, written),) = self.rings[2 * pair].wait()
        return self.ram.ram_read(self.buffers[2 * pair] + 2048 * head + HEADER, written - HEADER)

    def command(self, data: bytes, room: int = 1) -> bytes:
        self.ram.ram_write(self.page, data + b"\xee" * room)
        ring = self.rings[self.control_queue]
        ring.offer(ring.chain([(self.page, len(data), False), (self.page + len(data), room, True)]))
        ring.ring()
        ring.wait()
        return self.ram.ram_read(self.page + len(data), 1)

    def use(self, pairs: int) -> bytes:
        return self.command(struct.pack("<BBH", net.CTRL_MQ, net.CTRL_MQ_PAIRS_SET, pairs))


@pytest.fixture
def guest(make_pc: Any) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def make(pairs: int, **options: Any) -> Guest:
        guests.append(Guest(make_pc, pairs, **options))
        return guests[-1]

    yield make
    for each in guests:
        each.pc.node.stop()


def test_a_card_of_one_pair_has_no_control_queue(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.2: two queues, without MQ and CTRL_VQ."""
    one = guest(1, features=0)
    assert not one.driver.features() & (net.MQ | net.CTRL_VQ)
    assert one.driver.common(18, 2) == 2


def test_the_configuration_has_the_number_of_pairs(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.4: the address, the link's state, and max_virtqueue_pairs."""
    one = guest(3)
    config = bytes(one.driver.access(vd.DEVICE_CFG, at, 1) for at in range(10))
    assert config == MAC + b"\1\0" + b"\3\0"
    assert one.driver.common(18, 2) == 7


def test_a_driver_chooses_how_many_pairs_it_uses(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.6.5.6: numbers from 1 to the device's are taken, others and other commands refused."""
    one = guest(2)
    assert one.use(2) == net.OK and one.pc.device.counts()["pairs_used"] == 2
    for pairs in (0, 3, 0xFFFF):
        assert one.use(pairs) == net.ERROR
    assert one.pc.device.counts()["pairs_used"] == 2
    for data in (b"\0\0\1", b"\4\0", b"\4\0\1", b"\4\1\1\0", b"\xff" * 4, bytes(300)):
        assert one.command(data) == net.ERROR
    assert one.use(1) == net.OK and one.pc.device.counts()["pairs_used"] == 1
    assert one.pc.device.counts()["resets_needed"] == 0


def test_until_it_chooses_all_frames_come_on_the_first_pair(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.6.5.6.1: multiqueue is off until the driver's command."""
    one = guest(2)
    frames = [tcp(1, 2, 1000 + n, 80) for n in range(6)]
    one.wire.receive(frames)
    assert [one.received(0) for _ in frames] == frames


def test_a_conversation_stays_on_the_pair_that_sent_it(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.6.5.6.2: answers come on the receive queue of the pair that sent last."""
    one = guest(2)
    assert one.use(2) == net.OK
    for port in range(4):
        for pair in (0, 1):
            one.send(pair, tcp(1, 2, 2000 + port, 80, b"question"))
            answer = tcp(2, 1, 80, 2000 + port, b"answer %d" % port)
            one.wire.receive([answer])
            assert one.received(pair) == answer


def test_a_driver_that_does_not_know_of_pairs_has_its_control_queue_third(
    guest: Callable[..., Guest],
) -> None:
    """VIRTIO 1.2, 5.1.2: without MQ there is one pair, and the control queue has number 2."""
    one = guest(2, features=net.CTRL_VQ)
    assert one.use(2) == net.ERROR
    one.wire.receive([tcp(1, 2, 3, 4)])
    assert one.received(0) == tcp(1, 2, 3, 4)


def test_a_reset_leaves_one_pair_in_use(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.1.6.5.6: a new driver begins with one pair."""
    one = guest(2)
    assert one.use(2) == net.OK
    one.driver.reset()
    assert one.pc.device.counts()["pairs_used"] == 1


def test_a_command_without_room_for_its_answer_stops_the_device(guest: Callable[..., Guest]) -> None:
    """Given a chain that no driver makes, then the device asks for a reset, and counts it."""
    one = guest(2)
    ring = one.rings[one.control_queue]
    ring.offer(ring.chain([(one.page, 4, False)]))
    ring.ring()
    deadline = time.monotonic() + 10
    while not one.driver.status & vd.NEEDS_RESET:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert one.pc.device.counts()["resets_needed"] == 1


def test_flows_are_the_same_in_both_directions_and_spread() -> None:
    """Given 2000 conversations, then both directions of each take one queue, and no queue has too many."""
    table = FlowTable()
    ways = [(tcp(s, 9, p, 443), tcp(9, s, 443, p)) for s in range(8) for p in range(1000, 1250)]
    queues = [table.split([there, back], 4) for there, back in ways]
    found = []
    for parts in queues:
        used = [pair for pair, part in enumerate(parts) if part]
        assert len(used) == 1
        found += used
    assert all(350 < found.count(pair) < 650 for pair in range(4))


ETHERNET = MAC * 2
CUT_SHORT = [
    b"", b"x", bytes(13), bytes(14), ETHERNET + b"\x08\0", ETHERNET + b"\x08\0\x4f" + bytes(20),
    ETHERNET + b"\x86\xdd" + bytes(39), ETHERNET + b"\x86\xdd" + bytes(44), b"\xff" * 60,
]  # fmt: skip


@pytest.mark.parametrize("frame", CUT_SHORT)
def test_any_frame_has_a_queue(frame: bytes) -> None:
    """Given a frame that is cut short, or of another protocol, then it goes to one queue that is there."""
    table = FlowTable()
    table.sent([frame], 200)
    assert sum(len(part) for part in table.split([frame], 3)) == 1
