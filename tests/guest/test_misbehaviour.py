# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that no machine survives, and one that tries: the host process always does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine, run_on_coremesh


@pytest.mark.parametrize(("vcpus", "cmdline"), [(1, ""), (2, "other")])
def test_given_no_idt_when_an_exception_comes_then_the_machine_stops_and_shows_the_state(
    guest: Callable[[str], Path], vcpus: int, cmdline: str
) -> None:
    """A triple fault on the first core or on another is an orderly stop."""
    result = run_on_coremesh(guest("triple"), vcpus=vcpus, cmdline=cmdline, timeout=10)
    assert result.ended == "triple-fault", result.story()
    assert "rip=" in result.detail
    assert "triple fault next" in result.output


def test_given_addresses_without_memory_when_the_guest_uses_them_then_reads_give_ones_and_it_goes_on(
    guest: Callable[[str], Path],
) -> None:
    """Loads, stores, locked, wide and repeated accesses, a page table, a jump: in four holes."""
    result = run_on_coremesh(guest("nowhere"), vcpus=1, cmdline="strict", timeout=10)
    assert result.status == PASSED or result.ended == "internal-error", result.story()


@pytest.mark.parametrize("cmdline", ["blind", "ring"])
def test_given_no_way_to_report_it_when_the_guest_jumps_into_nothing_then_the_machine_stops(
    guest: Callable[[str], Path], cmdline: str
) -> None:
    """No IDT, no stack, no page table: an orderly end with the state shown."""
    result = run_on_coremesh(guest("nowhere"), vcpus=1, cmdline=cmdline, timeout=10)
    assert result.ended in ("triple-fault", "internal-error"), result.story()
    assert "rip=" in result.detail


@pytest.mark.parametrize("seed", range(1, 6))
def test_given_rubbish_in_every_register_when_it_is_written_then_the_machine_lives(
    guest: Callable[[str], Path], seed: int
) -> None:
    """Ports, local APIC, IOAPIC, PCI, MSRs, control and debug registers, MXCSR and FPU state."""
    result = run_on_coremesh(guest("rubbish"), vcpus=2, cmdline=f"strict seed={seed}", timeout=30)
    assert result.status == PASSED, result.story()


def test_given_rubbish_in_cr3_when_it_is_loaded_then_the_machine_stops(guest: Callable[[str], Path]) -> None:
    """Page tables at random: a triple fault, or one of the guest's own checks, but an end."""
    result = run_on_coremesh(guest("rubbish"), vcpus=1, cmdline="seed=7 wild", timeout=20)
    assert result.ended in ("triple-fault", "internal-error", "debug-exit"), result.story()


def test_given_what_once_ended_the_process_when_a_guest_runs_it_then_the_guest_goes_on(
    guest: Callable[[str], Path],
) -> None:
    """A thousand instructions that forget a temporary; MXCSR that another core changes."""
    result = run_on_coremesh(guest("harmful"), vcpus=2, cmdline="strict", timeout=30)
    assert result.status == PASSED, result.story()


def test_given_a_task_register_that_leads_nowhere_when_a_stack_is_looked_for_then_the_guest_hears_of_it(
    guest: Callable[[str], Path],
) -> None:
    """An NMI has its stack from the TSS: #TS with the task register's selector, and EXT."""
    with BaremetalMachine(guest("kicked"), vcpus=1) as machine:
        machine.start()
        machine.wait_for("kicked work=0")
        machine.host.pause()
        registers = machine.host.registers(0)["tr"]
        assert isinstance(registers, tuple)
        machine.host.set_registers(0, {"tr": (*registers[:3], 0)})
        machine.host.resume()
        machine.host.msi(0xFEE0_0000, 0x400)
        result = machine.finish(10.0)
    assert "UNEXPECTED trap vector=10 error=41" in result.output, result.story()
