# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames written down as they pass, in the pcap format that Wireshark and tcpdump read.

Source: the pcap savefile format, version 2.4, with times in nanoseconds (magic number A1B23C4D).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import struct
import threading
import time
from collections.abc import Sequence
from typing import Final

from coremesh.core.errors import NetworkError
from coremesh.hw.backend.network.port import LONGEST_FRAME, Frames, NetworkPort, Receive
from coremesh.hw.backend.output_file import OutputFile

logger = logging.getLogger(__name__)

_MAGIC: Final = 0xA1B23C4D
_ETHERNET: Final = 1
_READER_SECONDS: Final = 1.0  # that the reader of a pipe may stand still; the guest's network waits meanwhile


class Capture:
    """A pcap file. Any thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises :class:`NetworkError` for a file that cannot be written."""
        self._lock = threading.Lock()
        self._bytes = 0  # in the file
        self.frames = 0
        try:
            self._file = OutputFile(path, append=False)
            self._append([struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, LONGEST_FRAME, _ETHERNET)])
        except OSError as error:
            raise NetworkError(
                f"the capture {os.fspath(path)} cannot be written ({error.strerror})."
            ) from None

    def write(self, frames: Frames) -> None:
        """Append frames, with the host's time. A disk that is full ends the capture, and nothing else."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        records = [
            struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)) + frame for frame in frames
        ]
        with self._lock:
            if not self._file.closed:
                try:
                    self.frames += self._append(records)
                except OSError as error:
                    logger.warning("a capture of a network card has ended early: %s", error.strerror)
                    self._file.close()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._file.close()

    def _append(self, records: Sequence[bytes]) -> int:
        """Write the records, return how many there are; where some do not fit, the file ends before them."""
        data = memoryview(b"".join(records))
        at = 0
        try:
            while at < len(data):
                done = self._file.write(data[at:], _READER_SECONDS)
                if not done:
                    raise TimeoutError(errno.ETIMEDOUT, "its reader stands still")
                at += done
        except OSError:
            ends = [0, *itertools.accumulate(map(len, records))]
            with contextlib.suppress(OSError):
                self._file.cut(self._bytes + max(end for end in ends if end <= at))
            raise
        self._bytes += len(data)
        return len(records)


class Tap:
    """A port with an ear: what passes it in either direction goes to the captures as well."""

    def __init__(self, port: NetworkPort) -> None:
        self.port = port
        self._captures: tuple[Capture, ...] = ()

    def add(self, capture: Capture) -> None:
        """Write down what passes from now on. Any thread."""
        self._captures = (*self._captures, capture)

    def remove(self, capture: Capture) -> None:
        """No more. Any thread."""
        self._captures = tuple(other for other in self._captures if other is not capture)

    def start(self, receive: Receive) -> None:
        """See :class:`NetworkPort`."""

        def heard(frames: Frames) -> None:
            for capture in self._captures:
                capture.write(frames)
            receive(frames)

        self.port.start(heard)

    def send(self, frames: Frames) -> None:
        """See :class:`NetworkPort`."""
        for capture in self._captures:
            capture.write(frames)
        self.port.send(frames)

    def stop(self) -> None:
        """See :class:`NetworkPort`."""
        self.port.stop()

    def close(self) -> None:
        """See :class:`NetworkPort`."""
        self.port.close()
        for capture in self._captures:
            capture.close()

    def counts(self) -> dict[str, int]:
        """See :class:`NetworkPort`."""
        return self.port.counts()
