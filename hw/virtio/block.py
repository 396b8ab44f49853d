# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio block device: a disk with as many request queues as processors, each served by a native thread.

Source: VIRTIO 1.2, section 5.2. Requests are served in hw/native/block_worker.cpp; here is what a driver
reads before the first one.
"""

import struct
from collections.abc import Sequence
from typing import Final

from coremesh.core._native import BlockDisk, BlockWorker, VirtQueue
from coremesh.hw.backend.block import SECTOR_BYTES, BlockBackend, RawImage
from coremesh.hw.virtio.model import Port, VirtioModel, add_counters

SEG_MAX = 1 << 2
RO = 1 << 5
BLK_SIZE = 1 << 6
FLUSH = 1 << 9
CONFIG_WCE = 1 << 11
MQ = 1 << 12
DISCARD = 1 << 13
WRITE_ZEROES = 1 << 14

QUEUE_SIZE: Final = 256
MOST_QUEUES: Final = 8
"""More queues than this cost the guest more at probe, an access each from another host, than they gain."""
SERIAL_BYTES: Final = 20
_WRITEBACK_AT: Final = 32
_CONFIG: Final = "<QIIHBBIBBHIBxHIIIIIB3x"


class VirtioBlock(VirtioModel):
    """A disk of ``backend``'s content. ``queues`` are the request queues; ``serial`` at most 20 bytes."""

    DEVICE_ID = 2
    PCI_CLASS = 0x010000

    def __init__(self, backend: BlockBackend, *, name: str, queues: int, serial: str = "") -> None:
        features = SEG_MAX | BLK_SIZE | FLUSH | CONFIG_WCE | MQ
        if backend.read_only:
            features |= RO
        else:
            features |= WRITE_ZEROES | (DISCARD if backend.can_discard else 0)
        super().__init__(
            name,
            features=features,
            queue_sizes=[QUEUE_SIZE] * queues,
            config=struct.pack(
                _CONFIG,
                backend.size // SECTOR_BYTES,
                0,  # size_max: not offered
                BlockWorker.MOST_SEGMENTS,
                *(0, 0, 0),  # geometry: not offered
                SECTOR_BYTES,
                *(0, 0, 0, 0),  # topology: not offered
                1,  # writeback
                queues,
                BlockWorker.MOST_DISCARD_SECTORS,
                BlockWorker.MOST_DISCARD_SEGMENTS,
                1,  # discard_sector_alignment
                BlockWorker.MOST_DISCARD_SECTORS,
                BlockWorker.MOST_DISCARD_SEGMENTS,
                1,  # write_zeroes_may_unmap
            ),
        )
        self._disk = BlockDisk(
            backend=backend,
            sectors=backend.size // SECTOR_BYTES,
            read_only=backend.read_only,
            serial=serial[:SERIAL_BYTES],
            fd=backend.fd if isinstance(backend, RawImage) else None,
            can_discard=backend.can_discard,
        )
        self._workers: list[BlockWorker] = []

    def bind(self, port: Port, queues: Sequence[VirtQueue]) -> None:
        """See :class:`VirtioModel`."""
        super().bind(port, queues)

        def broken() -> None:
            port.needs_reset("a request that no driver makes")

        self._workers = [BlockWorker(queue, self._disk, broken) for queue in queues]

    def activate(self, negotiated: int) -> None:
        """See :class:`VirtioModel`. A driver that cannot flush gets every write durable (5.2.5.2)."""
        super().activate(negotiated)
        self._choose_cache()

    def deactivate(self) -> None:
        """See :class:`VirtioModel`."""
        super().deactivate()
        self.config[_WRITEBACK_AT] = 1
        self._choose_cache()

    def write_config(self, at: int, data: bytes) -> None:
        """Only the cache mode is writable, and only where CONFIG_WCE was negotiated."""
        if at <= _WRITEBACK_AT < at + len(data) and self.negotiated & CONFIG_WCE:
            self.config[_WRITEBACK_AT] = data[_WRITEBACK_AT - at] & 1
            self._choose_cache()

    def _choose_cache(self) -> None:
        chosen = self.config[_WRITEBACK_AT] if self.negotiated & CONFIG_WCE else self.negotiated & FLUSH
        self._disk.write_back = bool(chosen)

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        for number, worker in enumerate(self._workers):
            worker.start(f"{self.name}.{number}")

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        for worker in self._workers:
            worker.stop()

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. Bytes, nanoseconds of service, and 'deepest', the longest queue seen."""
        found = super().counts()
        for worker in self._workers:
            add_counters(found, worker.counters())
        return found
