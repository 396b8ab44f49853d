# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy-on-write overlay: an image that is only read, and a temporary file for what the guest writes.

The file has no name, so that it goes with the machine, however that ends. Several machines share one image.
"""

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from coremesh.hw.backend.block import BlockBackend, Buffer, RawImage

CLUSTER: Final = 64 << 10
"""Bytes that are copied at once when the first of them is written."""
_PLACE: Final = "/var/tmp"  # /tmp is memory on many computers


class Overlay:
    """See :class:`~coremesh.hw.backend.block.BlockBackend`. Closes ``base`` with itself."""

    def __init__(self, base: BlockBackend) -> None:
        """Raises OSError where no temporary file can be made."""
        self._base = base
        self.size = base.size
        self.read_only = False
        self.can_discard = True
        folder = os.environ.get("TMPDIR") or _PLACE
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(self.size)
            self._written = RawImage.of_descriptor(os.dup(file.fileno()))
        # Guards _present and the clusters that are not in it. A cluster that is there once stays there, so
        # accesses to such ones take no lock.
        self._lock = threading.Lock()
        self._present = bytearray(-(-self.size // CLUSTER))

    def read(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
        """See :class:`BlockBackend`."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for start, length, present in self._runs(offset, len(view)):
                source = self._written if present else self._base
                source.read(start, [view[start - offset : start - offset + length]])
            offset += len(view)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See :class:`BlockBackend`."""
        length = sum(map(len, buffers))
        with self._clusters(offset, length):
            self._written.write(offset, buffers)

    def flush(self) -> None:
        """Nothing: what was written does not outlive the machine."""

    def discard(self, offset: int, length: int) -> None:
        """See :class:`BlockBackend`."""
        self.zeroes(offset, length)

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """See :class:`BlockBackend`."""
        with self._clusters(offset, length):
            self._written.zeroes(offset, length, unmap=unmap)

    def close(self) -> None:
        """See :class:`BlockBackend`."""
        self._written.close()
        self._base.close()

    def _clusters(self, offset: int, length: int) -> "_Presence":
        return _Presence(self, offset, length)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Neighbouring clusters of one kind: (offset, bytes, whether they are in the file)."""
        end = offset + length
        while offset < end:
            present = bool(self._present[offset // CLUSTER])
            upto = min((offset // CLUSTER + 1) * CLUSTER, end)
            while upto < end and bool(self._present[upto // CLUSTER]) is present:
                upto = min(upto + CLUSTER, end)
            yield offset, upto - offset, present
            offset = upto

    def _copy(self, cluster: int) -> None:
        start = cluster * CLUSTER
        data = bytearray(min(CLUSTER, self.size - start))
        self._base.read(start, [data])
        self._written.write(start, [data])


class _Presence:
    """Around a write: all clusters of its range are in the file when it ends, or none is marked so."""

    def __init__(self, overlay: Overlay, offset: int, length: int) -> None:
        self._overlay = overlay
        self._offset, self._end = offset, offset + length
        self._missing: list[int] = []

    def __enter__(self) -> None:
        overlay = self._overlay
        clusters = range(self._offset // CLUSTER, -(-self._end // CLUSTER))
        if all(overlay._present[clusters.start : clusters.stop]):
            return
        # Another write to a cluster that is copied now must come after the copy: the lock is held until this
        # write's own data are there as well.
        overlay._lock.acquire()
        try:
            self._missing = [cluster for cluster in clusters if not overlay._present[cluster]]
            for cluster in self._missing:
                start = cluster * CLUSTER
                if start < self._offset or min(start + CLUSTER, overlay.size) > self._end:
                    overlay._copy(cluster)
        except BaseException:
            overlay._lock.release()
            raise
        if not self._missing:
            overlay._lock.release()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._missing:
            if kind is None:
                for cluster in self._missing:
                    self._overlay._present[cluster] = 1
            self._overlay._lock.release()
