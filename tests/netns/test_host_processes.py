# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a machine's processes when one is lost, with nobody who watches over them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.core._native import link_priority
from host_processes import NetworkMachine, description_of
from network import Network

pytestmark = pytest.mark.timeout(180)

SECONDS_TO_NOTICE = 3.0 if link_priority() in ("fifo", "nice") else 5.0
SECONDS_TO_NOTICE_WHEN_LATE = 9.0
ENDLESS = "only=0 ms=3000000 rounds=4000000000"
ASKED = ("read_fetches", "write_fetches", "upgrades", "atomics_remote")  # of other hosts
LOST = {"host-lost", "fenced"}


def start(network: Network, kernel: bytes, hosts: int) -> NetworkMachine:
    """A machine whose vCPUs fight for a page, all of them at work."""
    machine = NetworkMachine(network, description_of(kernel, [1] * hosts, ENDLESS))
    try:
        machine.start()
        deadline = time.monotonic() + 60
        while min(sum(int(row[key]) for key in ASKED) for row in machine.mesh_stats()) < 20:
            assert time.monotonic() < deadline, machine.console()
            time.sleep(0.05)
    except BaseException:
        machine.close()
        raise
    return machine


def atomics(machine: NetworkMachine, host: int) -> int:
    """What the host's vCPUs have done: nothing else counts at each step of theirs."""
    return sum(
        int(count)
        for vcpu in machine.call("stats", host=host)
        for name, count in vcpu.items()
        if name.startswith("atomics_")
    )


def stands_still(machine: NetworkMachine, host: int) -> bool:
    before = atomics(machine, host)
    time.sleep(0.3)
    return atomics(machine, host) == before


@pytest.mark.parametrize("hosts", [2, 3])
def test_given_hosts_at_work_when_a_cable_is_cut_then_all_stop_by_themselves_in_three_seconds(
    network: Network, guest: Callable[[str], bytes], hosts: int
) -> None:
    machine = start(network, guest("mesh_atomics"), hosts)
    try:
        began = time.monotonic()
        network.cut(1)
        calls = [machine.begin(host, "wait", 15.0) for host in range(hosts)]
        # Host 0 keeps all the leases, the one that was cut off its own; who keeps none is told.
        ends: dict[int, Any] = {host: calls[host](30) for host in (0, 1)}
        assert time.monotonic() - began <= SECONDS_TO_NOTICE, ends
        assert {end.kind for end in ends.values()} <= LOST, ends
        assert (ends[0].kind, ends[0].host) == ("host-lost", 1)
        for host in range(2, hosts):
            assert calls[host](30) is not None
        assert all(stands_still(machine, host) for host in range(hosts))
    finally:
        network.mend(1)
        machine.close()


def test_given_hosts_at_work_when_one_is_killed_then_the_other_stops_by_itself_in_three_seconds(
    network: Network, guest: Callable[[str], bytes]
) -> None:
    for victim in (1, 0):
        machine = start(network, guest("mesh_atomics"), 2)
        try:
            began = time.monotonic()
            os.kill(machine.pid(victim), signal.SIGKILL)
            end = machine.call("wait", 15.0, timeout=30, host=1 - victim)
            assert time.monotonic() - began <= SECONDS_TO_NOTICE, end
            assert end is not None and end.kind in LOST, end
            assert stands_still(machine, 1 - victim)
        finally:
            machine.close()


@pytest.mark.parametrize("victim", [1, 0])
def test_given_hosts_at_work_when_one_is_stopped_and_continued_then_it_does_not_go_on_alone(
    network: Network, guest: Callable[[str], bytes], victim: int
) -> None:
    """It has slept through its lease: the first thing that it does when it wakes is to see that."""
    machine = start(network, guest("mesh_atomics"), 2)
    try:
        assert not stands_still(machine, victim)
        began = time.monotonic()
        os.kill(machine.pid(victim), signal.SIGSTOP)
        end = machine.call("wait", 15.0, timeout=30, host=1 - victim)
        assert time.monotonic() - began <= SECONDS_TO_NOTICE, end
        assert end is not None and end.kind in LOST, end
        os.kill(machine.pid(victim), signal.SIGCONT)
        own = machine.call("wait", 5.0, timeout=30, host=victim)
        assert own is not None and own.kind in LOST, own
        assert stands_still(machine, 0)
        assert stands_still(machine, 1)
    finally:
        machine.close()


def test_given_hosts_that_come_late_when_they_are_ever_later_then_the_machine_goes_on_until_one_is_dead(
    network: Network, guest: Callable[[str], bytes]
) -> None:
    """As on a computer that becomes busy: a host is without a core for longer than a lease is at first."""
    machine = start(network, guest("mesh_atomics"), 2)
    try:
        for late in (0.4, 0.8, 1.2, 1.9, 2.6):
            for victim in (1, 0):
                os.kill(machine.pid(victim), signal.SIGSTOP)
                time.sleep(late)
                os.kill(machine.pid(victim), signal.SIGCONT)
                time.sleep(0.5)
            assert machine.call("wait", 0.1) is None, late
        assert not stands_still(machine, 0)
        assert not stands_still(machine, 1)
        row = machine.mesh_stats()[0]
        assert int(row["silence_longest_ns"]) > 2.5e9
        assert int(row["heartbeat_late_longest_ns"]) > 2e9
        # A dead one is noticed later than on an idle computer, and the other has stopped as ever.
        began = time.monotonic()
        os.kill(machine.pid(1), signal.SIGKILL)
        end = machine.call("wait", 15.0, timeout=30)
        assert time.monotonic() - began <= SECONDS_TO_NOTICE_WHEN_LATE, end
        assert end is not None and end.kind in LOST, end
        assert stands_still(machine, 0)
    finally:
        machine.close()
