# SPDX-License-Identifier: GPL-2.0-or-later
"""Locked instructions: on one core their results, on many their totals."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, run_on_coremesh


def test_given_many_cores_when_all_hammer_one_operand_then_no_locked_update_is_lost(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """104 instructions of 1 to 16 bytes, aligned to page-crossing; unlocked increments are lost."""
    result = run_on_coremesh(guest("atomics"), vcpus=vcpus, protection=protection)
    assert result.status == PASSED, result.story()
    lost = result.values()["lost"]
    assert lost > 0 if vcpus > 1 else lost == 0


@pytest.mark.xfail(reason="the translator takes the flags of LOCK NEG from the old value", strict=True)
def test_given_lock_neg_when_it_is_done_then_its_flags_are_those_of_neg(guest: Callable[[str], Path]) -> None:
    """A known gap of the engine's translator; this test says when it closes."""
    result = run_on_coremesh(guest("atomics"), vcpus=1, cmdline="negflags rounds=16")
    assert result.status == PASSED, result.story()


def test_given_operands_of_all_kinds_when_the_guest_has_run_then_each_kind_was_counted(
    guest: Callable[[str], Path],
) -> None:
    """The statistics tell sizes, misaligned and page-crossing operands apart."""
    result = run_on_coremesh(guest("atomics"), vcpus=2, cmdline="rounds=64")
    assert result.status == PASSED, result.story()
    for counter in ("1", "2", "4", "8", "16", "misaligned", "crossing"):
        assert result.total(f"atomics_{counter}") > 0, counter
