# SPDX-License-Identifier: GPL-2.0-or-later
"""The POST code display at port 0x80: firmware and kernels show there how far they came.

Linux writes to the port for nothing but the delay of an ISA bus cycle, so this must be cheap.
"""

from collections import deque

from coremesh.hw.device import Device

KEPT = 16


class PostCode(Device):
    """One latch. ``codes`` holds the last values that were written, the newest last."""

    STATE = ("latch", "codes")

    def __init__(self, name: str = "post") -> None:
        super().__init__(name)
        self.codes: deque[int] = deque(maxlen=KEPT)
        self.latch = 0

    def read(self, offset: int, size: int) -> int:
        """The last code."""
        return self.latch

    def write(self, offset: int, size: int, value: int) -> None:
        """Show a code."""
        self.latch = value
        self.codes.append(value)

    def reset(self) -> None:
        """The display goes dark; what was shown before the reset stays in ``codes`` for a post-mortem."""
        self.latch = 0
