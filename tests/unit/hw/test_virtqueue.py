# SPDX-License-Identifier: GPL-2.0-or-later
"""The native queue against a model: any sequence of a driver's steps, right ones and wrong ones.

The model is the specification in Python lists. The device's side is the native queue that real devices use,
through its Python face; the driver's side writes rings and descriptors as bytes of RAM.
"""

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

from coremesh.core._native import Interrupts, PythonBusMaster, Request, VirtQueue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from virtio_driver import INDIRECT, NEXT, WRITE, Ram

DESCRIPTORS, AVAILABLE, USED, DATA = (Ram.BASE + at for at in (0, 0x8000, 0xC000, 0x2_0000))
SLOT = 256  # bytes of RAM for each buffer


class Fabric:
    def __init__(self) -> None:
        self.sent = 0

    def msi(self, address: int, data: int) -> None:
        self.sent += 1


class Queue:
    """A queue with its RAM, and the bytes of its rings."""

    def __init__(self, size: int, event_idx: bool = False, start: int = 0) -> None:
        self.size, self.event_idx = size, event_idx
        self.ram, self.fabric = Ram(1 << 18), Fabric()
        bus = PythonBusMaster(self.ram, self.fabric)
        self.interrupts = Interrupts(bus, 1, lambda level: None)
        self.interrupts.control(True, False)
        self.interrupts.write(0, 4, 0xFEE0_0000)
        self.interrupts.write(12, 4, 0)
        self.queue = VirtQueue(bus, self.interrupts)
        self.queue.set_vector(0)
        self.put16(AVAILABLE + 2, start)
        self.put16(USED + 2, start)
        self.queue.start(size, DESCRIPTORS, AVAILABLE, USED, event_idx, True, (start, start, start))

    def put16(self, gpa: int, value: int) -> None:
        self.ram.ram_write(gpa, struct.pack("<H", value & 0xFFFF))

    def get16(self, gpa: int) -> int:
        return int.from_bytes(self.ram.ram_read(gpa, 2), "little")

    def describe(self, at: int, gpa: int, length: int, flags: int, following: int) -> None:
        self.ram.ram_write(at, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, index: int, head: int) -> None:
        self.put16(AVAILABLE + 4 + 2 * (index % self.size), head)
        self.put16(AVAILABLE + 2, index + 1)


PIECES = st.lists(st.tuples(st.integers(1, SLOT), st.booleans()), min_size=1, max_size=4)


class Driver(RuleBasedStateMachine):
    """A driver that keeps the rules, and a device that takes and completes in any order."""

    @initialize(
        size=st.sampled_from([1, 2, 4, 8]),
        event_idx=st.booleans(),
        start=st.sampled_from([0, 1, 65530, 65535]),
    )
    def begin(self, size: int, event_idx: bool, start: int) -> None:
        self.q = Queue(size, event_idx, start)
        self.offered = start
        self.free = list(range(size))
        self.waiting: list[tuple[int, bytes, int, list[int]]] = []  # head, readable, room, descriptors
        self.taken: list[tuple[Request, int, bytes, int, list[int]]] = []
        self.used: list[tuple[int, int, bytes]] = []
        self.seen = start

    @precondition(lambda self: self.free)
    @rule(pieces=PIECES, indirect=st.booleans(), fill=st.integers(0, 255), unaligned=st.booleans())
    def add(self, pieces: list[tuple[int, bool]], indirect: bool, fill: int, unaligned: bool) -> None:
        """A chain: what the device reads first, then what it writes; in a table of its own or not."""
        pieces = sorted(pieces, key=lambda piece: piece[1])
        if not indirect:
            pieces = pieces[: len(self.free)]
        numbers = [self.free.pop() for _ in range(1 if indirect else len(pieces))]
        head, out, room = numbers[0], b"", 0
        table = DATA + 0x8000 + 1024 * head + (4 if unaligned else 0)  # no alignment is asked of it
        for i, (length, writes) in enumerate(pieces):
            gpa = DATA + 4096 * head + SLOT * i
            if writes:
                room += length
            else:
                data = bytes((fill + i) & 0xFF for _ in range(length))
                self.q.ram.ram_write(gpa, data)
                out += data
            last = i == len(pieces) - 1
            flags = (WRITE if writes else 0) | (0 if last else NEXT)
            if indirect:
                self.q.describe(table + 16 * i, gpa, length, flags, i + 1)
            else:
                following = 0 if last else numbers[i + 1]
                self.q.describe(DESCRIPTORS + 16 * numbers[i], gpa, length, flags, following)
        if indirect:
            self.q.describe(DESCRIPTORS + 16 * head, table, 16 * len(pieces), INDIRECT, 0)
        self.q.offer(self.offered, head)
        self.offered = self.offered + 1 & 0xFFFF
        self.waiting.append((head, out, room, numbers))

    @rule()
    def take(self) -> None:
        """The device gets the chains in the order in which they were offered, and nothing else."""
        request = self.q.queue.take()
        assert (request is None) is (not self.waiting)
        if request is not None:
            head, out, room, numbers = self.waiting.pop(0)
            assert (request.head, request.readable, request.writable) == (head, len(out), room)
            assert self.q.queue.data(request, 1 << 20) == out
            self.taken.append((request, head, out, room, numbers))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), answer=st.binary(max_size=3 * SLOT))
    def complete(self, data: Any, answer: bytes) -> None:
        """In any order; what does not fit is cut."""
        at = data.draw(st.integers(0, len(self.taken) - 1))
        request, head, _, room, numbers = self.taken.pop(at)
        before, index = self.q.fabric.sent, self.q.get16(USED + 2)
        event = data.draw(st.sampled_from([index, index - 1, index + 1, index - 9]))
        if self.q.event_idx:
            self.q.put16(AVAILABLE + 4 + 2 * self.q.size, event)
        else:
            self.q.put16(AVAILABLE, event & 1)
        assert self.q.queue.complete(request, answer)
        self.q.queue.notify()
        wanted = event & 0xFFFF == index if self.q.event_idx else not event & 1
        assert self.q.fabric.sent - before == int(wanted), (event, index)
        assert self.q.get16(USED + 2) == (index + 1) & 0xFFFF
        element = self.q.ram.ram_read(USED + 4 + 8 * (index % self.q.size), 8)
        assert struct.unpack("<II", element) == (head, min(len(answer), room))
        self.free += numbers

    @rule()
    def look(self) -> None:
        """Before it sleeps the device asks to be rung, and is told when something came meanwhile."""
        assert self.q.queue.allow_notifications() is bool(self.waiting)
        if self.q.event_idx:
            event = self.q.get16(USED + 4 + 8 * self.q.size)
            assert event == (self.offered - len(self.waiting)) & 0xFFFF
        else:
            assert self.q.get16(USED) == 0

    @rule()
    def move(self) -> None:
        """Saved and loaded elsewhere, it goes on where it was; what was taken is not answered there."""
        q = self.q
        position = q.queue.position()
        q.queue.stop()
        assert q.queue.take() is None and q.queue.idle
        q.queue.start(q.size, DESCRIPTORS, AVAILABLE, USED, q.event_idx, True, position)
        for request, _, _, _, numbers in self.taken:
            assert not q.queue.complete(request, b"")
            self.free += numbers
        self.taken.clear()

    @invariant()
    def nothing_is_broken(self) -> None:
        assert self.q.queue.fault() == ""


Driver.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDriver = Driver.TestCase


ANY_DESCRIPTOR = st.tuples(
    st.sampled_from([DATA, DESCRIPTORS, AVAILABLE, USED, DATA + 8, 0, 0xFEE0_0000, 2**40, 2**64 - 8]),
    st.sampled_from([0, 1, 12, 16, 32, 48, 4096, 0x10_0000, 0xFFFF_FFFF]),
    st.integers(0, 7),
    st.one_of(st.integers(0, 9), st.sampled_from([0xFFFF, 0x8000])),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.sampled_from([1, 2, 8, 1024]),
    descriptors=st.lists(ANY_DESCRIPTOR, min_size=1, max_size=10),
    heads=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    index=st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
    rings=st.tuples(*[st.sampled_from([0, DESCRIPTORS, AVAILABLE, USED, DATA, 2**64 - 4096])] * 3),
    scramble=st.booleans(),
    event_idx=st.booleans(),
)
def test_any_bytes_in_rings_end_in_a_request_or_a_counted_fault(
    size: int,
    descriptors: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int,
    rings: tuple[int, int, int],
    scramble: bool,
    event_idx: bool,
) -> None:
    """Given rings of any content, also not in RAM, when the device serves them, then it comes to an end.

    What it takes keeps the rules of 2.7.5, a fault is counted once, and after it nothing is served.
    """
    q = Queue(size, event_idx)
    for number, entry in enumerate(descriptors):
        q.describe(DESCRIPTORS + 16 * number, *entry)
        q.describe(DATA + 16 * number, *entry)
    for number, head in enumerate(heads):
        q.put16(AVAILABLE + 4 + 2 * number, head)
    q.put16(AVAILABLE + 2, index)
    q.queue.stop()
    places = rings if scramble else (DESCRIPTORS, AVAILABLE, USED)
    q.queue.start(size, *places, event_idx, True)
    served = 0
    while (request := q.queue.take()) is not None:
        served += 1
        assert served <= size, "never more than the driver can have offered"
        assert request.readable + request.writable <= 1 << 32
        q.queue.data(request, 1 << 16)
        q.queue.complete(request, b"x" * 100)
        q.queue.notify()
        q.queue.allow_notifications()
    counts = q.queue.counters()
    assert counts["queue_faults"] == int(q.queue.fault() != "")
    if q.queue.fault():
        q.put16(AVAILABLE + 2, 1)
        assert q.queue.take() is None
    q.queue.stop()
    q.queue.start(8, DESCRIPTORS, AVAILABLE, USED, False, False)
    q.put16(AVAILABLE + 2, 0)
    assert q.queue.take() is None and q.queue.fault() == "", "a reset mends it"
