# SPDX-License-Identifier: GPL-2.0-or-later
"""A host in a process of its own without Ray: this module is that process's program.

It is given one Unix socket, over which the driver calls methods of a
:class:`~coremesh.cluster.machine.device_host.DeviceHost`; launch/child.py is the other end. The process ends
with its driver: by the lifeline, and by the socket's end.

As a nursery it makes such processes by fork, one for each pair of descriptors that comes over its socket, and
answers with their numbers; launch/nursery.py is the other end.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final

NURSERY: Final = "nursery"
PID: Final = struct.Struct("i")  #: over its socket: 0 for a new one, else whose status is asked for


def serve(connection: Connection, threads: dict[str, int], group_of: dict[str, str]) -> None:
    """Answer calls (number, method, arguments) with (number, whether it went well, result or error).

    Methods of one group wait for each other only when all of the group's `threads` are at work; 'other' is
    the group of those that `group_of` does not name. The first call is '__init__'. Returns when the driver
    has closed its end.
    """
    sending = threading.Lock()
    pools = {name: ThreadPoolExecutor(count, name) for name, count in threads.items()}
    host: Any = None

    def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        nonlocal host
        try:
            if method == "__init__":
                host = _make_host(*arguments)
                result = None
            else:
                result = getattr(host, method)(*arguments)
            reply = (number, True, result)
        except Exception as error:
            reply = (number, False, error)
        with sending:
            try:
                connection.send(reply)
            except (TypeError, AttributeError, ValueError) as error:  # what cannot be pickled
                connection.send((number, False, RuntimeError(f"{reply[2]!r} cannot be sent: {error}")))
            except OSError:  # the driver has gone; the lifeline ends this process
                return

    while True:
        try:
            number, method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        if method == "__init__":
            answer(number, method, arguments)
        else:
            pools[group_of.get(method, "other")].submit(answer, number, method, arguments)


def _make_host(*arguments: Any) -> Any:
    from coremesh.cluster.machine.device_host import DeviceHost

    return DeviceHost(*arguments)


def _fork_hosts(driver: socket.socket) -> Connection:
    """Make processes until the driver has gone; return in each of them, with its connection."""
    while True:
        asked, descriptors, _, _ = socket.recv_fds(driver, PID.size, 2)
        if len(asked) < PID.size:
            os._exit(0)
        (pid,) = PID.unpack(asked)
        if pid:
            driver.send(PID.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            continue
        connection, words = descriptors
        if not (pid := os.fork()):
            driver.close()
            os.setpgid(0, 0)
            os.dup2(words, 2)
            os.close(words)
            return Connection(connection)
        os.close(connection)
        os.close(words)
        driver.send(PID.pack(pid))


def main() -> None:
    """Serve on the descriptor that the command line names; with a second word, be the nursery."""
    # Ctrl-C in a terminal is for the driver, which then ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What every machine needs is imported while the driver still reads its images.
    import coremesh.cluster.machine.device_host
    import coremesh.core.engine
    import coremesh.hw.board.pc  # noqa: F401

    if sys.argv[2:] == [NURSERY]:
        connection = _fork_hosts(socket.socket(fileno=int(sys.argv[1])))
    else:
        connection = Connection(int(sys.argv[1]))
    threads, group_of = connection.recv()
    try:
        serve(connection, threads, group_of)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
