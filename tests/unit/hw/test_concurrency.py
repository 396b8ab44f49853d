# SPDX-License-Identifier: GPL-2.0-or-later
"""Many vCPUs and devices at once: no level interrupt is lost, no byte is lost, nothing deadlocks."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.clock import HostClock
from coremesh.hw.decode import MMIO, PORT, At
from coremesh.hw.irq import IrqLine
from coremesh.hw.isa.i8259a import Pic8259A
from coremesh.hw.isa.ioapic import IoApic82093AA
from coremesh.hw.isa.uart16550 import Uart16550A
from coremesh.hw.node import DeviceNode

LEVEL = 1 << 15
PINS = (5, 9, 10, 11)
UNITS = 400  # of work for each device


class Processors:
    """A fabric whose vectors are served by a thread, as a vCPU would: handler, then EOI."""

    def __init__(self) -> None:
        self.vectors: queue.Queue[int | None] = queue.Queue()
        self.handler: Callable[[int], None] = lambda vector: None

    def msi(self, address: int, data: int) -> None:
        self.vectors.put(data & 0xFF)

    def extint(self, level: bool) -> None:
        pass

    def nmi(self) -> None:
        pass

    def serve(self) -> None:
        while (vector := self.vectors.get()) is not None:
            self.handler(vector)


class Worker:
    """A device whose line is high as long as it has work for the guest."""

    def __init__(self, line: IrqLine) -> None:
        self.lock = threading.Lock()
        self.line = line
        self.pending = 0

    def produce(self) -> None:
        with self.lock:
            self.pending += 1
            self.line.set(True)

    def consume(self) -> int:
        with self.lock:
            taken = min(self.pending, 1)
            self.pending -= taken
            self.line.set(self.pending > 0)
            return taken


class ForgetfulIoApic(IoApic82093AA):
    """The negative control: an EOI clears remote IRR but does not look at the line again."""

    def _end(self, vector: int) -> None:
        for number, entry in enumerate(self.ioredtbl):
            if entry & 0xFF == vector:
                self.ioredtbl[number] = entry & ~(1 << 14)


@contextmanager
def running(*targets: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a thread is stuck: deadlock"


def serve_level_interrupts(ioapic_type: type[IoApic82093AA], patience: float) -> int:
    """Units of work that reached the guest, of ``len(PINS) * UNITS``."""
    processors = Processors()
    ioapic = ioapic_type(processors)
    node = DeviceNode([At(MMIO, 0xFEC0_0000, 0x1000, ioapic)], ioapic, Pic8259A())
    workers: dict[int, list[Worker]] = {
        0x50 + pin // 10: [] for pin in PINS
    }  # two vectors, each shared by two pins
    for pin in PINS:
        vector = 0x50 + pin // 10
        workers[vector].append(Worker(IrqLine(ioapic.pin(pin))))
        node.access(MMIO, 0xFEC0_0000, 4, True, 0x10 + 2 * pin)
        node.access(MMIO, 0xFEC0_0010, 4, True, vector | LEVEL)

    served = 0
    finished = threading.Event()

    def handle(vector: int) -> None:
        nonlocal served
        served += sum(worker.consume() for worker in workers[vector])
        node.eoi(vector)
        if served == len(PINS) * UNITS:
            finished.set()

    processors.handler = handle
    stop = threading.Event()

    def produce(mine: list[Worker]) -> None:
        for _ in range(UNITS):
            for worker in mine:
                worker.produce()

    def hammer() -> None:
        # Another vCPU reads every register and masks and unmasks a pin that nobody uses.
        while not stop.is_set():
            for index in range(0x10, 0x40):
                node.access(MMIO, 0xFEC0_0000, 4, True, index)
                node.access(MMIO, 0xFEC0_0010, 4, False, 0)

    producers = [lambda mine=mine: produce(mine) for mine in workers.values()]
    with running(processors.serve, hammer, *producers):
        finished.wait(patience)
        stop.set()
        processors.vectors.put(None)
    return served


def test_no_level_interrupt_is_lost() -> None:
    """Given four level devices on two shared vectors, while another vCPU hammers the registers.

    When each raises its line 400 times at any moment, also between handler and EOI, then all work is served.
    """
    assert serve_level_interrupts(IoApic82093AA, patience=20) == len(PINS) * UNITS


def test_without_redelivery_at_eoi_interrupts_are_lost() -> None:
    """Given an I/O APIC that forgets the line at EOI, then the same load stalls: the test above can fail."""
    assert serve_level_interrupts(ForgetfulIoApic, patience=1) < len(PINS) * UNITS


def test_no_byte_and_no_edge_is_lost_at_the_serial_port() -> None:
    """Given three vCPUs that print and one that waits for input by interrupt alone, while a person pastes.

    Then the person sees every byte printed and the guest reads every byte typed, in order.
    """
    edges = threading.Semaphore(0)
    line = IrqLine(lambda level: edges.release() if level else None)
    console = ConsolePort()
    uart = Uart16550A(HostClock(), line, console)
    node = DeviceNode([At(PORT, 0x3F8, 8, uart)], IoApic82093AA(Processors()), Pic8259A(line.set))
    for offset, value in ((3, 0x80), (0, 1), (1, 0), (3, 0x03), (4, 0x0B), (2, 0x81), (1, 0x01)):
        node.access(PORT, 0x3F8 + offset, 1, True, value)
    node.start()
    typed = bytes(i % 251 for i in range(3000))
    received = bytearray()

    def read_by_interrupt() -> None:
        while len(received) < len(typed):
            if not edges.acquire(timeout=5):
                return
            while not node.access(PORT, 0x3FA, 1, False, 0) & 1:
                while node.access(PORT, 0x3FD, 1, False, 0) & 1:
                    received.append(node.access(PORT, 0x3F8, 1, False, 0))

    def print_letters(letter: int) -> None:
        for _ in range(2000):
            node.access(PORT, 0x3F8, 1, True, letter)

    def paste() -> None:
        for start in range(0, len(typed), 100):
            console.feed(typed[start : start + 100])

    with running(read_by_interrupt, paste, *(lambda c=c: print_letters(c) for c in b"abc")):
        pass
    node.stop()
    assert bytes(received) == typed
    printed, _ = console.read(0, 0)
    assert {c: printed.count(c) for c in b"abc"} == dict.fromkeys(b"abc", 2000)


@pytest.mark.parametrize("kind", ["timers", "acknowledge"])
def test_nothing_deadlocks_when_everything_happens_at_once(fabric: Any, kind: str) -> None:
    """Given running timers on the host's clock, when vCPUs program, acknowledge and end at once.

    Then all go on.
    """
    from coremesh.hw.board.pc import build_pc

    node = build_pc(fabric, console=ConsolePort(), on_power=lambda event: None, ram_bytes=1 << 30, vcpus=4)
    node.start()

    def outb(port: int, value: int) -> None:
        node.access(PORT, port, 1, True, value)

    def timers() -> None:
        for round_ in range(150):
            for port, value in (
                (0x43, 0x34),
                (0x40, 200),
                (0x40, 1 + round_ % 3),
                (0x70, 0x0B),
                (0x71, 0x72),
            ):
                outb(port, value)
            outb(0x70, 0x0C)
            node.access(PORT, 0x71, 1, False, 0)
            node.access(PORT, 0x602, 2, True, 1)
            node.access(PORT, 0x600, 2, True, 1)

    def acknowledge() -> None:
        for port, value in ((0x20, 0x13), (0x21, 0x30), (0x21, 0x03), (0x21, 0x00)):
            outb(port, value)
        for _ in range(300):
            assert 0x30 <= node.acknowledge() <= 0x37
            node.access(MMIO, 0xFEC0_0000, 4, True, 0x14)
            node.access(MMIO, 0xFEC0_0010, 4, True, 0x30 | LEVEL)
            node.eoi(0x30)

    load = timers if kind == "timers" else acknowledge
    with running(timers, load, load):
        pass
    node.stop()
    assert all(counters["faults"] == 0 for counters in node.counters().values())
