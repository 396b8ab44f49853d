# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to a guest from outside while it runs: DMA into its code, bus interrupts, NMI, pause, stop."""

import gc
import random
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine

MAILBOX = 0x70_0000
READY, GENERATION, STALE, SEEN, INTERRUPTS = (MAILBOX + 4 * word for word in (0, 1, 2, 4, 20))
NMIS, BEATS = INTERRUPTS + 4 * 256, INTERRUPTS + 4 * 257
CODE = 0x70_1000
LAST = 0xFFFF_FFFF
MSI_BASE = 0xFEE0_0000


class Driver:
    """The other end of the mailbox that the guest ``outside`` keeps in its memory."""

    def __init__(self, machine: BaremetalMachine, vcpus: int) -> None:
        self.machine = machine
        self.vcpus = vcpus

    def word(self, gpa: int) -> int:
        return int(struct.unpack("<I", self.machine.host.ram_read(gpa, 4))[0])

    def put(self, gpa: int, value: int) -> None:
        self.machine.host.ram_write(gpa, struct.pack("<I", value))

    def until(self, what: str, holds: Callable[[], bool], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, f"{what}\n{self.machine.output()}"
            time.sleep(0.0001)

    def begin(self) -> None:
        self.machine.start()
        self.until("the guest does not start", lambda: self.word(READY) == 1)

    def beats(self) -> list[int]:
        return [self.word(BEATS + 4 * core) for core in range(self.vcpus)]


def test_given_running_code_when_a_device_writes_over_it_then_who_sees_the_mark_runs_the_new_code(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """DMA is coherent with translated code: 100 generations, none stale."""
    with BaremetalMachine(guest("outside"), vcpus=vcpus, protection=protection) as machine:
        driver = Driver(machine, vcpus)
        driver.begin()
        for generation in range(1, 101):
            driver.put(CODE + 1, generation)
            driver.put(GENERATION, generation)
            if generation % 4 == 0:
                driver.until(
                    f"generation {generation} is not seen by all",
                    lambda g=generation: all(driver.word(SEEN + 4 * c) == g for c in range(vcpus)),  # type: ignore[misc]
                )
        driver.put(GENERATION, LAST)
        result = machine.finish()
    assert result.status == PASSED, result.story()


def test_given_a_bus_when_messages_and_nmis_come_from_outside_then_each_is_taken(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Each sender uses a vector of its own and waits for its count: none may be lost."""
    with BaremetalMachine(guest("outside"), vcpus=vcpus) as machine:
        driver = Driver(machine, vcpus)
        driver.begin()

        def send(vector: int) -> None:
            counter = INTERRUPTS + 4 * vector
            for i in range(1, 101):
                machine.host.msi(MSI_BASE | (i % vcpus) << 12, vector)
                driver.until(f"message {i} of vector {vector:#x}", lambda i=i: driver.word(counter) == i)  # type: ignore[misc]

        failures: list[BaseException] = []

        def guarded(vector: int) -> None:
            try:
                send(vector)
            except BaseException as error:
                failures.append(error)

        senders = [threading.Thread(target=guarded, args=(vector,)) for vector in (0x31, 0x52, 0xE3)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert not failures, failures
        for i in range(1, 11):
            machine.host.nmi()
            driver.until(f"NMI {i}", lambda i=i: driver.word(NMIS) == i)  # type: ignore[misc]
        driver.put(GENERATION, LAST)
        result = machine.finish()
    assert result.status == PASSED, result.story()


def test_given_a_running_guest_when_it_is_paused_then_nothing_moves_until_it_is_resumed(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """``pause`` returns when all are parked; registers can be read and written back; all go on after it."""
    with BaremetalMachine(guest("outside"), vcpus=vcpus) as machine:
        driver = Driver(machine, vcpus)
        driver.begin()
        for _ in range(20):
            machine.host.pause()
            before = driver.beats()
            assert {str(vcpu["state"]) for vcpu in machine.host.stats()} == {"parked"}
            for index in range(vcpus):
                machine.host.set_registers(index, machine.host.registers(index))
            time.sleep(0.002)
            assert driver.beats() == before
            machine.host.resume()
            driver.until(
                "a vCPU stands still after resume",
                lambda was=before: all(now > then for now, then in zip(driver.beats(), was, strict=True)),  # type: ignore[misc]
            )
        driver.put(GENERATION, LAST)
        result = machine.finish()
    assert result.status == PASSED, result.story()


@pytest.mark.parametrize("theme", ["atomics", "smp", "smc"])
def test_given_pauses_at_random_moments_when_the_guest_checks_itself_then_it_never_notices(
    guest: Callable[[str], Path], theme: str
) -> None:
    """A pause inside a locked access, an IPI or an invalidation loses nothing."""
    rng = random.Random(theme)
    with BaremetalMachine(guest(theme), vcpus=2, cmdline="strict") as machine:
        machine.start()
        deadline = time.monotonic() + 30
        pauses = 0
        while not machine.events and time.monotonic() < deadline:
            machine.host.pause()
            machine.host.resume()
            pauses += 1
            time.sleep(rng.random() * 0.004)
        result = machine.finish(timeout=5)
    assert result.status == PASSED, result.story()
    assert pauses > 5


@pytest.mark.parametrize("theme", ["smp", "atomics", "smc", "timers"])
def test_given_a_machine_when_it_is_stopped_at_any_moment_then_it_is_gone_at_once(
    guest: Callable[[str], Path], theme: str
) -> None:
    """Twelve machines, each stopped a little later than the one before."""
    before = threading.active_count()
    for attempt in range(12):
        with BaremetalMachine(guest(theme), vcpus=4) as machine:
            machine.start()
            time.sleep(attempt * 0.004)
            began = time.monotonic()
        assert time.monotonic() - began < 8
    # A device's thread ends with its machine; those that were there before may be other tests'.
    assert threading.active_count() <= before, [thread.name for thread in threading.enumerate()]


def test_given_many_machines_one_after_the_other_when_each_is_stopped_then_its_memory_is_given_back(
    guest: Callable[[str], Path],
) -> None:
    """A host whose machine has stopped is collected, RAM and translated code with it."""
    hosts = []
    for _ in range(3):
        with BaremetalMachine(guest("outside"), vcpus=1) as machine:
            machine.start()
        hosts.append(weakref.ref(machine.host))
        del machine
    gc.collect()
    assert not [host for host in hosts if host() is not None]
