# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that changes under the cores that run it."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED, run_on_coremesh


def test_given_code_that_changes_when_it_runs_then_no_core_runs_what_was_there_before(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """By itself, by another core, through another mapping, across a page; code and hot data do not thrash."""
    result = run_on_coremesh(guest("smc"), vcpus=vcpus, protection=protection, cmdline="strict")
    assert result.status == PASSED, result.story()
    assert vcpus == 1 or result.values()["calls"] > 300
    assert result.total("code_invalidations") > 0


def test_given_code_beside_hot_data_when_all_cores_write_then_faults_stay_rare(
    guest: Callable[[str], Path],
) -> None:
    """40,000 stores into a page of running code must not each cost a fault of the host."""
    result = run_on_coremesh(guest("smc"), vcpus=2, cmdline="strict generations=50")
    assert result.status == PASSED, result.story()
    assert result.code["faults"] < 20_000, result.code
