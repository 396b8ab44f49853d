# SPDX-License-Identifier: GPL-2.0-or-later
"""A host in a child process, without Ray: the way of a machine of one host on this computer.

Ray takes seconds to start and its services are of no use to a single process here. The child's program is
machine/host_server.py. It has a process group of its own, for a signal to the driver's group, as Ctrl-C in a
terminal, is the driver's to answer. No other process can call it: the socket has no name.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from coremesh.cluster.launch import nursery, session
from coremesh.cluster.machine.bring_up import unanswered
from coremesh.core.errors import CoremeshError, HostLostError, PlatformError

_END_SECONDS = 5.0  # for the kernel to end a process that it was told to
_LAST_WORDS = 2000  # bytes of the child's standard error that are looked at


class ChildCall:
    """A call of the child that is under way. Its result is read by one thread, once."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def result(self, seconds: float | None = None, step: str = "") -> Any:
        """Wait for the result; as :meth:`coremesh.cluster.launch.session.Call.result`."""
        try:
            # Waits of the standard library are interrupted by signals, in the main thread.
            well, value = self._answer.get(timeout=seconds)
        except queue.Empty:
            assert seconds is not None  # without a limit the queue is not empty
            raise unanswered(self._child.what, seconds, step) from None
        if well:
            return value
        if isinstance(value, CoremeshError):
            raise value
        raise session.own_error(value, self._child.what) from value

    def settle(self, well: bool, value: Any) -> None:
        """Give the answer. The reader's thread."""
        self._answer.put((well, value))


class Child:
    """The child process and what is asked of it; a :class:`~coremesh.cluster.launch.session.Remote`.

    Any thread may call. State that threads share, `_waiting` and `_gone`, is guarded by `_lock`.
    """

    def __init__(self, groups: Mapping[str, int], group_of: Mapping[str, str], others: int) -> None:
        """Start the process: it gets ready while the caller goes on."""
        self.what = "the process that ran the vCPUs"
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: dict[int, ChildCall] = {}
        self._numbers = 0
        self._gone = (
            ""  # once it has gone, how: each caller gets an error of its own, for it keeps its frames
        )
        ours, theirs = socket.socketpair()
        self._words = os.memfd_create("coremesh-host-errors")
        try:
            self._process = nursery.start(theirs, self._words)
        except OSError as error:
            os.close(self._words)
            ours.close()
            raise PlatformError(
                f"no process can be started ({error.strerror}). End other programs."
            ) from error
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self._send(({**groups, "other": others}, dict(group_of)))
        threading.Thread(target=self._read, name="host answers", daemon=True).start()

    def begin(self, method: str, *arguments: Any) -> ChildCall:
        """Call `method` of the host without waiting."""
        call = ChildCall(self)
        with self._lock:
            if self._gone:
                call.settle(False, HostLostError(self._gone))
                return call
            self._numbers += 1
            number = self._numbers
            self._waiting[number] = call
        self._send((number, method, arguments))
        return call

    def kill(self) -> None:
        """End the process. Harmless when it has gone already."""
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def _send(self, message: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # it has gone: the reader's thread tells
            self._connection.send(message)

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, well, value = self._connection.recv()
                with self._lock:
                    call = self._waiting.pop(number)
                call.settle(well, value)
        self._lost()

    def _lost(self) -> None:
        begin = time.monotonic()
        while (status := self._process.poll()) is None and time.monotonic() - begin < _END_SECONDS:
            time.sleep(0.005)
        loss = (
            f"{self.what} has gone ({self._reason(status)}). Start the machine again; if it was killed for "
            "want of memory, give a smaller --memory or fewer --vcpus."
        )
        with self._lock:
            self._gone = loss
            calls = list(self._waiting.values())
            self._waiting.clear()
        for call in calls:
            call.settle(False, HostLostError(loss))
        with self._sending:
            self._connection.close()
        os.close(self._words)

    def _reason(self, status: int | None) -> str:
        if status is not None and status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = f"signal {-status}"
            reason = f"ended by {name}"
        else:
            reason = "it has closed its socket" if status is None else f"it left with status {status}"
        size = os.fstat(self._words).st_size
        said = (
            os.pread(self._words, _LAST_WORDS, max(0, size - _LAST_WORDS))
            .decode(errors="replace")
            .split("\n")
        )
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{reason}: {last}" if last else reason
