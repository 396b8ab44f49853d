# SPDX-License-Identifier: GPL-2.0-or-later
"""What every device is: registers behind a lock of its own, interrupt lines, alarms.

A device sees accesses of *(offset, size, value)*. It knows neither where it is mapped nor which vCPU asks.
Its lock is taken by the caller (the device node, an alarm), so that the code of a device is free of locking.

Lock order, which is also the way a signal travels: device, 8259A pair, I/O APIC, interrupt fabric. Nothing
is ever called in the other direction with a lock held.

State before interrupt: a device changes every register that the guest may read *before* it sets a line,
because another vCPU may look at them as soon as the interrupt is out.
"""

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from coremesh.core.state import State, StateError, check_keys, check_shape, check_version
from coremesh.hw.clock import Alarm
from coremesh.hw.irq import IrqLine
from coremesh.hw.registers import Register
from coremesh.hw.state import Stateful

_MOST = (1 << 64) - 1  # that a register holds


class Device(Stateful):
    """Base of all devices. ``read``, ``write``, ``reset`` are called with ``lock`` held.

    ``REGISTERS`` declares the registers whose value ``self.<name in lower case>`` holds. ``widths`` are the
    sizes in bytes that the device takes in one access; the device node splits wider ones, as the ISA bus
    does.

    ``STATE`` names the attributes that are state beside the registers; ``VERSION`` is raised when their
    meaning changes. A device puts the lines that it drives into ``lines``, and its alarms into ``alarms``.
    """

    VERSION: ClassVar[int] = 1

    REGISTERS: ClassVar[tuple[type[Register], ...]] = ()
    widths: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.alarms: list[Alarm] = []
        self.lines: list[IrqLine] = []
        # Counted under the lock: accesses by the device node, and how often a thread had to wait.
        self.accesses = 0
        self.contended = 0
        self.waited_ns = 0  # for the lock, all threads together
        self.faults = 0  # accesses that ended in a Python exception: a bug of ours, answered with all ones

    def acquire(self) -> None:
        """Take the lock, and count it when another thread holds it."""
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

    def start(self) -> None:
        """The machine begins to run: start workers. Without the lock; the alarms are the node's."""

    def stop(self) -> None:
        """Returns when no worker runs any more. Without the lock; idempotent."""

    def counts(self) -> dict[str, int]:
        """Accesses, how many waited for the lock and how long, faults; a device may add its own."""
        return {
            "accesses": self.accesses,
            "contended": self.contended,
            "waited_ns": self.waited_ns,
            "faults": self.faults,
        }

    def save(self) -> State:
        """Registers, further state and the levels of the lines, as plain data. Takes the lock; any thread.

        It is one moment's state only while no vCPU runs and the alarms are stopped.
        """
        with self.lock:
            registers = {r.__name__: int(getattr(self, r.__name__.lower())) for r in self.REGISTERS}
            return {
                "version": self.VERSION,
                "registers": registers,
                "lines": [line.level for line in self.lines],
                **self.save_fields(),
            }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`save` returned. Takes the lock; any thread, while no vCPU runs.

        No line changes: the controllers behind it are loaded too. When all devices of the machine are loaded,
        :meth:`resume` follows. Raises :class:`StateError` for what is not a state of this device; the device
        is to be thrown away then.
        """
        fields = {name.lstrip("_") for name in self.STATE}
        check_version(state, self.VERSION, self.name)
        check_keys(state, {"version", "registers", "lines"} | fields, self.name)
        check_shape(state["registers"], {r.__name__: 0 for r in self.REGISTERS}, f"{self.name}.registers")
        check_shape(state["lines"], [False] * len(self.lines), f"{self.name}.lines")
        for name, value in state["registers"].items():
            if not 0 <= value <= _MOST:
                raise StateError(
                    f"the saved state of {self.name}.registers.{name} is damaged ({value} does not fit 64 "
                    "bits); load another copy of it"
                )
        with self.lock:
            for name, value in state["registers"].items():
                setattr(self, name.lower(), value)
            self.load_fields({key: state[key] for key in fields}, self.name)
            for line, level in zip(self.lines, state["lines"], strict=True):
                line.restore(level)

    def resume(self) -> None:
        """All devices have been loaded: arm the alarms that the state asks for. The lock is held."""

    def show(self) -> dict[str, dict[str, int]]:
        """The registers and their bits by datasheet name, for a person. Takes the lock; any thread."""
        with self.lock:
            values = {r: int(getattr(self, r.__name__.lower())) for r in self.REGISTERS}
        return {r.__name__: {"value": value, **r.decode(value)} for r, value in values.items()}
