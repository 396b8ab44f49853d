# SPDX-License-Identifier: GPL-2.0-or-later
"""Kicks and interrupts at random moments of a running core: none is lost, none comes twice.

The guest ``kicked`` does one kind of work for ever and counts its interrupts in RAM. A native loop
(core/native/probe/storm.hpp) sends one message at a time and waits for its count, with bare kicks in between.
"""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine

BOX = 0x70_0000
READY, STOP = BOX + 16, BOX + 20
LAPIC_OF_CORE_0 = 0xFEE0_0000
VECTORS = (0x41, 0x93, 0xE5)
NMI = 0x400  # the delivery mode's bits of the message's data
WORKS = (
    "arithmetic",
    "halt",
    "sti_halt",
    "strings",
    "faults",
    "windows",
    "calls",
    "changing_code",
    "input_output",
)
DEAF = len(WORKS)


@contextmanager
def working_core(guest: Path, work: int) -> Iterator[BaremetalMachine]:
    """A machine of one vCPU that is at the given work."""
    with BaremetalMachine(guest, vcpus=1, cmdline=f"work={work}") as machine:
        machine.start()
        deadline = time.monotonic() + 20
        while machine.host.ram_read(READY, 4) != b"\1\0\0\0":
            assert time.monotonic() < deadline, machine.output()
            time.sleep(0.001)
        yield machine


def storm(machine: BaremetalMachine, kinds: tuple[int, ...], **limits: float) -> dict[str, int]:
    """Messages of these kinds at random moments; what came of it."""
    plan = {"messages": 10**9, "seconds": 0.4, "patience": 20.0, "kicks": 40, "longest_gap": 20_000} | limits
    outcome: dict[str, int] = machine.host.storm(
        vcpu=0,
        address=LAPIC_OF_CORE_0,
        kinds=list(kinds),
        counters=int(plan.get("counters", BOX)),
        messages=int(plan["messages"]),
        seconds=plan["seconds"],
        patience=plan["patience"],
        kicks=int(plan["kicks"]),
        longest_gap=int(plan["longest_gap"]),
        seed=int(plan.get("seed", 1)),
    )
    return outcome


def storm_of(
    machine: BaremetalMachine, kinds: tuple[int, ...], least: int, **limits: float
) -> dict[str, int]:
    """Storms until there were so many messages, or 15 s are over (a host may have better things to do)."""
    deadline = time.monotonic() + 15
    total = {"messages": 0, "kicks": 0}
    for seed in range(1, 1000):
        outcome = storm(machine, kinds, seed=seed, **limits)
        assert not outcome["lost"], outcome
        assert not outcome["surplus"], outcome
        total = {name: total[name] + outcome[name] for name in total}
        if total["messages"] >= least or time.monotonic() > deadline:
            break
    return total


def end(machine: BaremetalMachine) -> None:
    """Have the guest say whether its work came out right."""
    machine.host.ram_write(STOP, struct.pack("<I", 1))
    machine.host.msi(LAPIC_OF_CORE_0, VECTORS[0])
    result = machine.finish(timeout=20)
    assert result.status == PASSED, result.story()


@pytest.mark.parametrize("work", WORKS)
def test_given_a_core_at_work_when_interrupts_come_at_random_moments_then_none_is_lost(
    guest: Callable[[str], Path], work: str
) -> None:
    """Vectors of three classes and NMI, one at a time: each moves its counter by one, the work is right."""
    with working_core(guest("kicked"), WORKS.index(work)) as machine:
        assert storm_of(machine, (*VECTORS, NMI), least=300)["messages"] > 20
        end(machine)


@pytest.mark.parametrize("work", ["arithmetic", "strings", "changing_code"])
def test_given_a_core_at_work_when_a_storm_of_kicks_says_nothing_then_the_work_comes_out_right(
    guest: Callable[[str], Path], work: str
) -> None:
    """Some million kicks with nothing behind them: no instruction is done twice or by half."""
    with working_core(guest("kicked"), WORKS.index(work)) as machine:
        total = storm_of(machine, (VECTORS[0],), least=50, kicks=20_000, longest_gap=0)
        assert total["kicks"] > 10_000, total
        end(machine)


def test_given_a_core_that_takes_no_interrupt_when_one_is_sent_then_it_is_noticed_as_lost(
    guest: Callable[[str], Path],
) -> None:
    """The control: with IF = 0 a message stays where it is, and the storm says so; an NMI still arrives."""
    with working_core(guest("kicked"), DEAF) as machine:
        assert storm(machine, (VECTORS[0],), patience=0.1)["lost"]
        assert not storm(machine, (NMI,), messages=1, counters=BOX + 12)["lost"]


def test_given_a_core_in_a_loop_of_its_own_when_nobody_kicks_it_then_it_never_looks_at_its_mailbox(
    guest: Callable[[str], Path],
) -> None:
    """The control of the kick: the interrupts above arrive because of it, not because it looks anyway."""
    with working_core(guest("kicked"), WORKS.index("arithmetic")) as machine:
        quiet = [stat["kicks"] for stat in machine.host.stats()]
        time.sleep(0.05)
        assert [stat["kicks"] for stat in machine.host.stats()] == quiet
        assert not storm(machine, (VECTORS[0],), messages=1)["lost"]
        assert [stat["kicks"] for stat in machine.host.stats()] != quiet


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_given_a_core_at_work_when_a_million_interrupts_come_then_none_is_lost(
    guest: Callable[[str], Path], work: str
) -> None:
    """As many as a minute holds, at most a million for each kind of work."""
    with working_core(guest("kicked"), WORKS.index(work)) as machine:
        for seed in range(4):
            limits = {"messages": 250_000, "seconds": 15, "patience": 60, "longest_gap": 4000}
            outcome = storm(machine, (*VECTORS, NMI), seed=seed, **limits)
            assert not outcome["lost"], outcome
            assert not outcome["surplus"], outcome
        end(machine)
