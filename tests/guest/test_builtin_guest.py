# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that the package carries for the day when no Debian image can be had."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import run_on_coremesh


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_given_n_vcpus_when_the_builtin_guest_runs_then_all_cores_work_and_it_powers_off(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Each core says that it is there, takes interrupts and adds; the end is ACPI's power-off."""
    result = run_on_coremesh(guest("built-in"), vcpus=vcpus)
    assert result.ended == "power-off", result.story()
    assert f"SMP guest done: cores={vcpus} failures=0" in result.output
    for core in range(vcpus):
        assert f"core {core}: APIC id {core}," in result.output
    assert all(int(vcpu["interrupts"]) > 0 for vcpu in result.stats)


def test_given_an_exit_code_when_the_builtin_guest_ends_then_debug_exit_carries_it(
    guest: Callable[[str], Path],
) -> None:
    """``exit=N`` on its command line goes round the power-off."""
    result = run_on_coremesh(guest("built-in"), vcpus=2, cmdline="exit=5")
    assert result.status == 11, result.story()


@pytest.mark.slow
@pytest.mark.parametrize("vcpus", [64, 255])
def test_given_hundreds_of_vcpus_when_the_builtin_guest_runs_then_all_cores_work(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """As many cores as xAPIC ids reach."""
    result = run_on_coremesh(guest("built-in"), vcpus=vcpus, timeout=120)
    assert f"SMP guest done: cores={vcpus} failures=0" in result.output, result.story()
