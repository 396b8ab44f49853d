# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio entropy device: random bytes of this computer, with a limit for each second if one is wanted.

Source: VIRTIO 1.2, section 5.4.
"""

import os
import time
from typing import Final

from coremesh.core._native import Request, VirtQueue
from coremesh.hw.virtio.model import VirtioModel
from coremesh.hw.virtio.workers import QueueWorkers

QUEUE_SIZE: Final = 64
MOST_BYTES: Final = 64 << 10
"""Of one answer: a driver that wants more asks again."""


class VirtioRng(VirtioModel):
    """Bytes of getrandom(2). ``rate`` is in bytes a second; 0 sets no limit."""

    DEVICE_ID = 4
    PCI_CLASS = 0x00FF00

    def __init__(self, *, name: str, rate: int = 0) -> None:
        super().__init__(name, features=0, queue_sizes=[QUEUE_SIZE])
        self._rate = rate
        self._left = float(rate)  # bytes that may be given now; as many as a second brings, at most
        self._looked = time.monotonic()
        self._given = self._waits = 0
        self._workers = QueueWorkers(
            self, self._answer, count=1, why="a request for entropy that is no buffer"
        )

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        self._workers.start(self.queues[0])

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        self._workers.stop()

    def _answer(self, queue: VirtQueue, request: Request) -> bytes | None:
        if request.writable == 0:
            return None
        length = min(request.writable, MOST_BYTES)
        if self._rate:
            length = self._allowed(length)
        self._given += length
        return os.getrandom(length)

    def _allowed(self, wanted: int) -> int:
        """How many bytes may be given now, after a wait if there are none: one at least (5.4.6.2)."""
        self._refill()
        if self._left < 1:
            self._waits += 1
            # A machine that stops does not wait: the driver has its byte, and asks again when it goes on.
            self._workers.stopping.wait(min(wanted, self._rate) / self._rate)
            self._refill()
        length = max(1, min(wanted, int(self._left)))
        self._left -= length
        return length

    def _refill(self) -> None:
        now = time.monotonic()
        self._left = min(float(self._rate), self._left + (now - self._looked) * self._rate)
        self._looked = now

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. Bytes given, and how often the limit made the driver wait."""
        return {**super().counts(), "bytes_given": self._given, "waits": self._waits}
