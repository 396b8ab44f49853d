# SPDX-License-Identifier: GPL-2.0-or-later
"""Which resets restart a machine, and a Linux that reboots: on one host, and on two."""

import pytest
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.restart import FAULTS_IN_A_ROW, SOON_SECONDS, Restarts


def test_given_resets_when_restarts_are_wanted_then_each_is_one() -> None:
    restarts = Restarts(wanted=True)
    for second in range(10):
        assert restarts.wants(MachineEnd("reset", seconds=second / 10))
        restarts.done(second / 10)
    assert restarts.count == 10
    for kind in ("power-off", "debug-exit", "stopped", "internal-error", "host-lost"):
        assert not restarts.wants(MachineEnd(kind))
    assert not Restarts(wanted=False).wants(MachineEnd("reset"))


def test_given_a_guest_that_only_faults_when_it_has_done_so_in_a_row_then_it_ends() -> None:
    restarts = Restarts(wanted=True)
    for _ in range(FAULTS_IN_A_ROW - 1):
        assert restarts.wants(MachineEnd("triple-fault", seconds=0.1))
        restarts.done(0.0)
    assert not restarts.wants(MachineEnd("triple-fault", seconds=0.1))


def test_given_a_fault_after_some_work_when_it_comes_then_the_count_begins_anew() -> None:
    restarts = Restarts(wanted=True)
    for second in range(20):
        assert restarts.wants(MachineEnd("triple-fault", seconds=second * 2 * SOON_SECONDS))
        restarts.done(second * 2 * SOON_SECONDS - SOON_SECONDS)


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.parametrize("hosts", [1, 2])
def test_given_linux_when_it_reboots_then_it_boots_again_and_works(hosts: int) -> None:
    pytest.importorskip("coremesh.core._native", reason="the engine is not built")
    from coremesh.cluster.launch.machine import Machine
    from coremesh.core.errors import MachineStateError

    with Machine(vcpus=2, hosts=hosts, memory="512M") as machine:
        machine.run("echo before >/marker", 120)
        for life in (1, 2):
            with pytest.raises(MachineStateError, match="restarted before the command"):
                machine.run("reboot -f", 60)
            assert machine.run("nproc; ls /marker 2>&1 | wc -l; cat /marker", 120).output.startswith("2\n1\n")
            assert machine.restarts == life and machine.state == "running"
        assert set(machine.stats()["resets"]) == {2}
        machine.console.write("poweroff -f\n")
        end = machine.wait(60)
        assert end is not None and end.kind == "power-off"
