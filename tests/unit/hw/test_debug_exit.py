# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug-exit port and the POST display."""

from typing import Any

import pytest
from coremesh.hw.isa.debug_exit import DebugExit
from coremesh.hw.isa.post import KEPT, PostCode
from coremesh.hw.power import PowerEvent


@pytest.mark.parametrize(("size", "value"), [(1, 0x2A), (2, 0x1234), (4, 0x12345678)])
def test_a_write_of_any_size_ends_the_machine(
    power: list[PowerEvent], guest_access: Any, size: int, value: int
) -> None:
    """When a test guest writes its result, then the machine's owner gets the number as it was written."""
    guest_access(DebugExit(power.append)).write(0, value, size)
    assert power == [PowerEvent("debug-exit", value, "debug-exit")]


def test_reading_the_debug_exit_port_does_nothing(power: list[PowerEvent], guest_access: Any) -> None:
    """When a guest only looks, then the machine goes on."""
    assert guest_access(DebugExit(power.append)).read(0, 4) == 0
    assert power == []


def test_post_codes_are_remembered(guest_access: Any) -> None:
    """When firmware shows how far it came.

    Then the last codes are kept, the newest last, over a reset too.
    """
    device = PostCode()
    chip = guest_access(device)
    for code in range(100):
        chip.write(0, code)
    assert chip.read(0) == 99
    chip.reset()
    assert list(device.codes) == list(range(100 - KEPT, 100))
    assert chip.read(0) == 0
