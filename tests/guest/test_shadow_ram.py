# SPDX-License-Identifier: GPL-2.0-or-later
"""Shadow RAM: the PAM registers steer reads and writes, and code, for every core at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, run_on_coremesh
from shadow_image import shadow_image


@pytest.mark.parametrize("vcpus", [1, 4])
def test_given_segments_in_each_of_their_states_when_all_cores_use_them_then_each_sees_what_is_steered(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    result = run_on_coremesh(guest("pam"), vcpus=vcpus, cmdline="rounds=40", bios=shadow_image())
    assert result.status == PASSED, result.story()


@pytest.mark.slow
def test_given_many_changes_when_cores_run_in_the_segments_then_each_goes_by_every_one(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    result = run_on_coremesh(
        guest("pam"), vcpus=vcpus, protection=protection, cmdline="rounds=300", bios=shadow_image()
    )
    assert result.status == PASSED, result.story()


def test_given_no_firmware_when_the_segments_are_steered_then_they_stay_ram(
    guest: Callable[[str], Path],
) -> None:
    """The control: the guest notices memory that does not follow the registers."""
    result = run_on_coremesh(guest("pam"), vcpus=1)
    assert result.status != PASSED
    assert "FAIL segment 0 begins as RAM" in result.output, result.story()
