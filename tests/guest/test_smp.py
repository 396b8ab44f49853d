# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting cores and interrupting them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, run_on_coremesh


def test_given_waiting_cores_when_they_are_started_and_interrupted_then_each_form_arrives_where_it_should(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """INIT and SIPI with their real-mode state, IPIs of every form, NMI, priorities, as xAPIC and x2APIC."""
    result = run_on_coremesh(guest("smp"), vcpus=vcpus, protection=protection, cmdline="strict")
    assert result.status == PASSED, result.story()
    assert "x2apic" in result.output
    assert vcpus == 1 or result.total("ipis_sent") > 100


@pytest.mark.parametrize("vcpus", [9, 17])
def test_given_more_cores_than_a_logical_id_has_bits_when_clusters_are_addressed_then_all_are_reached(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Nine cores need clusters in xAPIC mode, seventeen in x2APIC mode."""
    result = run_on_coremesh(guest("smp"), vcpus=vcpus, cmdline="strict")
    assert result.status == PASSED, result.story()


def test_given_two_cores_when_one_interrupts_the_other_then_latencies_are_measured(
    guest: Callable[[str], Path],
) -> None:
    """The guest's bench mode: figures for a core that runs and for one that sleeps, none lost."""
    result = run_on_coremesh(guest("smp"), vcpus=2, cmdline="bench")
    assert result.status == PASSED, result.story()
    figures = result.values()
    for name in ("ipi_self_ns", "ipi_running_ns", "ipi_halted_ns", "ipi_round_trip_halted_ns"):
        assert figures[name] > 0, name
