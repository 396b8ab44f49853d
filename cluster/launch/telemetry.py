# SPDX-License-Identifier: GPL-2.0-or-later
"""What machines of this process do, told on a Unix socket at request: the other end of ``coremesh top``.

Each process that drives machines has a socket ``PID.sock`` in a folder that only its user can enter:
``$XDG_RUNTIME_DIR/coremesh``, else one in the temporary folder. A connection is answered with one JSON
document and closed. Numbers are gathered at each question: until then they cost nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremesh.cluster.launch import private_folder
from coremesh.core.errors import MachineStateError, PlatformError

if TYPE_CHECKING:
    from coremesh.cluster.launch.machine import Machine

_SUFFIX = ".sock"
_ANSWER_SECONDS = 10.0
_QUESTION = b"?"  # any byte: one that only looks whether a process listens sends none

_lock = threading.Lock()
_machines: weakref.WeakSet[Machine] = weakref.WeakSet()  # guarded by _lock, as is what follows
_server: socket.socket | None = None


def folder() -> Path:
    """Return the folder of the sockets; it need not exist."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "coremesh"
    return Path(tempfile.gettempdir()) / f".coremesh-{os.getuid()}"


def show(machine: Machine) -> None:
    """Tell of `machine` as long as the program refers to it; without a place for a socket, do nothing."""
    global _server
    with _lock:
        _machines.add(machine)
        if _server is not None:
            return
        with contextlib.suppress(OSError, PlatformError):
            _server = _listen()
            threading.Thread(target=_serve, args=(_server,), name="telemetry", daemon=True).start()


def hide(machine: Machine) -> None:
    """Tell of `machine` no more: it was stopped."""
    with _lock:
        _machines.discard(machine)


def processes() -> list[int]:
    """Return the pids of this user's processes that drive machines; remove the sockets of dead ones.

    Raises :class:`PlatformError` if another user may have made the folder.
    """
    found: list[int] = []
    if not os.path.lexists(folder()):
        return found
    private_folder.check(folder())
    for place in sorted(folder().glob(f"*{_SUFFIX}")):
        pid = place.name.removesuffix(_SUFFIX)
        if not pid.isdigit():
            continue
        if _is_served(place):
            found.append(int(pid))
        else:
            place.unlink(missing_ok=True)
    return found


def _is_served(place: Path) -> bool:
    """Whether a process listens there. Its number does not tell: process 1 of a container always exists."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(str(place))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # it is busy, and has not accepted yet
            return True
    return True


def ask(pid: int) -> dict[str, Any]:
    """Return what process `pid` tells of its machines.

    Keys: 'pid', 'command', and 'machines', a list of :meth:`Machine.snapshot`. Raises
    :class:`MachineStateError` if it drives none (any more).
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            private_folder.check(folder())
            connection.connect(str(folder() / f"{pid}{_SUFFIX}"))
            _require_own(connection)
            connection.sendall(_QUESTION)
            with connection.makefile("rb") as stream:
                answer: dict[str, Any] = json.load(stream)
                return answer
    except (OSError, ValueError, PlatformError) as error:
        raise MachineStateError(
            f"process {pid} tells of no machine ({error}). Leave the number out to see all of yours."
        ) from error


def _require_own(connection: socket.socket) -> None:
    """Raise PermissionError unless this user or root is at the other end (unix(7), SO_PEERCRED)."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user not in (0, os.getuid()):
        raise PermissionError(errno.EPERM, f"it is a process of user {user}")


def _listen() -> socket.socket:
    place = folder()
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    private_folder.check(place)
    processes()  # removes what killed ones have left
    path = place / f"{os.getpid()}{_SUFFIX}"
    path.unlink(missing_ok=True)  # of an earlier process of this number
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # It gets its name when it listens: until then another process would take it for one left behind.
    early = path.with_suffix(".new")
    early.unlink(missing_ok=True)
    server.bind(str(early))
    server.listen()
    early.rename(path)
    atexit.register(_remove, path, os.getpid())
    return server


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child runs its parent's exit handlers
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others still use it
            path.parent.rmdir()


def _serve(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_ANSWER_SECONDS)
            if not connection.recv(1):  # it only looked whether a process listens
                continue
            connection.sendall(json.dumps(_report()).encode())


def _report() -> dict[str, Any]:
    with _lock:
        machines = [weakref.ref(machine) for machine in _machines]
    shown = [told for machine in machines if (told := _snapshot(machine)) is not None]
    return {"pid": os.getpid(), "command": " ".join(sys.argv), "machines": shown}


def _snapshot(machine: weakref.ref[Machine]) -> dict[str, Any] | None:
    """What the machine tells; None of one that ends in this moment.

    An exception that somebody keeps has this call's variables with it: they are of one machine, its own.
    """
    found = machine()
    if found is None:
        return None
    try:
        return found.snapshot()
    except Exception:
        return None
