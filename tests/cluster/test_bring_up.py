# SPDX-License-Identifier: GPL-2.0-or-later
"""A host process that stands still before the guest runs: every step has a deadline, and says which host."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster.launch import session, warden
from coremesh.cluster.launch.child import Child
from coremesh.cluster.machine.bring_up import STEPS, Step
from coremesh.core.errors import HostLostError

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("one_ray")]

DEADLINE = 3.0


def parent(place: Path) -> int:
    return int((place / "stat").read_text().rpartition(")")[2].split()[1])


class Stopper:
    """Sends SIGSTOP to the process of a host when the driver is about to ask it for `step`."""

    def __init__(self, step: str, host: int, hosts: int) -> None:
        self.step = step
        self.title = b"ray::DeviceHost" if host == 0 else b"ray::HostProcess"
        self.child = hosts == 1
        self.stopped: list[int] = []
        self._before = set(self._processes())

    def _processes(self) -> list[int]:
        found = []
        if self.child:
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    command = (place / "cmdline").read_bytes()
                    if b"coremesh.cluster.machine.host_server" in command and parent(place) == os.getpid():
                        found.append(int(place.name))
            return found
        for pid in warden.writers(str(Path(session.own_environment()["RAY_AUTH_TOKEN_PATH"]).parent)):
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(self.title):
                    found.append(pid)
            except OSError:
                continue
        return found

    def begin(self, method: str) -> None:
        if method != self.step or self.stopped:
            return
        if method == "examine":  # asked for before there is a process
            threading.Thread(target=self._stop, daemon=True).start()
        else:
            self._stop()

    def _stop(self) -> None:
        deadline = time.monotonic() + 60
        while not (new := set(self._processes()) - self._before):
            assert time.monotonic() < deadline
        for pid in new:
            os.kill(pid, signal.SIGSTOP)
            self.stopped.append(pid)


@pytest.fixture
def standing_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stopper]]:
    """A function that lets a host stand still at a step, whose deadline is short now."""
    made: list[Stopper] = []

    def arrange(step: str, host: int, hosts: int = 2) -> Stopper:
        session.ensure()
        stopper = Stopper(step, host, hosts)
        made.append(stopper)
        # The process of `examine` must have come up to be stopped.
        seconds = 20.0 if step == "examine" else DEADLINE
        monkeypatch.setitem(STEPS, step, Step(STEPS[step].doing, seconds))
        kind: Any = session.Remote if hosts > 1 else Child
        real = kind.begin

        def begin(self: Any, method: str, *arguments: Any) -> Any:
            stopper.begin(method)
            return real(self, method, *arguments)

        monkeypatch.setattr(kind, "begin", begin)
        return stopper

    yield arrange
    for stopper in made:
        for pid in stopper.stopped:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def bring_up(kernel: Path, hosts: int) -> str:
    """Start a machine that cannot be; return what the person is told."""
    from coremesh.cluster.launch.machine import Machine

    with pytest.raises(HostLostError) as told:
        Machine(None, "16M", kernel, hosts=hosts)
    return str(told.value)


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def kernel(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Path:
    file = tmp_path / "kernel"
    file.write_bytes(tiny_guest(b"\xeb\xfe"))
    return file


def check(kernel: Path, stopper: Stopper, hosts: int, name: str) -> None:
    said = bring_up(kernel, hosts)
    assert name in said
    assert f"while {STEPS[stopper.step].doing}" in said
    assert stopper.stopped
    assert gone(stopper.stopped, 5), "a process that stands still is left"


@pytest.mark.parametrize("step", ["prepare", "start"])
def test_given_two_hosts_when_one_stands_still_before_the_start_then_it_is_named_and_ended(
    standing_still: Callable[..., Stopper], kernel: Path, step: str
) -> None:
    check(kernel, standing_still(step, 1), 2, "host 1")


def test_given_one_host_when_it_stands_still_before_the_start_then_it_is_told_and_ended(
    standing_still: Callable[..., Stopper], kernel: Path
) -> None:
    check(kernel, standing_still("prepare", 0, 1), 1, "the process that ran the vCPUs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "host"),
    # Host 0 keeps no portion of what it hands out, and no other host hands out any; an asked-for portion is
    # waited for by the host that lays it.
    [
        (step, host)
        for step in STEPS
        for host in (0, 1)
        if (step, host) != ("lay", 0) and step != "portion_of"
    ],
)
def test_given_two_hosts_when_one_stands_still_at_any_step_then_it_is_named_and_ended(
    standing_still: Callable[..., Stopper], kernel: Path, step: str, host: int
) -> None:
    # While the hosts look for each other, each misses the other one.
    check(kernel, standing_still(step, host), 2, "host" if step == "join" else f"host {host}")
