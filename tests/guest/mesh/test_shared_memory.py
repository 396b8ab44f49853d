# SPDX-License-Identifier: GPL-2.0-or-later
"""One memory for the vCPUs of several hosts: atomics, order, code, ordinary work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from baremetal_machine import PASSED
from mesh_machine import MeshMachine, run_on_mesh
from rom_image import ROM_BASE, rom

pytestmark = pytest.mark.timeout(180)


def test_given_hosts_that_hammer_the_same_operands_when_they_are_done_then_no_locked_update_is_lost(
    guest: Callable[[str], Path], shares: tuple[int, ...], policy: Any
) -> None:
    """All sizes and places; the plain increments beside them are lost, so that the others could have been."""
    result = run_on_mesh(guest("mesh_atomics"), shares=shares, policy=policy, cmdline="ms=6")
    assert result.status == PASSED, result.story()
    values = result.values()
    assert values["lost"] > 0
    assert all(values[f"host_{host}_operations"] > 0 for host in range(len(shares)))
    assert result.between("read_fetches") + result.between("write_fetches") > 100
    if policy == "never":
        assert result.between("atomics_remote") == 0
    else:
        assert result.between("atomics_remote") > 0


def test_given_each_way_to_guard_memory_when_hosts_hammer_the_same_operands_then_no_update_is_lost(
    guest: Callable[[str], Path], backend: str
) -> None:
    result = run_on_mesh(guest("mesh_atomics"), shares=(2, 2), protection=backend, cmdline="ms=6")
    assert result.status == PASSED, result.story()
    assert result.values()["lost"] > 0


@pytest.mark.parametrize("theme", ["atomics", "smc", "smp", "tables", "interrupted", "order", "timers"])
def test_given_a_guest_that_knows_nothing_of_hosts_when_it_runs_on_two_then_all_its_checks_hold(
    guest: Callable[[str], Path], theme: str
) -> None:
    """Those of one host, with fewer rounds: every shared word is a page that moves here."""
    words = "strict rounds=24 generations=30"
    result = run_on_mesh(guest(theme), shares=(1, 1), cmdline=words)
    assert result.status == PASSED, result.story()


def test_given_stores_and_loads_on_different_hosts_when_they_meet_then_only_orders_of_the_manual_are_seen(
    guest: Callable[[str], Path], shares: tuple[int, ...], policy: Any
) -> None:
    """Twenty litmus tests; the control, whose writer does it the wrong way round, is caught."""
    result = run_on_mesh(guest("mesh_order"), shares=shares, policy=policy, cmdline="batches=3")
    assert result.status == PASSED, result.story()
    assert result.values()["control_seen"] > 0, result.story()


def test_given_code_that_one_host_changes_when_all_run_it_then_none_runs_what_was_there_before(
    guest: Callable[[str], Path], shares: tuple[int, ...], backend: str
) -> None:
    result = run_on_mesh(
        guest("mesh_smc"), shares=shares, protection=backend, cmdline="strict generations=12"
    )
    assert result.status == PASSED, result.story()
    assert result.total("code_invalidations") > 0


def test_given_data_of_each_home_when_all_vcpus_work_on_it_then_they_agree(
    guest: Callable[[str], Path], shares: tuple[int, ...], backend: str
) -> None:
    """Checksums, pages handed round, messages, instructions that reach into pages of two homes."""
    result = run_on_mesh(guest("mesh_work"), shares=shares, protection=backend)
    assert result.status == PASSED, result.story()
    assert result.between("pages_sent") > 100


def test_given_frames_that_take_their_time_when_hosts_share_memory_then_all_holds_as_well(
    guest: Callable[[str], Path], policy: Any
) -> None:
    """Each frame is late by its own amount, up to 300 microseconds."""
    for theme, words in (("mesh_atomics", "ms=5 rounds=60"), ("mesh_work", "rounds=1 pages=16")):
        result = run_on_mesh(guest(theme), shares=(1, 1, 1), policy=policy, cmdline=words, delay_us=(20, 300))
        assert result.status == PASSED, result.story()


def test_given_memory_above_4_gib_when_two_hosts_use_it_then_all_of_it_is_there(
    guest: Callable[[str], Path],
) -> None:
    result = run_on_mesh(guest("handover"), shares=(1, 1), ram_bytes=5 << 30)
    assert result.status == PASSED, result.story()


def test_given_rom_when_all_hosts_run_from_it_and_write_to_it_then_each_has_a_copy_and_nothing_changes(
    guest: Callable[[str], Path], backend: str
) -> None:
    """Its pages are read-only to all: no host asks for one of them to write it."""
    words = f"rom={ROM_BASE} rounds=20"
    with MeshMachine(
        guest("rom").read_bytes(),
        shares=(1, 2),
        protection=backend,
        cmdline=words,
        roms=[rom()],
    ) as machine:
        machine.start()
        result = machine.finish()
        moved = [int(row["gpa"]) for host in machine.hosts for row in host.contended_pages(1000)]
    assert result.status == PASSED, result.story()
    assert moved and max(moved) < ROM_BASE
