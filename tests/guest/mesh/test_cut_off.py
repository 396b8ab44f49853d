# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that the others no longer hear: both sides stop by themselves, and say so in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coremesh.core._native import link_priority
from coremesh.core.engine import Host
from mesh_machine import MeshMachine

SECONDS_TO_NOTICE = 3.0 if link_priority() in ("fifo", "nice") else 5.0
ENDLESS = "only=0 ms=3000000 rounds=4000000000"


def atomics(host: Host) -> int:
    """What the host's vCPUs have done: the guest does nothing else."""
    return sum(
        int(count) for vcpu in host.stats() for name, count in vcpu.items() if name.startswith("atomics_")
    )


@pytest.mark.parametrize("directions", [[(0, 1), (1, 0)], [(1, 0)], [(0, 1)]], ids=["both", "from", "to"])
def test_given_two_hosts_at_work_when_frames_are_swallowed_then_both_stop_within_three_seconds(
    guest: Callable[[str], Path], directions: list[tuple[int, int]]
) -> None:
    """A cut may be one-sided: who still hears must not go on alone either."""
    ends: dict[int, tuple[float, str]] = {}
    with MeshMachine(guest("mesh_atomics").read_bytes(), shares=(1, 1), cmdline=ENDLESS) as machine:
        machine.start()
        machine.wait_for("mesh hosts=2")
        time.sleep(0.1)
        before = [atomics(host) for host in machine.hosts]
        time.sleep(0.3)
        assert all(atomics(host) > then for host, then in zip(machine.hosts, before, strict=True))
        assert [host.wait(0.0) for host in machine.hosts] == [None, None]
        began = time.monotonic()

        def watch(number: int) -> None:
            end: Any = machine.hosts[number].wait(10.0)
            ends[number] = (time.monotonic() - began, str(end and end["kind"]))

        watchers = [threading.Thread(target=watch, args=(number,)) for number in (0, 1)]
        for source, target in directions:
            machine.switch.cut(source, target)
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.join()
        before = [atomics(host) for host in machine.hosts]
        time.sleep(0.3)
        assert before == [atomics(host) for host in machine.hosts]
    assert {kind for _, kind in ends.values()} <= {"host-lost", "fenced"}, ends
    assert max(seconds for seconds, _ in ends.values()) <= SECONDS_TO_NOTICE, ends
