# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a network device's frames go: one end of an Ethernet, whatever is at the other."""

from collections.abc import Callable, Sequence
from typing import Protocol

Frames = Sequence[bytes]
Receive = Callable[[Frames], None]

LONGEST_FRAME = 65_550
"""Bytes of an Ethernet frame without its check sequence: 64 KiB of payload and the headers before it."""


class NetworkPort(Protocol):
    """One end of an Ethernet. Frames begin with the destination's address and have no check sequence.

    Nothing is promised: a frame that does not find room is dropped and counted, as on a wire.
    """

    def start(self, receive: Receive) -> None:
        """Begin. ``receive`` takes frames for the guest, on a thread of this port; it does not wait."""

    def send(self, frames: Frames) -> None:
        """Frames of the guest. Any thread; does not wait for the other end."""

    def stop(self) -> None:
        """``receive`` is not called any more when this returns. Idempotent."""

    def close(self) -> None:
        """Give everything back. Idempotent; stops if need be."""

    def counts(self) -> dict[str, int]:
        """What this port has counted, 'frames_dropped' among it. Any thread."""
