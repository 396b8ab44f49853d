# SPDX-License-Identifier: GPL-2.0-or-later
"""Shadow RAM over several hosts: a write of the PAM registers is true on all of them when it returns."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED
from mesh_machine import MeshMachine
from shadow_image import shadow_image


def test_given_cores_on_three_hosts_when_one_steers_a_segment_then_the_others_go_by_it(
    guest: Callable[[str], Path],
) -> None:
    with MeshMachine(
        guest("pam").read_bytes(), shares=[1, 1, 2], cmdline="rounds=20", bios=shadow_image()
    ) as machine:
        machine.start()
        result = machine.finish()
    assert result.status == PASSED, result.story()
