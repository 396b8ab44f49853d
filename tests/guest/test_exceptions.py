# SPDX-License-Identifier: GPL-2.0-or-later
"""Exceptions and privilege as the manual has them."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import PASSED, run_on_coremesh


def test_given_every_fault_the_guest_can_make_when_it_makes_it_then_the_frame_is_the_manuals(
    guest: Callable[[str], Path], protection: str
) -> None:
    """Vector, error code, saved RIP and RF, CR2, stack; ring 3 and back by gates, IRET, SYSRET, SYSEXIT."""
    result = run_on_coremesh(guest("exceptions"), vcpus=1, protection=protection, cmdline="strict")
    assert result.status == PASSED, result.story()


def test_given_the_modes_before_long_mode_when_a_guest_visits_them_then_each_behaves_as_it_did(
    guest: Callable[[str], Path], protection: str
) -> None:
    """32-bit protected mode, ring 3 and SYSENTER there, virtual-8086, task switches, real mode and back."""
    result = run_on_coremesh(guest("legacy"), vcpus=1, protection=protection, cmdline="strict limits")
    assert result.status == PASSED, result.story()


def test_given_a_watched_byte_when_it_is_reached_in_any_way_then_the_trap_comes_once_after_the_instruction(
    guest: Callable[[str], Path], protection: str
) -> None:
    """Reads, writes, both, LOCK, misaligned, over pages, strings, the stack, MOV SS, single step, faults."""
    result = run_on_coremesh(guest("watchpoints"), vcpus=1, protection=protection)
    assert result.status == PASSED, result.story()
