# SPDX-License-Identifier: GPL-2.0-or-later
"""vCPUs of several hosts start each other, interrupt each other, and have one clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED
from mesh_machine import run_on_mesh


def test_given_vcpus_on_other_hosts_when_they_are_started_and_interrupted_then_each_form_arrives_once(
    guest: Callable[[str], Path], shares: tuple[int, ...]
) -> None:
    """INIT, SIPI, fixed, lowest priority, broadcast, logical, NMI; as xAPIC and x2APIC, from every host."""
    result = run_on_mesh(guest("mesh_ipi"), shares=shares)
    assert result.status == PASSED, result.story()
    assert result.values()["started"] == sum(shares)
    assert result.between("interrupts_sent") > 50
    assert result.between("interrupts_refused") == 0


def test_given_vcpus_that_synchronise_when_they_read_the_clock_then_it_never_runs_back(
    guest: Callable[[str], Path], shares: tuple[int, ...]
) -> None:
    """Through memory and by interrupts; the hosts' clocks are less than 50 microseconds apart at the end."""
    result = run_on_mesh(guest("mesh_time"), shares=shares)
    assert result.status == PASSED, result.story()
    assert all(abs(host["clock_error_ns"]) < 50_000 for host in result.mesh), result.story()


def test_given_frames_that_take_their_time_when_clocks_are_compared_then_time_still_never_runs_back(
    guest: Callable[[str], Path],
) -> None:
    result = run_on_mesh(guest("mesh_time"), shares=(1, 1), delay_us=(20, 300))
    assert result.status == PASSED, result.story()


def test_given_the_built_in_guest_when_its_cores_are_on_four_hosts_then_it_finds_and_uses_all(
    guest: Callable[[str], Path],
) -> None:
    result = run_on_mesh(guest("built-in"), shares=(1, 1, 1, 1), cmdline="exit=16")
    assert result.status == PASSED, result.story()
    assert "SMP guest done: cores=4 failures=0" in result.output
