# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a machine of several hosts from outside: transactions, DMA, pause, stop; its counters."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from baremetal_machine import PASSED
from coremesh.core.engine import Host
from coremesh.core.mesh import Policy
from coremesh.hw.decode import MMIO, At
from coremesh.hw.device import Device
from mesh_machine import MeshMachine

pytestmark = pytest.mark.timeout(120)

# The mailbox of the guest "outside".
MAILBOX = 0x70_0000
READY, GENERATION, SEEN = MAILBOX, MAILBOX + 4, MAILBOX + 16
CODE = 0x70_1000
LAST = 0xFFFF_FFFF
SCRATCH = 0x150_0000  # nothing of the guest is there


def word(machine: MeshMachine, gpa: int, host: int = 0) -> int:
    return int(struct.unpack("<I", machine.hosts[host].ram_read(gpa, 4))[0])


def put(machine: MeshMachine, gpa: int, value: int, host: int = 0) -> None:
    machine.hosts[host].ram_write(gpa, struct.pack("<I", value))


def until(machine: MeshMachine, what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"{what}\n{machine.output()}"
        time.sleep(0.0005)


@pytest.fixture
def outside(guest: Callable[[str], Path]) -> Any:
    """A running machine of two hosts whose guest answers through its mailbox."""
    with MeshMachine(guest("outside").read_bytes(), shares=(2, 2)) as machine:
        machine.start()
        until(machine, "the guest does not start", lambda: word(machine, READY) == 1)
        yield machine
        put(machine, GENERATION, LAST)
        result = machine.finish()
        assert result.status == PASSED, result.story()


def test_given_code_that_runs_on_both_hosts_when_a_device_writes_over_it_then_all_run_the_new_code(
    outside: MeshMachine,
) -> None:
    """DMA is one more participant in the page protocol."""
    for generation in range(1, 41):
        put(outside, CODE + 1, generation)
        put(outside, GENERATION, generation)
        if generation % 4 == 0:
            until(
                outside,
                f"generation {generation} is not seen by all",
                lambda g=generation: all(word(outside, SEEN + 4 * core) == g for core in range(4)),  # type: ignore[misc]
            )


@pytest.mark.parametrize("policy", ["never", "always", "adaptive"])
def test_given_a_word_when_every_host_adds_to_it_from_outside_then_no_addition_is_lost(
    guest: Callable[[str], Path], policy: Any
) -> None:
    """Each answer is given once: the values before the additions are all different."""
    rounds = 100
    with MeshMachine(guest("outside").read_bytes(), shares=(1, 1, 1), policy=policy) as machine:
        machine.start()
        answers: list[int] = []

        def add(host: int) -> None:
            answers.extend(machine.hosts[host].transact("add", SCRATCH + 8, 8, 1) for _ in range(rounds))

        threads = [threading.Thread(target=add, args=(host,)) for host in (0, 1, 2) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == list(range(6 * rounds))
        assert all(host.transact("load", SCRATCH + 8, 8) == 6 * rounds for host in machine.hosts)


class RegistersInRam(Device):
    """A device of 4 KiB whose registers lie in RAM at ``behind``: each access is DMA."""

    widths = (1, 2, 4, 8)

    def __init__(self, host: Host, behind: int) -> None:
        super().__init__("registers in RAM")
        self._host = host
        self._behind = behind

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._host.ram_read(self._behind + offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._host.ram_write(self._behind + offset, value.to_bytes(size, "little"))


@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 1)], ids=["2-hosts", "3-hosts"])
def test_given_a_locked_instruction_on_a_device_when_the_device_does_dma_then_both_come_to_their_end(
    guest: Callable[[str], Path], shares: tuple[int, ...]
) -> None:
    """No lock of the page protocol is held while the device works, on its own host or on another."""
    with MeshMachine(guest("locked_device").read_bytes(), shares=shares) as machine:
        device = RegistersInRam(machine.hosts[0], SCRATCH)
        machine.node.add(device, [At(MMIO, 0xFE70_0000, 4096, device)])
        machine.start()
        result = machine.finish(20)
        assert result.status == PASSED, result.story()
    assert device.faults == 0


def test_given_operations_of_all_kinds_and_sizes_when_another_host_asks_then_each_does_what_it_says(
    outside: MeshMachine,
) -> None:
    near, far = outside.hosts
    for size in (1, 2, 4, 8, 16):
        gpa, ones = SCRATCH + 64 * size, (1 << 8 * size) - 1
        near.ram_write(gpa, bytes(size))
        assert far.transact("add", gpa, size, 5) == 0
        assert near.transact("exchange", gpa, size, ones) == 5
        assert far.transact("and", gpa, size, 0x3C) == ones
        assert near.transact("or", gpa, size, 0x03) == 0x3C
        assert far.transact("xor", gpa, size, 0x30) == 0x3F
        assert near.transact("compare_swap", gpa, size, 9, 8) == 0x0F
        assert far.transact("compare_swap", gpa, size, 9, 0x0F) == 0x0F
        assert near.transact("load", gpa, size) == 9
        far.transact("store", gpa, size, 7)
        assert near.ram_read(gpa, size) == (7).to_bytes(size, "little")
    with pytest.raises(IndexError):
        far.transact("add", 0xFFFE_0000_0000, 8, 1)
    with pytest.raises(ValueError, match="compare_swap"):
        far.transact("nonsense", SCRATCH, 8, 1)


def test_given_a_fought_over_word_when_the_pages_are_listed_then_its_page_is_among_the_worst(
    guest: Callable[[str], Path],
) -> None:
    with MeshMachine(guest("outside").read_bytes(), shares=(1, 1)) as machine:
        machine.start()

        def fight(host: int) -> None:
            for _ in range(300):
                machine.hosts[host].transact("add", SCRATCH + 0x100, 4, 1)
                machine.hosts[host].ram_write(SCRATCH + 0x200 + host, b"x")

        threads = [threading.Thread(target=fight, args=(host,)) for host in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        worst = [row for host in machine.hosts for row in host.contended_pages(5)]
        assert SCRATCH in [int(row["gpa"]) for row in worst], worst


@pytest.mark.parametrize("policy", ["never", "always"])
def test_given_guests_that_fight_for_a_word_when_the_pages_are_listed_then_the_instructions_are_told(
    guest: Callable[[str], Path], policy: Policy
) -> None:
    """Those of plain accesses, which fault, and of locked ones, which may be done elsewhere."""
    kernel = guest("mesh_atomics").read_bytes()
    with MeshMachine(kernel, shares=(1, 1), policy=policy) as machine:
        machine.start()
        machine.finish()
        worst = [row for host in machine.hosts for row in host.contended_pages(3)]
        places = {int(place) for row in worst for place, times in row["users"] if times > 2}
        assert places, worst
        # The guest's memory is mapped as it lies: its text is what begins with the bytes of its file.
        text = bytes(machine.hosts[0].ram_read(min(places), 15))
        assert text in kernel, f"no code of the guest at {min(places):#x}"


def test_given_hosts_in_the_middle_of_work_when_they_are_paused_then_they_go_on_as_if_nothing_had_been(
    guest: Callable[[str], Path],
) -> None:
    """A host whose vCPUs are parked still answers for its pages."""
    with MeshMachine(guest("mesh_work").read_bytes(), shares=(2, 2)) as machine:
        machine.start()
        pauses = 0
        while not machine.events and pauses < 200:
            machine.hosts[pauses % 2].pause()
            time.sleep(0.001)
            machine.hosts[pauses % 2].resume()
            pauses += 1
            time.sleep(0.002)
        result = machine.finish()
    assert result.status == PASSED, result.story()
    assert pauses > 3


@pytest.mark.parametrize("theme", ["mesh_atomics", "mesh_ipi", "mesh_smc"])
def test_given_pages_and_messages_under_way_when_the_machine_is_stopped_then_it_is_gone_at_once(
    guest: Callable[[str], Path], theme: str
) -> None:
    for attempt in range(6):
        with MeshMachine(guest(theme).read_bytes(), shares=(1, 1, 1)) as machine:
            machine.start()
            time.sleep(attempt * 0.007)
            began = time.monotonic()
        assert time.monotonic() - began < 8


def test_given_memory_that_nobody_touched_when_others_read_it_then_no_data_moves(
    guest: Callable[[str], Path],
) -> None:
    with MeshMachine(guest("outside").read_bytes(), shares=(1, 1)) as machine:
        before = [host.mesh_stats() for host in machine.hosts]
        assert machine.hosts[1].ram_read(0x200_0000, 1 << 20) == bytes(1 << 20)
        after = [host.mesh_stats() for host in machine.hosts]
        moved = sum(now["page_bytes"] - then["page_bytes"] for now, then in zip(after, before, strict=True))
        assert after[1]["read_fetches"] + after[1]["prefetches"] > before[1]["read_fetches"]
        assert moved <= 2 * 256, "a word that there is nothing, for each page"
