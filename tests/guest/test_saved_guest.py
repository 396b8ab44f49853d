# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that uses all of a processor's state is saved in the midst of its work; its end is the same."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine, RunResult, run_on_coremesh
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.machine_state import MachineState
from coremesh.core.engine import Host
from coremesh.core.errors import MachineStateError
from coremesh.core.memory_layout import MemoryLayout, Region
from coremesh.core.state import StateError

ROUNDS = "rounds=60"  # a second of work
MIB = 1 << 20
ELSEWHERE = 0xCD5  # OF, DF, SF, ZF, AF, PF, CF

#: In a process of its own: the machine that was saved in a folder goes on to its end.
GO_ON = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from baremetal_machine import BaremetalMachine
from coremesh.cluster.machine.machine_state import MachineState
with BaremetalMachine(Path(sys.argv[2]), vcpus=1, state=MachineState.read(Path(sys.argv[3]))) as machine:
    machine.start()
    result = machine.finish()
print(json.dumps([result.status, result.output, result.story()]))
"""


def end_elsewhere(guest: Path, folder: Path) -> tuple[int | None, str, str]:
    """How the machine saved in ``folder`` ends in another process: status, what it prints, the story."""
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, Path(__file__).parent, guest, folder],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    status, output, story = json.loads(done.stdout)
    return status, output, story


def sums(result: RunResult | str) -> str:
    """The line that tells what the guest has computed."""
    text = result if isinstance(result, str) else result.output
    return next(line for line in text.splitlines() if line.startswith("registers="))


@pytest.fixture
def saved_guest(guest: Callable[[str], Path]) -> Path:
    return guest("saved")


@pytest.fixture
def at_work(saved_guest: Path) -> Iterator[BaremetalMachine]:
    """The guest in the midst of its computation."""
    with BaremetalMachine(saved_guest, vcpus=1, cmdline=ROUNDS) as machine:
        machine.start()
        machine.wait_for("computing")
        time.sleep(0.1)
        yield machine


def test_a_guest_that_was_saved_comes_to_the_same_end_in_another_process(
    saved_guest: Path, at_work: BaremetalMachine, tmp_path: Path
) -> None:
    """Given x87, SSE, flags, MSRs, breakpoints and a timer in use, when the machine goes on elsewhere.

    Then every bit is as in a machine that was never saved, and as in the one that went on after the save.
    """
    at_work.save().write(tmp_path / "saved")
    here = at_work.finish()
    assert here.status == PASSED, here.story()
    undisturbed = run_on_coremesh(saved_guest, vcpus=1, cmdline=ROUNDS)
    assert undisturbed.status == PASSED, undisturbed.story()
    assert sums(here) == sums(undisturbed)

    status, output, story = end_elsewhere(saved_guest, tmp_path / "saved")
    assert status == PASSED, story
    assert "computing" not in output, "saved before the computation"
    assert sums(output) == sums(undisturbed)


def test_nothing_of_the_engines_cpu_state_is_forgotten(saved_guest: Path, at_work: BaremetalMachine) -> None:
    """Given the guest at work, when its state is loaded elsewhere, then the engine's CPU state is the same.

    All of it but what is declared to have no meaning between two instructions; and each member of the
    engine's structure is declared.
    """
    untouched = Host(memory=MemoryLayout.of([Region(0, MIB)]), apic_ids=[0], total_vcpus=1)
    members, size, fresh = untouched.engine_image(0)
    end = 0
    for name, _, offset, length in members:
        assert 0 <= offset - end < 16, f"there is something before {name}"
        end = offset + length
    assert size - end < 16, "there is something behind the last member"

    r = random.Random(1)
    changed: set[str] = set()
    for _ in range(6):
        time.sleep(r.random() / 50)
        at_work.host.pause()
        at_work.node.stop()
        first = at_work.host.engine_image(0)[2]
        state = MachineState.take(at_work.host, at_work.node, at_work.clock)
        with BaremetalMachine(saved_guest, vcpus=1, state=state) as other:
            second = other.host.engine_image(0)[2]
        for name, role, offset, length in members:
            part = slice(offset, offset + length)
            if name == "eflags":  # with the arithmetic flags and DF until the engine is entered
                before, after = (int.from_bytes(each[part], "little") for each in (first, second))
                assert before & ~ELSEWHERE == after & ~ELSEWHERE, "eflags was forgotten"
                assert after & ELSEWHERE == state.plain["host"]["vcpus"][0]["registers"]["rflags"] & ELSEWHERE
            elif role != "scratch":
                assert second[part] == first[part], f"{name} was forgotten"
            if role == "fixed":
                assert first[part] == fresh[part], f"{name} is not fixed"
            elif first[part] != fresh[part]:
                changed.add(name)
        at_work.node.start()
        at_work.host.resume()
    used = {"regs", "dr", "fpus", "fpuc", "fpstt", "fptags", "mxcsr", "xmm_regs", "kernelgsbase", "lstar"}
    used |= {"star", "cstar", "fmask", "tsc_aux", "sysenter_cs", "sysenter_esp", "mtrr_fixed", "mtrr_var"}
    assert used <= changed, "the guest does not use all that it should"


def test_a_word_that_is_dropped_is_missed(
    saved_guest: Path, at_work: BaremetalMachine, tmp_path: Path
) -> None:
    """When a word of the state is that of a reset processor, then the guest's end is another: the control."""
    state = at_work.save()
    at_work.finish()
    fresh = Host(memory=MemoryLayout.of([Region(0, MIB)]), apic_ids=[0], total_vcpus=1).save_state()
    reset = fresh["vcpus"][0]["registers"]
    expected = sums(run_on_coremesh(saved_guest, vcpus=1, cmdline=ROUNDS))
    for word in ("x87_control", "x87_significand", "mxcsr", "xmm_high", "ia32_tsc_aux", "dr7"):
        registers = state.plain["host"]["vcpus"][0]["registers"]
        kept, registers[word] = registers[word], reset[word]
        with BaremetalMachine(saved_guest, vcpus=1, state=state) as machine:
            machine.start()
            result = machine.finish()
        registers[word] = kept
        assert result.status != PASSED or sums(result) != expected, f"{word} was not missed"


def test_a_machine_of_another_shape_refuses_the_state(saved_guest: Path, at_work: BaremetalMachine) -> None:
    state = at_work.save()
    with pytest.raises(StateError, match="1 entries, not 2"):
        BaremetalMachine(saved_guest, vcpus=2, state=state)
    with pytest.raises(StateError, match="as much memory"):
        BaremetalMachine(saved_guest, vcpus=1, ram_bytes=8 * MIB, state=state)
    with pytest.raises(StateError, match="no saved machine"):
        MachineState.read(saved_guest.parent)


THEMES = [
    ("interrupted", 1),
    ("smp", 4),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("atomics", 4), ("smc", 2), ("tables", 2), ("order", 2), ("timers", 2), ("legacy", 1))
    ),
]


@pytest.mark.parametrize(("theme", "vcpus"), THEMES)
def test_any_guest_may_be_saved_at_any_moment(guest: Callable[[str], Path], theme: str, vcpus: int) -> None:
    """Given a guest that checks itself, when it is saved at random moments and goes on from each.

    Then it finds nothing wrong, there and where it was saved.
    """
    seconds = run_on_coremesh(guest(theme), vcpus=vcpus).seconds
    r = random.Random(theme)
    for _ in range(3):
        with BaremetalMachine(guest(theme), vcpus=vcpus) as machine:
            machine.start()
            time.sleep(r.random() * seconds * 0.7)
            if machine.events:
                continue  # it has come to its end before
            state = machine.save()
            here = machine.finish()
        assert here.status == PASSED, here.story()
        with BaremetalMachine(guest(theme), vcpus=vcpus, state=state) as machine:
            machine.start()
            there = machine.finish()
        assert there.status == PASSED, there.story()


def test_a_host_is_saved_while_it_is_paused(saved_guest: Path) -> None:
    """Given a host with devices, when it is saved at the wrong moment, then the error says what to do."""
    kernel = saved_guest.read_bytes()
    description = MachineDescription(vcpus=1, ram_bytes=128 * MIB, kernel=kernel, cmdline=ROUNDS)
    first, second = DeviceHost(description), DeviceHost(replace(description, kernel=b""))
    first.prepare()
    first.start()
    with pytest.raises(MachineStateError, match="pause"):
        first.save()
    first.pause()
    state = first.save()
    again = first.save()  # it stays as it is, but for its timers
    before, after = (each.plain["host"]["vcpus"][0]["registers"] for each in (state, again))
    assert before == after
    assert first.stop().kind == "stopped"
    second.restore(state)
    second.start()
    end = second.wait(60)
    assert end is not None
    assert (end.kind, end.exit_status) == ("debug-exit", PASSED)
