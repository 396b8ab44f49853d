# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupt lines: from the device that drives one to the inputs of the interrupt controllers."""

import threading
from collections.abc import Callable
from typing import Protocol


class InterruptFabric(Protocol):
    """Where interrupts go: the local APICs of all hosts. Any thread; calls come in with device locks held."""

    def msi(self, address: int, data: int) -> None:
        """An interrupt message as on the PC's bus (Intel SDM vol. 3A, section 11.11)."""

    def extint(self, level: bool) -> None:
        """The 8259A's INTR output: LINT0 of every local APIC that takes it as ExtINT (virtual wire mode)."""

    def nmi(self) -> None:
        """An edge on the NMI line: LINT1 of every local APIC."""


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

    def restore(self, level: bool) -> None:
        """Take ``level`` from a saved state. The inputs are not told: their chips were saved with it."""
        self.level = level


class SharedLine:
    """A wire that several devices pull: active while at least one of them asserts (wired OR).

    PCI INTA# to INTD# are such lines. ``branch()`` gives each device an :class:`IrqLine` of its own, where
    True means "asserted". ``active`` is the electrical level of the asserted wire: False for the open-drain,
    active-low lines of PCI. Lock order: a device's lock, then this line's, then the interrupt controller's.
    """

    def __init__(self, *inputs: Callable[[bool], None], active: bool = True) -> None:
        self._inputs = inputs
        self._active = active
        # Held while the inputs are told, so that two devices that change at once are told in order.
        self._lock = threading.Lock()
        self._asserted = 0
        self._branches: list[IrqLine] = []

    def branch(self) -> IrqLine:
        """A line for one more device. Call it while the machine is put together."""
        line = IrqLine(self._change)
        self._branches.append(line)
        return line

    def _change(self, asserted: bool) -> None:
        with self._lock:
            before = self._asserted
            self._asserted += 1 if asserted else -1
            if bool(before) is not bool(self._asserted):
                level = self._active if self._asserted else not self._active
                for pin in self._inputs:
                    pin(level)

    @property
    def asserted(self) -> int:
        """How many devices assert the line now. Any thread."""
        return self._asserted

    def recount(self) -> None:
        """Count the assertions of the branches anew, after their devices were loaded from a saved state."""
        with self._lock:
            self._asserted = sum(branch.level for branch in self._branches)
