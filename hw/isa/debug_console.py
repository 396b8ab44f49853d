# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug port of firmware for virtual machines: each byte written to port 0x402 is a letter of its log.

The interface is that of QEMU's isa-debugcon, whose reading value tells firmware that its bytes are read.
"""

from collections import deque
from typing import Final

from coremesh.hw.device import Device

LISTENS: Final = 0xE9
KEPT: Final = 64 << 10


class DebugConsole(Device):
    """One port. ``log`` holds the last letters, through resets too."""

    STATE = ("log",)

    def __init__(self, name: str = "debug-console") -> None:
        super().__init__(name)
        self.log: deque[int] = deque(maxlen=KEPT)

    def read(self, offset: int, size: int) -> int:
        """The value that says that the port exists."""
        return LISTENS

    def write(self, offset: int, size: int, value: int) -> None:
        """A letter of the log."""
        self.log.append(value)

    def text(self) -> str:
        """The log, for a person. Takes the lock; any thread."""
        with self.lock:
            return bytes(self.log).decode(errors="replace")
