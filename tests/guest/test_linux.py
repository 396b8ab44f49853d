# SPDX-License-Identifier: GPL-2.0-or-later
"""An unmodified Debian kernel on many cores: each comes up and works, all agree, it switches itself off."""

import re
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage

pytestmark = pytest.mark.linux

# A load for each core, bound to it, that gives a sum to compare and leaves that core's share of time behind.
LOAD = """
for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset -c $cpu sh -c 'seq {lines} | sha256sum' >/tmp/sum.$cpu &
done
wait
cat /tmp/sum.*
"""

ONE_SUM = "seq {lines} | sha256sum"


@pytest.fixture
def booted(debian: DebianImage) -> Iterator[Callable[..., Machine]]:
    """Boot Linux and wait for its shell; stop it at the end."""
    machines: list[Machine] = []

    def boot(vcpus: int, memory: str, seconds: float) -> Machine:
        machines.append(Machine(vcpus, memory, debian.kernel, debian.initramfs(), append="quiet"))
        machines[-1].wait_shell(seconds)
        return machines[-1]

    yield boot
    for machine in machines:
        machine.stop()


def check(machine: Machine, lines: int, seconds: float) -> None:
    vcpus = machine.vcpus
    assert machine.run("nproc", seconds).output == f"{vcpus}\n"
    assert machine.run("grep -c ^processor /proc/cpuinfo", seconds).output == f"{vcpus}\n"
    before = machine.stats()["run_ns"]
    wanted = machine.run(ONE_SUM.format(lines=lines), seconds).output
    assert re.fullmatch(r"[0-9a-f]{64}  -\n", wanted)
    result = machine.run(LOAD.format(lines=lines), seconds)
    assert result.status == 0
    assert result.output == wanted * vcpus, "a core got another sum"
    stats = machine.stats()
    assert (stats["run_ns"] > before).all(), "a core did not work"
    assert (stats["translations"] > 100).all()
    assert (stats["interrupts"] > 0).all()
    complaints = machine.run("dmesg | grep -E 'BUG|Oops|WARNING:|unstable|soft lockup|rcu.*stall'", seconds)
    assert complaints.output == ""
    machine.console.write("poweroff -f\n")
    end = machine.wait(seconds)
    assert end is not None
    assert (end.kind, end.exit_status) == ("power-off", 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_every_core_works_and_all_agree(booted: Callable[..., Machine], vcpus: int) -> None:
    check(booted(vcpus, "512M", 120), 20_000, 120)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("vcpus", [64, 255])
def test_every_one_of_many_cores_works_and_all_agree(booted: Callable[..., Machine], vcpus: int) -> None:
    check(booted(vcpus, "2G", 500), 500, 600)


@pytest.mark.timeout(300)
def test_memory_above_four_gigabytes_is_there_and_holds(booted: Callable[..., Machine]) -> None:
    """Given 5 GiB, when a file is made, then the pages come from above 4 GiB and read back unharmed."""
    machine = booted(2, "5G", 120)
    assert int(machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo", 60).output) > 4_700_000
    assert "100000000-" in machine.run("cat /proc/iomem", 60).output
    # Linux fills the zone above 4 GiB, "Normal", before the ones below.
    free = "awk '/zone +Normal/ {n = 1} n && /pages free/ {print $3; exit}' /proc/zoneinfo"
    before = int(machine.run(free, 60).output)
    wanted = machine.run("seq 4000000 | sha256sum", 120).output
    assert machine.run("seq 4000000 >/tmp/f; sha256sum </tmp/f", 120).output == wanted
    assert before - int(machine.run(free, 60).output) > 5000


@pytest.mark.timeout(300)
def test_cores_go_off_and_on_again(booted: Callable[..., Machine]) -> None:
    """Given a running guest, when a core is taken out and brought back, then it starts anew and works."""
    machine = booted(2, "512M", 120)
    online = "/sys/devices/system/cpu/cpu1/online"
    assert (
        machine.run(f"for i in 1 2 3; do echo 0 >{online}; nproc; echo 1 >{online}; nproc; done", 120).output
        == "1\n2\n" * 3
    )
    assert machine.run("taskset -c 1 seq 3", 60).output == "1\n2\n3\n"


@pytest.mark.timeout(300)
def test_the_guests_clock_keeps_the_hosts_time(booted: Callable[..., Machine]) -> None:
    machine = booted(2, "512M", 120)
    assert abs(int(machine.run("date +%s", 60).output) - time.time()) < 5
    assert (
        machine.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", 60).output
        == "tsc\n"
    )
    begin = time.monotonic()
    machine.run("sleep 3", 60)
    assert 3 <= time.monotonic() - begin < 10
