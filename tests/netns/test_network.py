# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage itself: hosts with addresses, cables that can be cut, delays, Ray; and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, StoryError
from network import NETNS, PREFIX, Network, sweep
from ray_nodes import RayNodes

PORT = 7777
ECHO = f"""
import socket
server = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := peer.recv(4096):
        peer.sendall(data)
"""


@contextlib.contextmanager
def echoed(network: Network) -> Iterator[socket.socket]:
    """A connection from host 1 to a program on host 0 that sends everything back."""
    command = network.command(0, sys.executable, "-c", ECHO)
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        with network.entered(1):
            connection = socket.create_connection((network.address(0), PORT), 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            yield connection
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def round_trip(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return time.monotonic() - began


@pytest.mark.parametrize("delay_us", [0, 2000])
def test_given_two_hosts_when_the_cable_is_cut_and_mended_then_the_connection_stands_still_and_goes_on(
    delay_us: int,
) -> None:
    with Network(2, delay_us) as network, echoed(network) as connection:
        assert min(round_trip(connection) for _ in range(5)) >= 2e-6 * delay_us
        network.cut(1)
        connection.settimeout(0.3)
        connection.sendall(b"y")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        network.mend(1)
        connection.settimeout(10)
        assert connection.recv(1) == b"y"


def test_given_a_process_that_hangs_on_a_host_when_the_network_is_closed_then_nothing_is_left() -> None:
    with Network(1) as network:
        # It ignores what can be ignored, is stopped, and is nobody's child any more.
        subprocess.run(network.command(0, "sh", "-c", "trap '' TERM HUP; sleep 99 &"), check=True)
        [pid] = network.processes(0)
        os.kill(pid, signal.SIGSTOP)
        name = network.namespace(0)
    assert not (NETNS / name).exists()
    deadline = time.monotonic() + 5
    while Path("/proc", str(pid)).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/proc", str(pid)).exists()


def test_given_a_process_that_was_killed_when_the_next_one_sweeps_then_its_hosts_are_gone() -> None:
    program = (
        "import sys, time, network; network.Network(2).__enter__(); print('up', flush=True); time.sleep(99)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert list(NETNS.glob(f"{PREFIX}{child.pid}-*"))
    sweep()
    assert not list(NETNS.glob(f"{PREFIX}{child.pid}-*"))


def fails() -> None:
    raise ValueError("this and that")


def pid_there() -> int:
    return os.getpid()


def test_given_a_function_when_it_is_sent_to_a_host_then_it_runs_there_and_its_errors_come_back() -> None:
    with Network(1) as network, Driver(network) as driver:
        assert driver.run(20, pid_there) in network.processes(0)
        with pytest.raises(StoryError, match="this and that"):
            driver.run(20, fails)
        with pytest.raises(TimeoutError):
            driver.run(0.2, time.sleep, 60)


def places() -> list[str]:
    """The addresses of two actors of a placement group that asks for different nodes."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Actor:
        def address(self) -> str:
            return str(ray.util.get_node_ip_address())

    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    try:
        remote: Any = ray.remote(num_cpus=1)
        actors = [
            remote(Actor).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
            for index in range(2)
        ]
        return [str(address) for address in ray.get([actor.address.remote() for actor in actors], timeout=60)]
    finally:
        remove_placement_group(group)


@pytest.mark.timeout(120)
def test_given_ray_on_every_host_when_a_group_is_spread_then_its_actors_have_different_addresses(
    ray_nodes: RayNodes,
) -> None:
    found = ray_nodes.driver.run(60, places)
    assert len(set(found)) == 2
    assert set(found) <= {ray_nodes.network.address(host) for host in range(ray_nodes.network.hosts)}
