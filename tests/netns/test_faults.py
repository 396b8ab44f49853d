# SPDX-License-Identifier: GPL-2.0-or-later
"""A host is lost: the machine says so within three seconds, and nothing of it is left running anywhere.

The guest never ends by itself: its vCPUs on all hosts hammer the same page. In these stories the driver does
not end processes that it happens to see because all hosts are one computer here: on a cluster it could not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.core._native import link_priority
from driver import Driver
from ray_nodes import RayNodes

pytestmark = pytest.mark.timeout(300)

SECONDS_TO_NOTICE = 3.0 if link_priority() in ("fifo", "nice") else 5.0
SECONDS_TO_LEAVE = 15.0  # one that was cut off waits for a word for some seconds, with its vCPUs stopped
BUSY = 0.5  # the share of a processor that even one vCPU takes when it runs
ENDLESS = "only=0 ms=3000000 rounds=4000000000"


@pytest.fixture
def endless(guest: Callable[[str], bytes], ray_nodes: RayNodes) -> Iterator[bytes]:
    """A guest that works until it is stopped; the network is whole again after the test."""
    yield guest("mesh_atomics")
    for host in range(ray_nodes.network.hosts):
        ray_nodes.network.mend(host)
    ray_nodes.wait_alive(ray_nodes.network.hosts)


def cpu_seconds(pid: int) -> float | None:
    """The processor time that a process has taken; None when there is none or it has ended."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share_of_processor(pid: int, seconds: float) -> float:
    """How much of a processor the process takes for a while; 0 when it has gone."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    after = cpu_seconds(pid)
    return 0.0 if before is None or after is None else (after - before) / seconds


def lose_a_host(
    address: str, kernel: bytes, shares: list[int], victim: int, strike: list[list[str]], how: str
) -> dict[str, Any]:
    """Start the guest, do something to host ``victim``, and see what becomes of the machine.

    ``how`` is a signal's name, or 'cut': then ``strike`` has the command that cuts the host with an address
    of that last octet. The head of the cluster keeps its cable: another host is cut off from it instead.
    """
    from coremesh.cluster.launch.hosts import Hosts
    from coremesh.cluster.launch.machine import Machine
    from coremesh.core.errors import HostLostError

    Hosts._kill_visible = lambda self: None  # type: ignore[method-assign]
    seen: dict[str, Any] = {}
    machine = Machine(memory="128M", kernel=kernel, hosts=shares, cmdline=ENDLESS, address=address)
    try:
        machine.console.expect("mesh hosts", 60)
        rows = machine.facts["hosts"]
        pids = [int(row["pid"]) for row in rows]
        deadline = time.monotonic() + 30
        while min(machine.mesh_stats()["home_requests"]) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        seen["busy"] = [share_of_processor(pid, 0.4) for pid in pids]
        if how == "cut" and address.startswith(f"{rows[victim]['node']}:"):
            victim = 0
        seen["victim"] = victim
        began = time.monotonic()
        if how == "cut":
            subprocess.run(strike[int(str(rows[victim]["node"]).rpartition(".")[2])], check=True)
        else:
            os.kill(pids[victim], getattr(signal, how))
        try:
            seen["end"] = str(machine.wait(20))
        except HostLostError as error:
            seen["lost"] = str(error)
        seen["noticed"] = time.monotonic() - began
        # What is told is true: by now no vCPU of the machine runs anywhere.
        seen["still_busy"] = [share_of_processor(pid, 0.5) for pid in pids]
        if how == "SIGSTOP":
            with contextlib.suppress(ProcessLookupError):  # Ray may have ended it by now
                os.kill(pids[victim], signal.SIGCONT)
            time.sleep(0.2)
            seen["after_continue"] = share_of_processor(pids[victim], 0.5)
        gone = time.monotonic() + 15
        while any(cpu_seconds(pid) is not None for pid in pids) and time.monotonic() < gone:
            time.sleep(0.1)
        seen["left"] = [pid for pid in pids if cpu_seconds(pid) is not None]
    finally:
        with contextlib.suppress(Exception):
            machine.stop()
    return seen


def cables(ray_nodes: RayNodes) -> list[list[str]]:
    """For the last octet of a host's address, the command that pulls its cable."""
    network = ray_nodes.network
    octets = {int(network.address(host).rpartition(".")[2]): host for host in range(network.hosts)}
    return [network.cut_command(octets[octet]) if octet in octets else [] for octet in range(256)]


def judge(seen: dict[str, Any]) -> None:
    assert min(seen["busy"]) > 0.1, f"the guest did not work on all hosts before: {seen}"
    assert "lost" in seen, f"no HostLostError: {seen}"
    assert f"host {seen['victim']} " in seen["lost"], seen
    assert seen["noticed"] <= SECONDS_TO_NOTICE, seen
    assert max(seen["still_busy"]) < BUSY, f"a vCPU still runs: {seen}"
    assert seen["left"] == [], f"a process is left: {seen}"


@pytest.mark.parametrize("shares", [[1, 1], [1, 1, 1]], ids=["2-hosts", "3-hosts"])
def test_given_a_running_machine_when_a_cable_is_cut_then_both_sides_stop_and_the_loss_is_told(
    driver: Driver, ray_nodes: RayNodes, endless: bytes, shares: list[int]
) -> None:
    """The host that is cut off hears nobody, and stops its vCPUs by itself."""
    seen = driver.run(120, lose_a_host, ray_nodes.address, endless, shares, 1, cables(ray_nodes), "cut")
    judge(seen)


def test_given_a_running_machine_when_a_host_is_killed_then_the_others_stop_and_the_loss_is_told(
    driver: Driver, ray_nodes: RayNodes, endless: bytes
) -> None:
    for victim in (1, 0):
        seen = driver.run(120, lose_a_host, ray_nodes.address, endless, [1, 1, 1], victim, [], "SIGKILL")
        judge(seen)


def test_given_a_running_machine_when_a_host_is_stopped_and_continued_then_there_are_never_two_machines(
    driver: Driver, ray_nodes: RayNodes, endless: bytes
) -> None:
    """When it is continued its vCPUs do not run on, as the others have given it up."""
    seen = driver.run(120, lose_a_host, ray_nodes.address, endless, [1, 1], 1, [], "SIGSTOP")
    judge(seen)
    assert seen["after_continue"] < BUSY, seen
