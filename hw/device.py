# SPDX-License-Identifier: GPL-2.0-or-later
"""What every device is: registers behind a lock of its own, interrupt lines, alarms.

A device sees accesses of *(offset, size, value)*. It knows neither where it is mapped nor who asks. Its
lock is taken by the caller (the device node, an alarm), so that the code of a device is free of locking.

Lock order, which is also the way a signal travels: device, 8259A pair, I/O APIC, interrupt fabric. Nothing
is ever called in the other direction with a lock held.

State before interrupt: a device changes every register that the guest may read *before* it sets a line,
because another vCPU may look at them as soon as the interrupt is out.
"""

import threading
from collections.abc import Callable
from typing import ClassVar, Protocol

from coremesh.hw.clock import Alarm
from coremesh.hw.registers import Register


class InterruptFabric(Protocol):
    """Where interrupts go: the local APICs of all hosts. Any thread; calls come in with device locks held."""

    def msi(self, address: int, data: int) -> None:
        """An interrupt message as on the PC's bus (Intel SDM vol. 3A, section 11.11)."""

    def extint(self, level: bool) -> None:
        """The 8259A's INTR output: LINT0 of every local APIC that takes it as ExtINT (virtual wire mode)."""

    def nmi(self) -> None:
        """An edge on the NMI line: LINT1 of every local APIC."""


class GuestMemory(Protocol):
    """Guest RAM as DMA sees it, coherent with the vCPUs. Any thread; addresses are guest-physical."""

    def ram_read(self, gpa: int, length: int) -> bytes:
        """``length`` bytes at ``gpa``."""

    def ram_write(self, gpa: int, data: bytes) -> None:
        """Lay ``data`` at ``gpa``."""


class IrqLine:
    """A wire from the one device that drives it to the inputs of interrupt controllers.

    ``set`` is called by the driving device only, with its lock held: that lock also guards ``level``. The
    level is electrical: True is high, whatever that means to the device.
    """

    __slots__ = ("_inputs", "level")

    def __init__(self, *inputs: Callable[[bool], None], level: bool = False) -> None:
        self._inputs = inputs
        self.level = level

    def set(self, level: bool) -> None:
        """Drive the line; nothing happens when it already is at ``level``."""
        if level is not self.level:
            self.level = level
            for pin in self._inputs:
                pin(level)

    def pulse(self) -> None:
        """A rising edge even when the line is high already; the line stays high."""
        self.set(False)
        self.set(True)


class Device:
    """Base of all devices. ``read``, ``write``, ``reset`` are called with ``lock`` held.

    ``REGISTERS`` declares the registers whose value ``self.<name in lower case>`` holds. ``widths`` are the
    sizes in bytes that the device takes in one access; the device node splits wider ones, as the ISA bus
    does.
    """

    REGISTERS: ClassVar[tuple[type[Register], ...]] = ()
    widths: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.alarms: list[Alarm] = []
        # Counted under the lock: accesses by the device node, and how often anybody had to wait for the lock.
        self.accesses = 0
        self.contended = 0
        self.faults = 0  # accesses that ended in a Python exception: a bug of ours, answered with all ones

    def acquire(self) -> None:
        """Take the lock, and count it when somebody else holds it."""
        if not self.lock.acquire(False):
            self.lock.acquire()
            self.contended += 1

    def read(self, offset: int, size: int) -> int:
        """The value at ``offset``, below ``1 << 8 * size``. Reading may have effects, as in hardware."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes ``value`` (``0 <= value < 1 << 8 * size``) at ``offset``."""

    def reset(self) -> None:
        """The RESET pin: every declared register takes its reset value."""
        for register in self.REGISTERS:
            setattr(self, register.__name__.lower(), register.reset)

    def show(self) -> dict[str, dict[str, int]]:
        """The registers and their bits by datasheet name, for a person. Takes the lock; any thread."""
        with self.lock:
            values = {r: int(getattr(self, r.__name__.lower())) for r in self.REGISTERS}
        return {r.__name__: {"value": value, **r.decode(value)} for r, value in values.items()}
