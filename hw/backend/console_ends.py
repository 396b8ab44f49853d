# SPDX-License-Identifier: GPL-2.0-or-later
"""What may listen to a console beside the person: a log file, and programs at a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Final, Protocol

from coremesh.core.errors import ConfigurationError
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.backend.output_file import OutputFile

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5  # after which a thread that waits for output looks whether it is to end
_MOST_CLIENTS: Final = 8
_CLIENT_SECONDS: Final = 5.0  # that a client may leave what it is sent where it is
_LAST_SECONDS: Final = 2.0  # that the reader of a pipe has for the rest, once the machine has ended
_READ_BYTES: Final = 64 << 10


class ConsoleEnd(Protocol):
    """Something that listens to a console until it is closed."""

    def close(self) -> None:
        """Idempotent; what the guest has printed before is passed on."""


class ConsoleLog:
    """A file to which all that the guest prints is appended as it comes."""

    def __init__(self, port: ConsolePort, path: str | os.PathLike[str]) -> None:
        """Raises :class:`ConfigurationError` for a file that cannot be written."""
        try:
            self._file = OutputFile(path, append=True)
        except OSError as error:
            raise ConfigurationError(
                f"the console's log {os.fspath(path)} cannot be written ({error.strerror})."
            ) from None
        self._port = port
        self._stopping = False
        self._last_moment = 0.0  # once it is stopping
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        cursor = 0
        while True:
            stopping = self._stopping
            data, cursor = self._port.read(cursor, 0.0 if stopping else _POLL_SECONDS)
            if data:
                try:
                    self._append(memoryview(data))
                except OSError as error:  # a full disk ends the log, and nothing else
                    logger.warning("the console's log has ended before the console: %s", error.strerror)
                    return
            elif stopping:
                return
            elif self._port.closed:
                self._wake.wait()  # nothing more will come; a closed console answers every read at once

    def _append(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data, _POLL_SECONDS) :]
            if data and self._stopping and time.monotonic() > self._last_moment:
                raise TimeoutError(errno.ETIMEDOUT, "its reader stands still")

    def close(self) -> None:
        """Returns when all that was printed is in the file, or nobody takes it. Idempotent."""
        self._last_moment = time.monotonic() + _LAST_SECONDS
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self._file.close()


class ConsoleSocket:
    """A Unix socket at which programs read what the guest prints, and type.

    A client gets what is printed after it has come. Only this user may connect.
    """

    def __init__(self, port: ConsolePort, path: str | os.PathLike[str]) -> None:
        """Raises :class:`ConfigurationError` for a path where no socket can be."""
        self._port = port
        self._path = os.fspath(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._clear_stale()
            self._bind()
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise ConfigurationError(
                f"no console socket at {self._path} ({error.strerror or error}): give another path, of at "
                "most 107 bytes, in a folder where you may write."
            ) from None
        self._stopping = False
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()  # of the set
        self._thread = threading.Thread(target=self._accept, name="console socket", daemon=True)
        self._thread.start()

    def _clear_stale(self) -> None:
        """Remove the socket of a machine that has gone; refuse anything else that has this name."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise FileExistsError(17, "a file of that name is there")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(self._path)
                except ConnectionRefusedError:
                    Path(self._path).unlink()
                else:
                    raise FileExistsError(17, "another machine listens there")

    def _bind(self) -> None:
        # A mode given after bind would leave a moment in which others connect. The mask is the process's, but
        # a file that another thread makes in this moment only becomes more private by it.
        before = os.umask(0o177)
        try:
            self._listener.bind(self._path)
        finally:
            os.umask(before)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._stopping or len(self._clients) >= _MOST_CLIENTS:
                    client.close()
                    continue
                self._clients.add(client)
            client.settimeout(_CLIENT_SECONDS)
            for work in (self._show, self._type):
                threading.Thread(target=work, args=(client,), name="console client", daemon=True).start()

    def _show(self, client: socket.socket) -> None:
        cursor = self._port.end
        try:
            while not self._stopping and client in self._clients:
                data, cursor = self._port.read(cursor, _POLL_SECONDS)
                if data:
                    client.sendall(data)
                elif self._port.closed:
                    break
        except OSError:
            pass  # it has gone, or does not read: the guest does not wait for it
        finally:
            self._drop(client)

    def _type(self, client: socket.socket) -> None:
        try:
            while not self._stopping:
                try:
                    data = client.recv(_READ_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                self._port.feed(data)
        except OSError:
            pass
        finally:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.discard(client)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()

    def close(self) -> None:
        """No client is served any more. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with contextlib.suppress(OSError):
            Path(self._path).unlink()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            self._drop(client)
