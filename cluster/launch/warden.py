# SPDX-License-Identifier: GPL-2.0-or-later
"""What cleans up after a killed process: ends what is left of its Ray and removes its folder.

When a driver gets SIGKILL, the kernel takes Ray's own processes along (parent-death signal), but not the ones
that those had started, which notice in their own time or, as seen with Ray 2.60's agents, not at all. The
warden is a small process in a session of its own. It waits for the driver's end and then kills every process
that has a file of the session's folder open for writing: every process of Ray has its log there, while its
name and environment may have been overwritten by a title.

It runs as a script with nothing but the standard library, so that it costs 10 MB and starts at once:
``python -I -S warden.py PID FOLDER``. A byte on its standard input dismisses it. It ignores the signals that
end a control group or a terminal's processes: those are when it is needed. ``--leave STATUS FOLDER...``
cleans up at once, and exits with STATUS.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_ROUNDS = 100
_PAUSE_SECONDS = 0.2
_QUIET_ROUNDS = 5  # consecutive rounds that must find no process: one may be starting another as it dies


def appoint(folder: str) -> subprocess.Popen[bytes]:
    """Start a warden for this process and `folder`."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """End a warden that is no longer needed."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # it has ended, or gets no core
        process.communicate(b".", timeout=1)
    process.kill()
    process.wait()


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


def clean(folder: str, quiet_rounds: int = _QUIET_ROUNDS, pause: float = _PAUSE_SECONDS) -> None:
    """Kill the session's processes until none is left for `quiet_rounds` looks, then remove its folder."""
    quiet = 0
    for _ in range(_ROUNDS):
        left = [pid for pid in writers(folder) if pid != os.getpid()]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == quiet_rounds:
            break
        time.sleep(pause)
    for _ in range(_ROUNDS):  # a thread of the driver may still make a file in it
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            break


def main() -> None:
    """Wait for the end of process PID, then clean up; a byte on standard input ends the watch."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[1] == "--leave":
        for folder in sys.argv[3:]:
            clean(folder, quiet_rounds=1, pause=0.02)
        sys.exit(int(sys.argv[2]))
    pid, folder = int(sys.argv[1]), sys.argv[2]
    with contextlib.suppress(ProcessLookupError):
        driver = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(driver, select.POLLIN)
        poller.register(0, select.POLLIN)
        while os.getppid() == pid:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if 0 in ready:
                if os.read(0, 1):
                    return
                poller.unregister(0)  # the driver closed it, or has ended
            if driver in ready:
                break
    clean(folder)


if __name__ == "__main__":
    main()
