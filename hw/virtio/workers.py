# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that answer the requests of one queue by a function that may block."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from coremesh.core._native import Request, VirtQueue
from coremesh.hw.virtio.model import VirtioModel

logger = logging.getLogger(__name__)

_LONGEST_STOP: Final = 20.0  # seconds that a request may take when the machine stops


class QueueWorkers:
    """``count`` threads that serve one queue of ``model``, several requests at once.

    ``answer`` returns what the driver gets; ``None`` for a request that no driver makes, which stops the
    device. ``why`` is told of that.
    """

    def __init__(
        self,
        model: VirtioModel,
        answer: Callable[[VirtQueue, Request], bytes | None],
        *,
        count: int,
        why: str,
    ) -> None:
        self._model = model
        self._answer = answer
        self._count = count
        self._why = why
        self._queue: VirtQueue
        self._threads: list[threading.Thread] = []
        self.stopping = threading.Event()

    def start(self, queue: VirtQueue) -> None:
        """Idempotent."""
        if self._threads:
            return
        self.stopping.clear()
        self._queue = queue
        for number in range(self._count):
            thread = threading.Thread(target=self._run, name=f"{self._model.name}.{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        queue.wake()  # what came while no worker ran

    def stop(self) -> None:
        """Returns when no request is being answered any more. Idempotent."""
        self.stopping.set()
        for thread in self._threads:
            self._queue.wake()
            thread.join(_LONGEST_STOP)
            if thread.is_alive():
                logger.warning("%s: a request does not end; it is left behind", self._model.name)
        self._threads.clear()

    def _run(self) -> None:
        queue = self._queue
        while not self.stopping.is_set():
            queue.wait(-1)
            self.serve(queue)
        queue.wake()  # a ring wakes one thread, and the others are to end as well

    def serve(self, queue: VirtQueue) -> None:
        """Answer what is in ``queue`` now."""
        self._serve(queue)
        if queue.broken:
            self._model.port.needs_reset(self._why)

    def _serve(self, queue: VirtQueue) -> None:
        while not self.stopping.is_set():
            request = queue.take()
            if request is None:
                if queue.allow_notifications():
                    continue
                return
            if self._count > 1:
                queue.wake()  # another thread looks for the next one
            answer = self._answer(queue, request)
            if answer is None:
                queue.refuse(request)
                return
            while not queue.complete(request, answer):
                # A function that may not use the bus waits until it may.
                if not queue.held or self.stopping.wait(0.005):
                    return
            queue.notify()
