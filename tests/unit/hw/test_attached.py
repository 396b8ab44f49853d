# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices whose code is elsewhere: the order of accesses, and that no vCPU waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw import attached
from coremesh.hw.attached import READ, RESET, WRITE, Answer, AttachedDevice, Request
from coremesh.hw.board.pc import spare_irqs, spare_line
from coremesh.hw.decode import MMIO, PORT, At

BASE = 0xFED0_0000
Code = Callable[[Request], Answer]


def device(timeout: float = 10.0) -> AttachedDevice:
    return AttachedDevice("adder", None, timeout)


@contextmanager
def served(attached_device: AttachedDevice, code: Code) -> Iterator[list[Request]]:
    """The code's end: a thread that fetches, calls `code` for each request, and keeps them."""
    done: list[Request] = []

    def serve() -> None:
        answers: list[Answer] = []
        while (fetched := attached_device.exchange(answers, 1.0)) is not None:
            done.extend(fetched[0])
            answers = [code(request) for request in fetched[0]]

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield done
    finally:
        attached_device.close()
        thread.join(10)
        assert not thread.is_alive()


def echo(request: Request) -> Answer:
    return Answer(request.number, request.offset)


def test_what_the_guest_does_reaches_the_code_in_order_and_its_answer_the_guest(pc: Any) -> None:
    """Given a device on the node whose code is elsewhere, when it is written and read.

    Then the writes pass first, and the read gives what the code returned.
    """
    total = 0

    def add(request: Request) -> Answer:
        nonlocal total
        total += request.value
        return Answer(request.number, total)

    adder = device()
    pc.node.add(adder, [At(MMIO, BASE, 0x1000, adder), At(PORT, 0x240, 4, adder, 0x1000)])
    with served(adder, add) as done:
        for value in range(1, 101):
            pc.mmio_write(BASE + 8, value)
        assert pc.mmio_read(BASE + 8) == 5050
        assert pc.inb(0x241) == 5050 & 0xFF
    assert [request.value for request in done] == [*range(1, 101), 0, 0]
    assert [(r.kind, r.offset, r.size) for r in done[-2:]] == [(READ, 8, 4), (READ, 0x1001, 1)]
    counts = pc.node.counters()["adder"]
    assert (counts["reads"], counts["writes"], counts["bytes_written"]) == (2, 100, 400)
    assert counts["service_ns"] > 0 and counts["timeouts"] == 0


def test_code_that_is_late_is_not_waited_for_again_until_it_is_back() -> None:
    """Given code that is at work for long, when the guest reads twice, then it waits once and gets all ones.

    When the code is back, then it is asked again. Its late answer reaches no later read.
    """
    goes_on = threading.Event()

    def slow(request: Request) -> Answer:
        if request.offset == 1:
            goes_on.wait(60)
        return Answer(request.number, 0x40 + request.offset)

    late = device(timeout=0.2)
    with served(late, slow):
        begin = time.monotonic()
        assert late.read(1, 2) == 0xFFFF
        assert 0.2 <= time.monotonic() - begin < 5
        begin = time.monotonic()
        assert [late.read(2, 4) for _ in range(100)] == [0xFFFF_FFFF] * 100
        assert time.monotonic() - begin < 5, "no vCPU waits for what is late already: that were 20 s"
        goes_on.set()
        until = time.monotonic() + 10
        while (value := late.read(2, 1)) == 0xFF and time.monotonic() < until:
            time.sleep(0.01)
        assert value == 0x42
    assert late.counts()["timeouts"] == 1
    assert late.counts()["unanswered"] >= 101


def test_code_that_never_fetches_costs_the_guest_one_wait_and_a_bounded_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given code that has gone, when the guest writes on and on, then writes beyond the queue are lost."""
    monkeypatch.setattr(attached, "MOST_WAITING", 8)
    gone = device(timeout=0.2)
    begin = time.monotonic()
    for value in range(100):
        gone.write(0, 4, value)
    assert 0.2 <= time.monotonic() - begin < 5
    counts = gone.counts()
    assert (counts["lost_writes"], counts["timeouts"], counts["deepest"]) == (92, 1, 8)
    assert gone.read(0, 1) == 0xFF
    assert gone.counts()["timeouts"] == 1
    fetched = gone.exchange([], 0)
    assert fetched is not None and [request.value for request in fetched[0]] == list(range(8))
    assert fetched[1] == 1, "the code hears that it was late"


def test_a_vcpu_that_waits_for_room_goes_on_when_some_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "MOST_WAITING", 4)
    busy = device()
    with served(busy, echo) as done:
        for value in range(200):
            busy.write(0, 4, value)
        assert busy.read(3, 1) == 3
    assert [request.value for request in done[:-1]] == list(range(200))
    assert busy.counts()["lost_writes"] == 0


def test_detaching_ends_a_wait_and_frees_the_place(pc: Any) -> None:
    """Given a guest that waits for the code, when the device is detached, then it reads all ones at once."""
    slow = device(timeout=60)
    pc.node.add(slow, [At(MMIO, BASE, 0x1000, slow)])
    read: list[int] = []
    guest = threading.Thread(target=lambda: read.append(pc.mmio_read(BASE)))
    guest.start()
    until = time.monotonic() + 10
    while not slow.counts()["reads"] and time.monotonic() < until:
        time.sleep(0.001)
    pc.node.remove(slow)
    slow.close()
    guest.join(10)
    assert read == [0xFFFF_FFFF]
    assert slow.exchange([], 10) is None
    assert pc.mmio_read(BASE) == 0xFFFF_FFFF and slow.counts()["accesses"] == 1, "nothing answers there"
    again = device()
    pc.node.add(again, [At(MMIO, BASE, 0x1000, again)])


def test_an_exception_in_the_code_is_all_ones_and_a_fault() -> None:
    broken = device()
    with served(broken, lambda request: Answer(request.number, 5, failed=True)):
        assert broken.read(0, 4) == 0xFFFF_FFFF
    assert broken.counts()["faults"] == 1


def test_a_device_is_reset_with_the_machine(pc: Any) -> None:
    """Given a line that is high, when the machine is reset, then it is low and the code hears of it."""
    line = spare_line(pc.node, 5)
    chip = AttachedDevice("chip", line, 10)
    pc.node.add(chip, [At(PORT, 0x240, 4, chip)])
    chip.set_irq(True)
    pc.outb(0x240, 7)
    pc.node.reset()
    assert not line.level
    fetched = chip.exchange([], 0)
    assert fetched is not None and [request.kind for request in fetched[0]] == [WRITE, RESET]


def test_a_line_interrupts_as_an_isa_device_does(pc: Any) -> None:
    """Given pin 5 of the I/O APIC with vector 0x55, when the line is pulsed, then the vector is sent."""
    pc.route(5, 0x55)
    chip = AttachedDevice("chip", spare_line(pc.node, 5), 10)
    chip.pulse_irq()
    chip.pulse_irq()
    assert pc.fabric.vectors == [0x55, 0x55]


def test_no_spare_interrupt_is_any_chips(pc: Any) -> None:
    assert spare_irqs(pc.node) == [3, 5, 6, 7, 12, 13, 14, 15]


def test_a_name_or_an_address_that_is_taken_is_refused_and_changes_nothing(pc: Any) -> None:
    taken = AttachedDevice("uart", None, 1)
    with pytest.raises(ConfigurationError, match="uart"):
        pc.node.add(taken, [At(PORT, 0x240, 4, taken)])
    over = device()
    with pytest.raises(ConfigurationError, match="0x3f8"):
        pc.node.add(over, [At(PORT, 0x3F8, 1, over)])
    assert "adder" not in pc.node.devices
    assert pc.inb(0x240) == 0xFF
