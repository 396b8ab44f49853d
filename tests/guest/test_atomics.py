# SPDX-License-Identifier: GPL-2.0-or-later
"""Locked instructions: on one core their results, on many their totals."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED, run_on_coremesh


def test_given_many_cores_when_all_hammer_one_operand_then_no_locked_update_is_lost(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """104 instructions of 1 to 16 bytes, aligned to page-crossing; unlocked increments are lost."""
    result = run_on_coremesh(guest("atomics"), vcpus=vcpus, protection=protection)
    assert result.status == PASSED, result.story()
    lost = result.values()["lost"]
    assert lost > 0 if vcpus > 1 else lost == 0


def test_given_operands_of_all_kinds_when_the_guest_has_run_then_each_kind_was_counted(
    guest: Callable[[str], Path],
) -> None:
    """The statistics tell sizes, misaligned and page-crossing operands apart."""
    result = run_on_coremesh(guest("atomics"), vcpus=2, cmdline="rounds=64")
    assert result.status == PASSED, result.story()
    for counter in ("1", "2", "4", "8", "16", "misaligned", "crossing"):
        assert result.total(f"atomics_{counter}") > 0, counter
