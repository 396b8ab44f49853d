# SPDX-License-Identifier: GPL-2.0-or-later
"""The cores that this process may use: how many, and which processes share them."""

import math
import os
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process can keep busy, 1 at least: by affinity and quota.

    A container is often limited by a quota alone and then sees all cores of the computer. ``groups`` is where
    control groups (version 2) are mounted, ``own`` says which one this process is in (cgroups(7)).
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return allowed
    group = PurePosixPath(line.removeprefix("0::"))
    quotas = (_quota(groups / str(place).lstrip("/")) for place in (group, *group.parents))
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def _quota(group: Path) -> float | None:
    """The cores' time that the group may take, or None for as much as there is."""
    try:
        most, period = (group / "cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def which_cores() -> str:
    """Return what is equal for processes that share their cores: the running kernel, and the CPU affinity."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{','.join(map(str, sorted(os.sched_getaffinity(0))))}"
