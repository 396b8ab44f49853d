# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio entropy device as a driver uses it: bytes that differ, no more than the rate allows."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.hw.virtio.pci import VirtioPci
from coremesh.hw.virtio.rng import MOST_BYTES, VirtioRng
from virtio_driver import Driver, Ram, plug


class Guest:
    def __init__(self, make_pc: Any, rate: int) -> None:
        self.ram = Ram(4 << 20)
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(VirtioRng(name="rng", rate=rate), bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        (self.ring,) = self.driver.start(vd.VERSION_1, size=8)
        self.page = self.driver.page(1 << 20)

    def ask(self, length: int) -> bytes:
        self.ram.ram_write(self.page, bytes(length))
        self.ring.offer(self.ring.chain([(self.page, length, True)]))
        self.ring.ring()
        ((_, written),) = self.ring.wait()
        assert 1 <= written <= length
        assert self.ram.ram_read(self.page + written, length - written) == bytes(length - written)
        return self.ram.ram_read(self.page, written)


@pytest.fixture
def guest(make_pc: Any) -> Iterator[Callable[[int], Guest]]:
    guests: list[Guest] = []

    def make(rate: int = 0) -> Guest:
        guests.append(Guest(make_pc, rate))
        return guests[-1]

    yield make
    for each in guests:
        each.pc.node.stop()


def test_a_buffer_is_filled_with_random_bytes(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.4.6.2: one byte at least is placed, entirely random; two answers are not alike."""
    one = guest()
    first, second = one.ask(64), one.ask(64)
    assert len(first) == len(second) == 64 and first != second
    assert len(one.ask(200_000)) == MOST_BYTES, "a huge buffer has an answer that is bounded"
    assert len(set(one.ask(4096))) > 200
    counts = one.pc.device.counts()
    assert counts["bytes_given"] == 128 + MOST_BYTES + 4096 and counts["resets_needed"] == 0


def test_no_more_than_the_rate_is_given(guest: Callable[..., Guest]) -> None:
    """Given 2000 bytes a second, when a driver asks without end, then it gets no more, and always some."""
    one = guest(2000)
    begin, got = time.monotonic(), 0
    while time.monotonic() - begin < 0.6:
        got += len(one.ask(100))
    assert 2000 <= got <= 2000 + 2000 * (time.monotonic() - begin) + 100
    assert one.pc.device.counts()["waits"] > 0


def test_a_machine_that_stops_does_not_wait_for_the_rate(guest: Callable[..., Guest]) -> None:
    """Given a request that the limit holds back, when the machine stops, then it is answered, and at once."""
    one = guest(1)
    one.ask(10)
    one.ring.offer(one.ring.chain([(one.page, 1000, True)]))
    one.ring.ring()
    deadline = time.monotonic() + 10
    while not one.pc.device.counts()["waits"]:  # until it is held back
        assert time.monotonic() < deadline
        time.sleep(0.002)
    begin = time.monotonic()
    one.pc.node.stop()
    assert time.monotonic() - begin < 5
    assert one.ring.wait()[0][1] == 1


def test_a_request_to_read_stops_the_device_until_its_reset(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.4.6.1: no buffer to read. The device asks for a reset, and counts it."""
    one = guest()
    one.ring.offer(one.ring.chain([(one.page, 64, False)]))
    one.ring.ring()
    deadline = time.monotonic() + 10
    while not one.driver.status & vd.NEEDS_RESET:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert one.pc.device.counts()["resets_needed"] == 1
    one.driver.next_page = Ram.BASE
    (one.ring,) = one.driver.start(vd.VERSION_1, size=8)
    assert len(one.ask(64)) == 64
