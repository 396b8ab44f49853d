# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that are forked from a process that is ready, as the trials of a sweep have them."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch import nursery
from coremesh.cluster.launch.machine import Machine
from coremesh.core.errors import HostLostError

SPIN = b"\xeb\xfe"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process forks its hosts during a test."""
    monkeypatch.setattr(nursery, "_wanted", False)
    monkeypatch.setattr(nursery, "_nursery", None)
    nursery.keep()
    yield
    if nursery._nursery is not None:
        nursery._nursery.close()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.usefixtures("kept")
def test_given_a_nursery_when_machines_start_then_each_is_a_fork_of_it_and_all_end_with_it(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    kernel = tiny_guest(SPIN)
    pids = []
    for _ in range(2):
        with Machine(kernel=kernel, memory="16M") as machine:
            pids.append(machine.facts["pid"])
            ready = parent(pids[-1])
            assert ready != os.getpid()
            assert os.getpgid(pids[-1]) == pids[-1], "Ctrl-C in a terminal is the driver's"
        assert machine.state == "stopped"
    assert pids[0] != pids[1]
    assert parent(ready) == os.getpid()
    machine = Machine(kernel=kernel, memory="16M")
    os.kill(machine.facts["pid"], signal.SIGKILL)
    with pytest.raises(HostLostError, match="SIGKILL"):
        machine.wait(60)
    os.kill(ready, signal.SIGKILL)
    with Machine(kernel=kernel, memory="16M") as machine:
        assert machine.state == "running", "without the nursery it starts in another way"
    with Machine(kernel=kernel, memory="16M") as machine:
        another = parent(machine.facts["pid"])
    assert another not in (ready, os.getpid()), "and the next has a new one"
    assert nursery._nursery is not None
    nursery._nursery.close()
    deadline = time.monotonic() + 30
    while os.waitpid(another, os.WNOHANG)[0] == 0:
        assert time.monotonic() < deadline, "it lives without its driver"
        time.sleep(0.05)


@pytest.mark.usefixtures("kept")
def test_given_a_host_that_ended_when_many_threads_ask_at_once_then_all_are_told() -> None:
    """A process's status can be had once only: who asks second must not ask the nursery."""

    def started() -> tuple[nursery.HostProgram, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            return nursery.start(theirs, 2), ours

    for _ in range(3):
        host, connection = started()
        assert isinstance(host, nursery._Fork), "the nursery has gone"
        host.kill()
        assert select.select([host._descriptor], [], [], 30)[0]
        together = threading.Barrier(16)

        def ask(host: nursery.HostProgram = host, together: threading.Barrier = together) -> int | None:
            together.wait()
            return host.poll()

        with ThreadPoolExecutor(16) as pool:
            answers = [asked.result() for asked in [pool.submit(ask) for _ in range(16)]]
        connection.close()
        assert answers == [-signal.SIGKILL] * 16
