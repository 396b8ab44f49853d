# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Ray of our own needs of this computer, tried before it is started.

Where one of these is missing Ray says nothing for half a minute or longer, and then nothing that helps. Each
check really tries, takes milliseconds, and raises :class:`PlatformError` with the way out.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import tempfile
import threading
from pathlib import Path

from coremesh.core.errors import PlatformError

SHARED_MEMORY = "/dev/shm"
LOOPBACK = "127.0.0.1"
#: Threads of Ray's processes and of the process that starts them: 190 were counted on a host with 2 cores.
RAY_THREADS = 200
_HOST_THREADS = 60  # of the process of a host with one vCPU, Ray's in it included
_CONNECT_SECONDS = 2.0
_LOW_LIMIT = 8192  # of threads: above it the try is left out, it would tell nothing


def require_all(threads: int) -> None:
    """Raise :class:`PlatformError` for the first thing that is missing; `threads` must be free to start."""
    require_shared_memory()
    require_loopback()
    require_threads(threads)


def threads_of(vcpus: int, hosts: int) -> int:
    """How many threads the processes of a local machine take, beside Ray's own: an estimate from above."""
    return _HOST_THREADS * hosts + 2 * vcpus


def require_shared_memory() -> None:
    """Raise unless this user can make a file in /dev/shm, where Ray's object store is."""
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
            file.write(b"\0")
    except OSError as error:
        raise PlatformError(
            f"{SHARED_MEMORY} cannot be written by this user ({error.strerror}), and Ray's object store is "
            "there. Mount it as a tmpfs with mode 1777: 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm'."
        ) from error


def require_loopback() -> None:
    """Raise unless a connection to this computer itself can be made: Ray's processes talk over it."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), _CONNECT_SECONDS).close()
    except OSError as error:
        raise PlatformError(
            f"no connection to {LOOPBACK} can be made ({error.strerror or error}), and Ray's processes talk "
            "over it. Set the loopback interface up: 'ip link set lo up'."
        ) from error


def require_threads(count: int) -> None:
    """Raise unless this process may start `count` threads more; all threads of its user count."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if (soft == resource.RLIM_INFINITY or soft > _LOW_LIMIT) and not _pids_limited():
        return
    started = _start_threads(count)
    if started < count:
        limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        raise PlatformError(
            f"this user may start {started} more threads here, and Ray and the vCPUs need about {count} "
            f"('ulimit -u' is {limit}; a container has a limit of its own). Raise it with 'ulimit -u 4096', "
            "end other programs, or ask for fewer --vcpus."
        )


def _pids_limited() -> bool:
    """Whether a control group limits the number of tasks (cgroup v2, pids.max)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = Path(next(line for line in lines if line.startswith("0::")).removeprefix("0::/"))
        for folder in (group, *group.parents):  # the last one is '.', the root
            with contextlib.suppress(FileNotFoundError):
                text = Path("/sys/fs/cgroup", folder, "pids.max").read_text().strip()
                if text != "max" and int(text) <= _LOW_LIMIT:
                    return True
    return False


def _start_threads(count: int) -> int:
    """Start up to `count` threads, end them, and return how many could be started."""
    release = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=release.wait, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't start new thread"
                break
            threads.append(thread)
    finally:
        release.set()
        for thread in threads:
            thread.join()
    return len(threads)
