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

from host_processes import NetworkMachine, description_of
from network import Network

pytestmark = pytest.mark.timeout(180)

SECONDS_TO_NOTICE = 3.0
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


def test_given_hosts_at_work_when_one_is_stopped_for_a_moment_then_the_machine_goes_on(
    network: Network, guest: Callable[[str], bytes]
) -> None:
    """A pause shorter than the lease is no loss."""
    machine = start(network, guest("mesh_atomics"), 2)
    try:
        os.kill(machine.pid(1), signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(machine.pid(1), signal.SIGCONT)
        assert machine.call("wait", 3.0) is None
        assert not stands_still(machine, 0)
        assert not stands_still(machine, 1)
    finally:
        machine.close()
