# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that a machine writes for a person: neither a full disk nor a pipe without a reader stops it."""

from __future__ import annotations

import errno
import os
import select
import stat

from coremesh.hw.backend.block import Buffer


class OutputFile:
    """A file, pipe or terminal that is only written. The caller sees that one thread at a time uses it."""

    def __init__(self, path: str | os.PathLike[str], *, append: bool) -> None:
        """Raises OSError for what cannot be written, also for a pipe that nobody has opened to read."""
        # Without O_NONBLOCK the opening of a pipe waits for its reader, and nothing could end that wait.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags | (os.O_APPEND if append else os.O_TRUNC), 0o666)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "nobody reads this pipe yet") from None
            raise
        self._is_regular = stat.S_ISREG(os.fstat(self._fd).st_mode)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    def write(self, data: Buffer, seconds: float) -> int:
        """Write what there is room for, and return how many bytes; 0 if a reader made none in ``seconds``.

        Raises OSError, as for a full disk.
        """
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            room = select.poll()
            room.register(self._fd, select.POLLOUT)
            room.poll(1000 * seconds)
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def cut(self, length: int) -> None:
        """Let a regular file end behind its first ``length`` bytes. Raises OSError."""
        if self._is_regular:
            os.ftruncate(self._fd, length)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
