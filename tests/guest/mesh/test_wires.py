# SPDX-License-Identifier: GPL-2.0-or-later
"""One memory over each real wire, where a vCPU that waits for a page receives it itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED
from mesh_machine import MeshMachine, run_on_mesh

pytestmark = pytest.mark.timeout(180)

LENDING = ("shm", "tcp")
GUESTS = {
    "mesh_atomics": "ms=6",
    "mesh_order": "batches=2",
    "mesh_smc": "strict generations=12",
    "mesh_work": "",
    "mesh_ipi": "",
}


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait receive, however few cores there are."""
    monkeypatch.setenv("COREMESH_LINK_LEND", "1")


@pytest.mark.parametrize("wire", LENDING)
@pytest.mark.parametrize("theme", GUESTS)
def test_given_a_real_wire_when_hosts_share_memory_then_all_holds_and_waiting_threads_receive(
    guest: Callable[[str], Path], theme: str, wire: str, receiving: None
) -> None:
    result = run_on_mesh(guest(theme), shares=(2, 1, 1), cmdline=GUESTS[theme], wire=wire)
    assert result.status == PASSED, result.story()
    assert result.between("own_receives") > 100, result.story()


def test_given_zeromq_when_hosts_share_memory_then_the_protocol_thread_alone_receives(
    guest: Callable[[str], Path],
) -> None:
    result = run_on_mesh(guest("mesh_atomics"), shares=(1, 1), cmdline="ms=6", wire="zmq")
    assert result.status == PASSED, result.story()
    assert result.between("own_receives") == 0


@pytest.mark.parametrize("wire", [*LENDING, "zmq"])
def test_given_vcpus_that_wait_for_pages_when_the_machine_is_stopped_then_it_is_gone_at_once(
    guest: Callable[[str], Path], wire: str, receiving: None
) -> None:
    """At moments of all kinds: whichever thread receives then lets go."""
    for round_ in range(6):
        machine = MeshMachine(
            guest("mesh_load").read_bytes(), shares=(2, 1), cmdline="fight ms=60000", wire=wire
        )
        try:
            machine.start()
            time.sleep(0.1 + 0.013 * round_)
        finally:
            begun = time.monotonic()
            machine.stop()
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("wire", LENDING)
def test_given_vcpus_that_wait_for_pages_when_they_are_paused_then_they_park_and_go_on(
    guest: Callable[[str], Path], wire: str, receiving: None
) -> None:
    with MeshMachine(
        guest("mesh_load").read_bytes(), shares=(2, 1), cmdline="fight ms=1500", wire=wire
    ) as machine:
        machine.start()
        for _ in range(10):
            time.sleep(0.03)
            machine.pause()
            machine.resume()
        result = machine.finish()
    assert result.status == PASSED, result.story()
