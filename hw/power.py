# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest can do to its own power supply, as one event for the machine's owner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PowerEvent:
    """The guest switched itself off, asked for a reset, or ended a test through the debug-exit port.

    ``value`` is what the guest wrote: the exit code for ``debug-exit``, the register's byte for a
    ``reset``, the sleep type for ``power-off``. ``source`` names the device.
    """

    kind: Literal["power-off", "reset", "debug-exit"]
    value: int = 0
    source: str = ""


# Called on the thread of the vCPU that wrote the register, with the device's lock held: note the event and
# return. To wait for that vCPU in the call is a deadlock.
PowerSink = Callable[[PowerEvent], None]
