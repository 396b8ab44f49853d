# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio 9P transport: a folder of this computer that the guest mounts by its tag.

The device has no chapter in VIRTIO 1.2, which reserves its number (9); what it looks like is Linux's
net/9p/trans_virtio.c: one queue, a request to read and an answer to write in each chain, and the tag in the
configuration.
"""

from collections.abc import Mapping
from typing import Any, Final

from coremesh.core._native import Request, VirtQueue
from coremesh.core.state import State, StateError, check_keys
from coremesh.hw.backend.p9.folder import SharedFolder
from coremesh.hw.backend.p9.server import LONGEST, Server
from coremesh.hw.virtio.model import VirtioModel
from coremesh.hw.virtio.workers import QueueWorkers

MOUNT_TAG = 1 << 0
QUEUE_SIZE: Final = 128
MOST_WORKERS: Final = 8
_SHORTEST_ANSWER: Final = 11  # an error


class Virtio9p(VirtioModel):
    """``folder`` by the name ``tag``; ``workers`` requests are served at once."""

    DEVICE_ID = 9
    PCI_CLASS = 0x018000

    def __init__(self, folder: SharedFolder, *, name: str, tag: str, workers: int) -> None:
        encoded = tag.encode()
        super().__init__(
            name,
            features=MOUNT_TAG,
            queue_sizes=[QUEUE_SIZE],
            config=len(encoded).to_bytes(2, "little") + encoded,
        )
        self.folder = folder
        self._server = Server(folder)
        self._workers = QueueWorkers(
            self, self._answer, count=min(workers, MOST_WORKERS), why="a request that the protocol has not"
        )

    def activate(self, negotiated: int) -> None:
        """See :class:`VirtioModel`. A new driver knows nothing of the files that the last one had."""
        super().activate(negotiated)
        if self._server.retired:
            self._server = Server(self.folder, self._server.counts)

    def deactivate(self) -> None:
        """See :class:`VirtioModel`."""
        super().deactivate()
        self._server.retire()

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        self._workers.start(self.queues[0])

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        self._workers.stop()

    def _answer(self, queue: VirtQueue, request: Request) -> bytes | None:
        if request.writable < _SHORTEST_ANSWER or request.readable > LONGEST:
            return None
        server = self._server
        data = queue.data(request, LONGEST)
        return b"" if data is None else server.answer(data, request.writable)

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. Requests, those that failed, and bytes of files."""
        return {**super().counts(), **self._server.counts}

    def save_fields(self) -> State:
        """The files that the guest has open, by name."""
        return {"server": self._server.save()}

    def load_fields(self, state: Mapping[str, Any], owner: str) -> None:
        """See :class:`~coremesh.hw.state.Stateful`."""
        check_keys(state, {"server"}, owner)
        self._server = Server(self.folder)
        try:
            self._server.load(state["server"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"the saved state of {owner} is damaged ({error}); load another copy of it"
            ) from error
