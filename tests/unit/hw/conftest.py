# SPDX-License-Identifier: GPL-2.0-or-later
"""What a chip is tested with.

A clock that moves only when told, wires and a fabric that write down what they carry.
"""

import threading
from collections.abc import Callable, Iterable

import pytest
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.board.pc import build_pc
from coremesh.hw.decode import MMIO, PORT
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.node import DeviceNode
from coremesh.hw.pci.function import PciFunction
from coremesh.hw.power import PowerEvent

NOON = 1_796_040_000 * 1_000_000_000  # 2026-11-30 12:00:00 UTC, a Monday


class StepAlarm:
    def __init__(self, lock: threading.Lock, expire: Callable[[], None]) -> None:
        self.lock = lock
        self.expire = expire
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        assert self.lock.locked()
        self.deadline = deadline

    def cancel(self) -> None:
        self.deadline = None

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class StepClock:
    """Stands still until ``advance``; then the alarms go off in order, each at its own deadline."""

    def __init__(self) -> None:
        self.time = 5_000_000_000
        self.base = NOON - self.time
        self.alarms: list[StepAlarm] = []
        self.expired = 0
        self.step = 0  # ns that pass between two looks at the clock

    def now(self) -> int:
        self.time += self.step
        return self.time

    def wall(self) -> int:
        return self.base + self.time

    def alarm(self, name: str, lock: threading.Lock, expire: Callable[[], None]) -> StepAlarm:
        self.alarms.append(StepAlarm(lock, expire))
        return self.alarms[-1]

    def advance(self, ns: int) -> None:
        end = self.time + ns
        while True:
            due = [a for a in self.alarms if a.deadline is not None and a.deadline <= end]
            if not due:
                break
            alarm = min(due, key=lambda a: a.deadline or 0)
            self.time = max(self.time, alarm.deadline or 0)
            alarm.deadline = None
            self.expired += 1
            with alarm.lock:
                alarm.expire()
        self.time = end

    def advance_us(self, us: float) -> None:
        self.advance(round(us * 1_000))


class Wire:
    """The far end of an interrupt line. ``look`` is called at every change and its answer kept."""

    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.look: Callable[[], object] = lambda: None
        self.seen: list[object] = []
        self.line = IrqLine(self._change)

    def _change(self, level: bool) -> None:
        self.levels.append(level)
        self.seen.append(self.look())

    @property
    def high(self) -> bool:
        return self.line.level

    @property
    def rises(self) -> int:
        return self.levels.count(True)


class RecordingFabric:
    """Keeps every message instead of interrupting anybody."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.extints: list[bool] = []
        self.nmis = 0

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def extint(self, level: bool) -> None:
        self.extints.append(level)

    def nmi(self) -> None:
        self.nmis += 1

    @property
    def vectors(self) -> list[int]:
        return [data & 0xFF for _, data in self.messages]


class Chip:
    """A device as the node calls it: with its lock held, and checked for answers that do not fit the size."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def read(self, offset: int, size: int = 1) -> int:
        with self.device.lock:
            value = self.device.read(offset, size)
        assert 0 <= value < 1 << 8 * size
        return value

    def write(self, offset: int, value: int, size: int = 1) -> None:
        with self.device.lock:
            self.device.write(offset, size, value)

    def reset(self) -> None:
        with self.device.lock:
            self.device.reset()


class Pc:
    """A whole PC on a clock that stands still, programmed as a guest would."""

    def __init__(
        self, ram_bytes: int = 1 << 30, vcpus: int = 4, functions: Iterable[PciFunction] = ()
    ) -> None:
        self.clock = StepClock()
        self.fabric = RecordingFabric()
        self.console = ConsolePort()
        self.power: list[PowerEvent] = []
        self.node: DeviceNode = build_pc(
            self.fabric,
            console=self.console,
            on_power=self.power.append,
            ram_bytes=ram_bytes,
            vcpus=vcpus,
            clock=self.clock,
            functions=functions,
        )

    def inb(self, port: int) -> int:
        return self.node.access(PORT, port, 1, False, 0)

    def inw(self, port: int) -> int:
        return self.node.access(PORT, port, 2, False, 0)

    def inl(self, port: int) -> int:
        return self.node.access(PORT, port, 4, False, 0)

    def outb(self, port: int, value: int) -> None:
        self.node.access(PORT, port, 1, True, value)

    def outw(self, port: int, value: int) -> None:
        self.node.access(PORT, port, 2, True, value)

    def outl(self, port: int, value: int) -> None:
        self.node.access(PORT, port, 4, True, value)

    def mmio_read(self, address: int) -> int:
        return self.node.access(MMIO, address, 4, False, 0)

    def mmio_write(self, address: int, value: int) -> None:
        self.node.access(MMIO, address, 4, True, value)

    def ioapic_write(self, index: int, value: int) -> None:
        self.mmio_write(0xFEC0_0000, index)
        self.mmio_write(0xFEC0_0010, value)

    def route(self, pin: int, vector: int, flags: int = 0) -> None:
        """Unmask an I/O APIC pin: destination 0, fixed, edge, active high unless ``flags`` say more."""
        self.ioapic_write(0x11 + 2 * pin, 0)
        self.ioapic_write(0x10 + 2 * pin, vector | flags)

    def cmos(self, index: int) -> int:
        self.outb(0x70, index)
        return self.inb(0x71)

    def cmos_write(self, index: int, value: int) -> None:
        self.outb(0x70, index)
        self.outb(0x71, value)


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def make_wire() -> type[Wire]:
    return Wire


@pytest.fixture
def fabric() -> RecordingFabric:
    return RecordingFabric()


@pytest.fixture
def power() -> list[PowerEvent]:
    return []


@pytest.fixture
def guest_access() -> type[Chip]:
    """Wraps a device so that a test reads and writes it as the node does."""
    return Chip


@pytest.fixture
def pc() -> Pc:
    return Pc()


@pytest.fixture
def make_pc() -> type[Pc]:
    return Pc
