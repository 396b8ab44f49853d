# SPDX-License-Identifier: GPL-2.0-or-later
"""What this process takes of its computer: processor time and memory (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def of_this_process() -> dict[str, float]:
    """Return 'cpu_seconds' of all threads, user and system, 'resident_bytes', and 'shared_bytes' of these.

    Guest RAM is shared memory: what the guest has touched of it is in both.
    """
    times = os.times()
    resident, shared = (int(word) for word in Path("/proc/self/statm").read_text().split()[1:3])
    return {
        "cpu_seconds": times.user + times.system,
        "resident_bytes": float(resident * _PAGE),
        "shared_bytes": float(shared * _PAGE),
    }
