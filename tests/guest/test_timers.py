# SPDX-License-Identifier: GPL-2.0-or-later
"""Time, timers and sleep as a guest sees them."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED, run_on_coremesh


def test_given_every_timer_of_the_board_when_it_runs_then_interrupts_come_and_time_never_runs_back(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Local APIC in three modes, 8254 and RTC by IOAPIC and by 8259A; no wake-up lost between STI and HLT."""
    result = run_on_coremesh(guest("timers"), vcpus=vcpus, cmdline="rounds=5000 level")
    assert result.status == PASSED, result.story()
    assert result.values()["warps"] == 0


def test_given_a_guest_that_sleeps_when_the_statistics_are_read_then_they_show_halted_time(
    guest: Callable[[str], Path],
) -> None:
    """Waiting in HLT costs no host time, and is counted."""
    result = run_on_coremesh(guest("timers"), vcpus=1, cmdline="rounds=2000")
    assert result.status == PASSED, result.story()
    assert result.total("exits_halt") > 50
    assert result.total("halted_ns") > 1_000_000
