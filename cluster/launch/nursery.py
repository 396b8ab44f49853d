# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts forked from a process that has everything imported: for a process that starts many machines.

The imports of a host are half of what starting it costs. The first host that is wanted after :func:`keep`
starts the nursery, a process that has no thread and no guest; each host is then a fork of it. It ends with
this process, by the end of its socket, and so do its forks, as any host does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Protocol

from coremesh.cluster.machine.host_server import NURSERY, PID

_PROGRAM = "coremesh.cluster.machine.host_server"
_ANSWER_SECONDS = 60.0  # its imports, on a busy computer

_lock = threading.Lock()
_wanted = False  # guarded by _lock, as is what follows
_nursery: socket.socket | None = None


class HostProgram(Protocol):
    """A host's process, as :class:`subprocess.Popen` has it."""

    def kill(self) -> None:
        """End it."""

    def poll(self) -> int | None:
        """Return its exit status, or None."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raise :class:`subprocess.TimeoutExpired`."""


def keep() -> None:
    """Fork the hosts of this process from now on. Any thread."""
    global _wanted
    with _lock:
        _wanted = True


def start(connection: socket.socket, words: int) -> HostProgram:
    """Start a host that serves `connection` and has the descriptor `words` as its standard error.

    Raises OSError.
    """
    with _lock:
        if _wanted:
            with contextlib.suppress(OSError, struct.error):  # it has gone: without it, then
                return _fork(connection, words)
    return subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, str(connection.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=words,
        pass_fds=[connection.fileno()],
        process_group=0,
    )


def _fork(connection: socket.socket, words: int) -> _Fork:
    global _nursery
    if _nursery is None:
        ours, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), NURSERY],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        ours.settimeout(_ANSWER_SECONDS)
        _nursery = ours
    try:
        socket.send_fds(_nursery, [PID.pack(0)], [connection.fileno(), words])
        (pid,) = PID.unpack(_nursery.recv(PID.size))
        return _Fork(pid)
    except (OSError, struct.error):
        _nursery.close()
        _nursery = None
        raise


class _Fork:
    """A child of the nursery, which reaps it when asked for its status: until then its number is its own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._status: int | None = None

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def poll(self) -> int | None:
        if self._status is None and select.select([self._descriptor], [], [], 0)[0]:
            with _lock:  # the nursery can tell it once only, and two threads may be here
                if self._status is None:
                    self._status = self._ask()
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None and not select.select([self._descriptor], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a host", timeout or 0.0)
        status = self.poll()
        return 0 if status is None else status

    def _ask(self) -> int:
        if _nursery is not None:
            with contextlib.suppress(OSError, struct.error):
                _nursery.send(PID.pack(self._pid))
                return int(PID.unpack(_nursery.recv(PID.size))[0])
        return -signal.SIGKILL  # not known: the nursery has gone, and with it the status

    def __del__(self, close: Any = os.close) -> None:
        with contextlib.suppress(Exception):
            close(self._descriptor)
