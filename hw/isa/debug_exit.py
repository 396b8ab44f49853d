# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug-exit port: a test guest ends the machine with a number.

The interface is that of QEMU's isa-debug-exit: the exit status of the process becomes ``(value << 1) | 1``,
so a guest that knows nothing of Coremesh can report success or failure, and status 0 is left to an orderly
power-off.
"""

from coremesh.hw.device import Device
from coremesh.hw.power import PowerEvent, PowerSink


class DebugExit(Device):
    """Four bytes of ports. Any write ends the machine."""

    widths = (1, 2, 4)

    def __init__(self, on_power: PowerSink, name: str = "debug-exit") -> None:
        super().__init__(name)
        self._on_power = on_power

    def read(self, offset: int, size: int) -> int:
        """Zero, so that a guest can tell the port from an empty bus."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine with ``value``."""
        self._on_power(PowerEvent("debug-exit", value, self.name))
