# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cores a machine may use, and what a vCPU does that shares them with more vCPUs than there are."""

import os
from pathlib import Path

import pytest
from coremesh.core.cores import usable_cores, which_cores
from raw_host import HLT, raw_host, until_halted

# mov ecx, 1600; again: pause; loop again
PAUSES = b"\xb9\x40\x06\x00\x00\xf3\x90\xe2\xfc" + HLT


def quota(tmp_path: Path, **groups: str) -> int:
    """The usable cores of a process in the group a/b, where the groups named have these limits."""
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/other\n0::/a/b\n")
    (tmp_path / "a/b").mkdir(parents=True)
    for group, limit in groups.items():
        (tmp_path / group.replace("_", "/") / "cpu.max").write_text(limit + "\n")
    return usable_cores(tmp_path, own)


@pytest.mark.parametrize(
    ("neighbours", "yields"),
    [(0, 1600 // 64), (1, 1600 // 64), (100_000, 1600 // 16)],
    ids=["alone", "few", "many"],
)
def test_given_more_vcpus_on_all_hosts_than_cores_when_one_spins_then_it_gives_its_core_away(
    neighbours: int, yields: int
) -> None:
    """The host's own vCPU alone is no more than any computer has cores: what counts is its neighbours.

    Now and then also where there are enough: the thread that it waits for may have been put behind it.
    """
    host = raw_host(PAUSES, neighbours=neighbours)
    try:
        host.start()
        until_halted(host)
        stats = host.stats()[0]
        assert (stats["pauses"], stats["yields"]) == (1600, yields)
    finally:
        host.stop()


def test_given_no_quota_when_cores_are_counted_then_the_affinity_decides(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert quota(tmp_path, a="max 100000") == len(allowed)
    assert usable_cores(tmp_path, tmp_path / "nowhere") == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_given_a_quota_of_the_group_or_of_one_above_when_cores_are_counted_then_the_least_decides(
    tmp_path: Path,
) -> None:
    assert quota(tmp_path, a_b="max 100000", a="50000 100000") == 1


def test_given_a_limit_that_is_none_when_cores_are_counted_then_it_is_passed_over(tmp_path: Path) -> None:
    assert quota(tmp_path, a_b="nonsense", a="100000 0") == len(os.sched_getaffinity(0))


def test_given_another_affinity_when_processes_are_compared_then_they_share_no_cores() -> None:
    allowed = os.sched_getaffinity(0)
    here = which_cores()
    assert which_cores() == here
    if len(allowed) < 2:
        pytest.skip("this process may use one core alone")
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert which_cores() != here
    finally:
        os.sched_setaffinity(0, allowed)
