# SPDX-License-Identifier: GPL-2.0-or-later
"""What cleans up after a killed process: ends what is left of its Ray and removes its folder.

When a driver gets SIGKILL, the kernel takes Ray's own processes along (parent-death signal), but not the ones
that those had started, which notice in their own time or, as seen with Ray 2.60's agents, not at all. The
warden is a small process in a session of its own. It waits for the driver's end and then kills whoever has a
file of the session's folder open for writing: every process of Ray has its log there, while its name and
environment may have been overwritten by a title.

It runs as a script with nothing but the standard library, so that it costs 10 MB and starts at once:
``python -I -S warden.py PID FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

_ROUNDS = 100
_PAUSE_SECONDS = 0.2
_QUIET_ROUNDS = 5  # so often in a row nobody must be found: a process may be starting another as it dies


def writers(folder: str) -> list[int]:
    """Return the pids of this user's processes that write to a file below `folder`, even one removed."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(_writes_below(link, folder) for link in (place / "fd").iterdir()):
                found.append(int(place.name))
    return found


def _writes_below(link: Path, folder: str) -> bool:
    try:
        # The link's own mode tells how the file was opened (proc(5), /proc/pid/fd).
        return str(link.readlink()).startswith(f"{folder}/") and bool(link.lstat().st_mode & 0o200)
    except OSError:  # closed in between
        return False


def clean(folder: str) -> None:
    """Kill the session's processes until none is left, then remove its folder."""
    quiet = 0
    for _ in range(_ROUNDS):
        left = [pid for pid in writers(folder) if pid != os.getpid()]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == _QUIET_ROUNDS:
            break
        time.sleep(_PAUSE_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Wait for the end of process PID, then clean up; SIGTERM ends the watch."""
    pid, folder = int(sys.argv[1]), sys.argv[2]
    with contextlib.suppress(ProcessLookupError):
        poller = select.poll()
        poller.register(os.pidfd_open(pid), select.POLLIN)
        if os.getppid() == pid:
            poller.poll()
    clean(folder)


if __name__ == "__main__":
    main()
