# SPDX-License-Identifier: GPL-2.0-or-later
"""A host process that never outlives the process that drives it.

Ray ends the actors of a driver that has gone, but it learns of that over sockets and in its own time. Where
the driver runs under the same kernel, the host process also watches it through a pidfd (Linux 5.3) and ends
within milliseconds, even when the driver was killed with SIGKILL and Ray's own processes with it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot of one host, as seen in one pid namespace."""

    pid: int
    start_ticks: int
    boot: str
    namespace: str

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Return the identity of the calling process."""
        return cls(os.getpid(), _start_ticks(os.getpid()), *_here())

    def is_visible(self) -> bool:
        """Whether `pid` means the same process to the caller, and that process is alive."""
        if (self.boot, self.namespace) != _here():
            return False
        try:
            return _start_ticks(self.pid) == self.start_ticks
        except OSError:
            return False


def watch(process: ProcessIdentity, on_end: Callable[[], None]) -> bool:
    """Call `on_end` once, from a thread of its own, when `process` ends.

    Returns False, and never calls, if the process cannot be seen from here (another host or container): there
    the connection to Ray is the only lifeline.
    """
    if (process.boot, process.namespace) != _here():
        return False
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        threading.Thread(target=on_end, name="lifeline", daemon=True).start()
        return True
    except OSError:
        return False
    if not process.is_visible():  # the number already belongs to another process
        os.close(descriptor)
        threading.Thread(target=on_end, name="lifeline", daemon=True).start()
        return True

    def wait() -> None:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.poll()
        os.close(descriptor)
        on_end()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
    return True


def _here() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, str(Path("/proc/self/ns/pid").readlink())


def _start_ticks(pid: int) -> int:
    # proc(5): field 22, counted after the parenthesised name, which may itself hold spaces.
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])
