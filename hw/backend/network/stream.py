# SPDX-License-Identifier: GPL-2.0-or-later
"""Ethernet over a stream socket: four bytes of length, big-endian, then the frame, as QEMU and passt do."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from typing import Final

from coremesh.core.errors import ConfigurationError, NetworkError, shown
from coremesh.hw.backend.network.port import LONGEST_FRAME, Frames, Receive

logger = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct(">I")
_MOST_WAITING_BYTES: Final = 4 << 20  # that the other end has not yet taken
_READ_BYTES: Final = 256 << 10
_WRITE_BYTES: Final = 128 << 10
_AGAIN_SECONDS: Final = 0.5


class Unframer:
    """Cuts a stream into frames. Pure; one thread."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that ``data`` completes. ValueError for a length that no frame has."""
        rest = self._rest
        rest += data
        frames = []
        at = 0
        while len(rest) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, at)
            if not 1 <= length <= LONGEST_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            if len(rest) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            frames.append(bytes(rest[at : at + length]))
            at += length
        del rest[:at]
        return frames


def framed(frame: bytes) -> bytes:
    """A frame as it goes into the stream."""
    return _LENGTH.pack(len(frame)) + frame


class Line:
    """A connected stream socket with a bounded queue of what the other end has not yet taken.

    One thread reads and flushes, on a selector; ``send`` is any thread's. What finds no room is dropped, a
    frame as a whole.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._unframer = Unframer()
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self.dropped = 0

    def send(self, frames: Frames) -> bool:
        """Queue frames and write what can be written; False while some is left: call :meth:`flush` later."""
        with self._lock:
            for frame in frames:
                data = framed(frame)
                if not 1 <= len(frame) <= LONGEST_FRAME or self._queued + len(data) > _MOST_WAITING_BYTES:
                    self.dropped += 1
                    continue
                self._queue.append(data)
                self._queued += len(data)
            return self._write()

    def flush(self) -> bool:
        """Write on; False while something is left. OSError when the other end has gone."""
        with self._lock:
            return self._write()

    def _write(self) -> bool:
        while self._queue:
            pieces = [self._queue.popleft()]
            size = len(pieces[0])
            while self._queue and size < _WRITE_BYTES:
                pieces.append(self._queue.popleft())
                size += len(pieces[-1])
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            try:
                done = self.socket.send(data)
            except BlockingIOError:
                done = 0
            self._queued -= done
            if done < size:
                self._queue.appendleft(data[done:])
                return False
        return True

    def read(self) -> list[bytes]:
        """The frames that have come. OSError when the other end has gone, or is not one of ours."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the other end has closed the connection")
        try:
            return self._unframer.feed(data)
        except ValueError as error:
            raise ConnectionAbortedError(f"the other end sent {error}") from None

    def close(self) -> None:
        """Idempotent."""
        with contextlib.suppress(OSError):
            self.socket.close()


def parse_address(text: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """Return family and address of ``HOST:PORT``, ``tcp:HOST:PORT``, ``unix:PATH`` or a path.

    Raises :class:`ConfigurationError`.
    """
    if text.startswith("unix:") or "/" in text:
        path = text.removeprefix("unix:")
        if not path or len(os.fsencode(path)) > 107:
            raise ConfigurationError(f"{shown(path)} is no path of a socket: at most 107 bytes.")
        return socket.AF_UNIX, path
    host, colon, port = text.removeprefix("tcp:").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{shown(text)} is no address of a socket; write unix:PATH or HOST:PORT.")
    return socket.AF_INET, (host, int(port))


class StreamPort:
    """A :class:`~coremesh.hw.backend.network.port.NetworkPort`: a connection, made again when it breaks."""

    def __init__(self, address: str) -> None:
        """``address`` as of :func:`parse_address`. Raises :class:`NetworkError` if nothing listens there."""
        self._family, self._address = parse_address(address)
        self._shown = address
        self._receive: Receive = lambda frames: None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wakes, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closed = False
        self._dropped = self._broken = 0
        try:
            self._line: Line | None = self._connect()
        except OSError as error:
            os.close(self._wakes)
            os.close(self._wake_end)
            raise NetworkError(
                f"no network at {address} ({error.strerror or error}): start what listens there first."
            ) from None

    def _connect(self) -> Line:
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            connection.settimeout(10)
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        return Line(connection)

    def start(self, receive: Receive) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is None:
            self._receive, self._stopping = receive, False
            self._thread = threading.Thread(target=self._run, name="stream network", daemon=True)
            self._thread.start()

    def send(self, frames: Frames) -> None:
        """See :class:`NetworkPort`. While the connection is broken frames are dropped."""
        line = self._line
        try:
            if line is None:
                self._dropped += len(frames)
            elif not line.send(frames):
                self._wake()
        except OSError:
            self._wake()  # the thread finds out why

    def stop(self) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is not None:
            self._stopping = True
            self._wake()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """See :class:`NetworkPort`."""
        self.stop()
        if not self._closed:
            self._closed = True
            if self._line is not None:
                self._line.close()
            os.close(self._wakes)
            os.close(self._wake_end)

    def counts(self) -> dict[str, int]:
        """See :class:`NetworkPort`."""
        dropped = self._dropped + (self._line.dropped if self._line is not None else 0)
        return {"frames_dropped": dropped, "connections_lost": self._broken}

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_end, b"\0")

    def _run(self) -> None:
        while not self._stopping:
            if self._line is None:
                try:
                    self._line = self._connect()
                except OSError:
                    time.sleep(_AGAIN_SECONDS)
                    continue
            try:
                self._serve(self._line)
            except OSError as error:
                if not self._stopping:
                    logger.info("the network at %s: %s", self._shown, error)
                    self._broken += 1
                    self._dropped += self._line.dropped
                    self._line.close()
                    self._line = None

    def _serve(self, line: Line) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakes, selectors.EVENT_READ)
            selector.register(line.socket, selectors.EVENT_READ)
            while not self._stopping:
                for key, events in selector.select():
                    if key.fd == self._wakes:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wakes, 4096)
                    elif events & selectors.EVENT_READ and (frames := line.read()):
                        self._receive(frames)
                left = not line.flush()
                selector.modify(line.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0))
