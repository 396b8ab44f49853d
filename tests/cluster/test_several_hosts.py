# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines of two hosts on this computer, through a real Ray: what a person sees, and how they end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.attached import PythonDevice
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.cmdline import several_hosts
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core._native import link_priority
from coremesh.core.errors import ConfigurationError, HostLostError, MachineStateError

pytestmark = [pytest.mark.usefixtures("one_ray"), pytest.mark.timeout(300)]

HI_AND_HANG = bytes.fromhex("66baf803b068eeb069ee") + b"\xeb\xfe"  # "hi" to COM1, jmp $
EXIT_5 = bytes.fromhex("66baf400b805000000ef") + b"\xeb\xfe"  # out 0xf4, 5
SECONDS_TO_NOTICE = 3.0 if link_priority() in ("fifo", "nice") else 5.0


@pytest.fixture
def tiny(tiny_guest: Callable[[bytes], bytes]) -> Iterator[Callable[..., Machine]]:
    """Start machines of a few bytes of code; all are stopped at the end."""
    machines: list[Machine] = []

    def start(code: bytes, hosts: Any = 2, wire: str = "auto") -> Machine:
        machines.append(Machine(None, "16M", tiny_guest(code), hosts=hosts, wire=wire))
        return machines[-1]

    yield start
    for machine in machines:
        machine.stop()


def pids(machine: Machine) -> list[int]:
    return [row["pid"] for row in machine.facts["hosts"]]


def gone(numbers: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{number}").exists() for number in numbers):
            return True
        time.sleep(0.02)
    return False


def placement_groups() -> int:
    """How many the cluster has that were not given back."""
    from ray.util.placement_group import placement_group_table

    table: Any = placement_group_table()
    return sum(row["state"] != "REMOVED" for row in table.values())


# --- running ---------------------------------------------------------------------------------------------


def test_a_machine_of_two_hosts_is_two_processes_and_one_machine(tiny: Callable[..., Machine]) -> None:
    machine = tiny(HI_AND_HANG, hosts=[2, 1])
    machine.console.expect("hi", 30)
    assert (machine.vcpus, machine.shares, machine.state) == (3, (2, 1), "running")
    assert len(set(pids(machine))) == 2
    assert machine.warning == "", "nobody has named a cluster: one computer is what was asked for"
    assert machine.stats()["host"].tolist() == [0, 0, 1]
    assert machine.stats()["state"].tolist() == ["running", "wait-for-sipi", "wait-for-sipi"]
    assert "3 vCPUs on 2 hosts" in repr(machine)
    shown = machine._repr_html_()
    assert "read_fetches" in shown
    assert "wait-for-sipi" in shown


def test_a_transaction_from_any_host_meets_the_same_memory_and_is_counted(
    tiny: Callable[..., Machine],
) -> None:
    """Given a page at home on host 0, when both hosts add to it, then no addition is lost."""
    machine = tiny(HI_AND_HANG)
    for number in range(20):
        assert machine.transact("add", 0x8000, 8, 1, host=number % 2) == number
    assert machine.read_memory(0x8000, 8) == (20).to_bytes(8, "little")
    assert machine.transact("compare_swap", 0x8000, 16, 7 << 64, 20, host=1) == 20
    assert machine.transact("load", 0x8008, 8) == 7
    table = machine.mesh_stats()
    assert table.index.tolist() == [0, 1]
    assert table["links_sent_frames"].min() > 0
    assert table["links_refused"].max() == 0
    pages = machine.contended_pages(5)
    assert "0x8000" in pages["gpa"].tolist()
    assert pages["home"].tolist()[0] == 0
    for wrong in (("twice", 0x8000, 8), ("add", 0x8FFF, 8), ("add", 1 << 39, 8), ("add", 0x8000, 3)):
        with pytest.raises(ConfigurationError):
            machine.transact(*wrong)
    with pytest.raises(ConfigurationError, match="host 2"):
        machine.transact("load", 0x8000, 8, host=2)


def test_a_flood_of_connections_costs_the_hosts_nothing(tiny: Callable[..., Machine]) -> None:
    """Given two hosts, when a stranger opens 2,000 connections to a link's port, then they do not notice."""
    machine = tiny(HI_AND_HANG, wire="zmq")
    machine.console.expect("hi", 30)

    def spent(pid: int) -> tuple[int, float]:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    machine.pause()  # then what a host spends is spent on links
    before = {pid: spent(pid) for pid in pids(machine)}
    strangers = []
    begin = time.monotonic()
    try:
        for number in range(2000):
            address, _, port = (
                machine.facts["hosts"][number % 2]["link"].removeprefix("tcp://").rpartition(":")
            )
            strangers.append(socket.socket())
            strangers[-1].setblocking(False)
            strangers[-1].connect_ex((address, int(port)))
        time.sleep(2)
        for number in range(20):
            assert machine.transact("add", 0x8000, 8, 1, host=number % 2) == number
        seconds = time.monotonic() - begin
        for pid, (descriptors, cpu) in before.items():
            now = spent(pid)
            assert now[0] <= descriptors + 2
            assert now[1] - cpu < 0.3 * seconds
        assert machine.mesh_stats()["links_refused"].max() == 0
    finally:
        for stranger in strangers:
            stranger.close()


def test_all_hosts_pause_and_registers_are_had_of_every_one(tiny: Callable[..., Machine]) -> None:
    machine = tiny(HI_AND_HANG, hosts=[1, 2])
    machine.console.expect("hi", 30)
    with pytest.raises(MachineStateError, match="pause"):
        machine.registers(1)
    machine.pause()
    assert machine.registers(0)["rip"] >> 20 == 1
    assert machine.registers(2)["rip"] == 0xFFF0  # at reset (SDM vol. 3A, 10.1.4)
    report = machine.report()
    assert "host 0:\n  vCPU 0: running, 32-bit rip=" in report
    assert "vCPU 2: wait-for-sipi, real rip=fff0" in report
    machine.transact("add", machine.memory - 4096, 8, 1)  # brings a page of host 1 to host 0
    trace = machine.trace(5)
    assert set(trace["host"]) == {0, 1}
    assert set(trace["gpa"]) == {machine.memory - 4096}
    assert not trace["rejected"].any()
    with pytest.raises(ConfigurationError):
        machine.registers(3)
    machine.resume()
    assert machine.state == "running"


def test_one_host_has_nothing_between_hosts(tiny: Callable[..., Machine]) -> None:
    machine = tiny(HI_AND_HANG, hosts=1)
    assert "host" not in machine.stats().columns
    for ask in (machine.mesh_stats, machine.contended_pages, lambda: machine.transact("load", 0, 8)):
        with pytest.raises(MachineStateError, match="one host"):
            ask()


@pytest.fixture(scope="module")
def linux(debian: DebianImage) -> Iterator[Machine]:
    """Linux on two hosts of two vCPUs each, with the default command line."""
    with Machine(4, "512M", debian.kernel, debian.initramfs(), hosts=2) as machine:
        machine.wait_shell(280)
        yield machine


ON = "cut -d' ' -f39 /proc/$p/stat"  # the vCPU that process p runs on, or ran on last (proc(5))


@pytest.mark.linux
def test_linux_runs_over_the_wire_of_a_network_too(debian: DebianImage) -> None:
    """Hosts of one computer speak through shared memory; told to, by TCP, as those of several do."""
    with Machine(2, "512M", debian.kernel, debian.initramfs(), hosts=2, wire="tcp") as machine:
        assert machine.facts["wire"].startswith("tcp")
        machine.wait_shell(280)
        work = "nproc; taskset -c 1 cut -d' ' -f39 /proc/self/stat; head -c 4194304 /dev/zero | sha256sum"
        zeros = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"
        assert machine.run(work, 120).output == f"2\n1\n{zeros}  -\n"
        told = machine.mesh_stats()
        assert told["pages_sent"].min() > 0
        assert told[["violations", "malformed", "links_refused"]].max().max() == 0


@pytest.mark.linux
def test_linux_finds_the_vcpus_and_the_memory_of_both_hosts(linux: Machine) -> None:
    assert linux.facts["wire"].startswith("shm")
    assert linux.run("nproc; cat /sys/devices/system/node/online", 280).output == "4\n0-1\n"
    assert linux.mesh_stats()["pages_sent"].min() > 0
    assert not linux.contended_pages().empty


class Adder(PythonDevice):
    """Adds what is written."""

    total = 0

    def read(self, offset: int, size: int) -> int:
        return self.total

    def write(self, offset: int, size: int, value: int) -> None:
        self.total += value


@pytest.mark.linux
def test_a_python_device_is_attached_for_the_vcpus_of_every_host(linux: Machine) -> None:
    """Given Linux on two hosts, when a device is attached, then a vCPU of each host uses it, in order."""
    with linux.attach(adder := Adder(), mmio=0xFED0_0000) as attachment:
        for vcpu, value in enumerate((10, 20, 30, 40)):
            linux.run(f"taskset -c {vcpu} devmem 0xFED00000 32 {value}", 60)
        assert linux.run("taskset -c 3 devmem 0xFED00000 32", 60).output == "0x00000064\n"
        assert adder.total == 100 and attachment.error is None
        uses: Any = linux.device_stats(by_vcpu=True).loc[attachment.name, "accesses"]
        assert uses.to_dict() == {0: 1, 1: 1, 2: 1, 3: 2}, "counted by the machine's numbers of the vCPUs"
    assert linux.run("taskset -c 3 devmem 0xFED00000 32", 60).output == "0xFFFFFFFF\n"


@pytest.mark.linux
def test_linux_is_told_to_leave_other_hosts_alone_by_itself(linux: Machine) -> None:
    """Given the defaults of several hosts, when Linux runs, then it has taken each of them."""
    told = linux.run(
        "cat /proc/cmdline /sys/devices/system/node/node0/distance /sys/devices/system/cpu/nohz_full;"
        "dmesg | grep -c 'Unknown kernel command line'"
    ).output.splitlines()
    assert told == [linux.cmdline, "10 100", "1-3", "0"]
    assert set(several_hosts((2, 2))) <= set(told[0].split())


@pytest.mark.linux
def test_tasks_run_on_any_host_when_that_is_asked_for(linux: Machine) -> None:
    """By affinity; by a cpuset, which also says whose memory; and by themselves where a host has too many."""
    affine = "for c in 3 0 2 1; do taskset -c $c cut -d' ' -f39 /proc/self/stat; done"
    assert linux.run(affine, 60).output == "3\n0\n2\n1\n"

    cpuset = (
        "mkdir -p /cg && mount -t cgroup2 none /cg && echo +cpuset >/cg/cgroup.subtree_control &&"
        "mkdir /cg/b && echo 1 >/cg/b/cpuset.mems && echo 2-3 >/cg/b/cpuset.cpus &&"
        "sh -c 'echo $$ >/cg/b/cgroup.procs; grep -o \"allowed_list.*\" /proc/self/status'"
    )
    assert linux.run(cpuset, 60).output == "allowed_list:\t2-3\nallowed_list:\t1\n"

    # Four busy programs that start on one host, and nothing runs on the other: an idle core there must look.
    crowd = (
        "P=; for k in 1 2 3 4; do taskset -c 0-1 sh -c 'while :; do :; done' & P=\"$P $!\"; done;"
        "for p in $P; do taskset -p f $p >/dev/null; done; n=0;"
        f"while [ $n -lt 60 ]; do for p in $P; do {ON}; done | grep -q '[23]' && echo spread && break;"
        "n=$((n+1)); sleep 0.5; done; kill $P"
    )
    linux.run(f"cat >/tmp/crowd.sh <<'END'\n{crowd}\nEND", 60)
    assert linux.run("taskset -c 0-1 sh /tmp/crowd.sh", 120).output.splitlines()[0] == "spread"


# --- ends ------------------------------------------------------------------------------------------------


def test_what_the_guest_ends_with_is_told_once_and_ends_all_hosts(tiny: Callable[..., Machine]) -> None:
    before = placement_groups()  # other stories' machines have theirs
    machine = tiny(EXIT_5)
    end = machine.wait(60)
    assert end is not None
    assert (end.kind, end.value, machine.state) == ("debug-exit", 5, "debug-exit")
    numbers = pids(machine)
    assert machine.stop() == end
    assert gone(numbers, 10)
    assert placement_groups() == before


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_host_is_told_in_three_seconds_and_nothing_is_left(
    tiny: Callable[..., Machine], victim: int, number: int
) -> None:
    before = placement_groups()
    machine = tiny(HI_AND_HANG)
    machine.console.expect("hi", 30)
    machine.transact("add", machine.memory - 4096, 8, 1)  # brings a page of host 1 to host 0
    numbers = pids(machine)
    begin = time.monotonic()
    os.kill(numbers[victim], number)
    with pytest.raises(HostLostError, match=f"host {victim}") as told:
        machine.wait(30)
    assert time.monotonic() - begin < SECONDS_TO_NOTICE
    # The host that is left says what it did: its vCPU, and the messages between the two.
    assert f"host {1 - victim}:\n  vCPU {1 - victim}: " in told.value.state
    assert "messages of the page protocol" in told.value.state
    assert machine.state == "lost"
    assert gone(numbers, 10)
    machine.stop()
    assert placement_groups() == before


def test_the_command_line_says_which_host_was_lost_and_leaves_with_status_69(
    tiny_guest: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    from coremesh.cluster.launch import telemetry

    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_guest(HI_AND_HANG))
    command = [sys.executable, "-m", "coremesh.cluster.cli", "boot", "--hosts", "2", "--kernel", str(kernel)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == b"hi"
    (shown,) = telemetry.ask(process.pid)["machines"]
    os.kill(shown["hosts"][1]["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 69
    assert b"host 1" in errors
    assert b"Traceback" not in errors


def test_what_ray_says_of_a_lost_host_does_not_get_into_the_output(
    tiny_guest: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_guest(HI_AND_HANG))
    script = (
        "import os, signal, sys, time\nfrom coremesh.cluster.launch.machine import Machine\n"
        "from coremesh.core.errors import HostLostError\n"
        "machine = Machine(None, '16M', sys.argv[1], hosts=2)\n"
        "os.kill(machine.facts['hosts'][1]['pid'], signal.SIGKILL)\n"
        "try:\n    machine.wait(30)\nexcept HostLostError:\n    time.sleep(3)  # Ray takes its time\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(kernel)], capture_output=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_after_the_driver_was_killed_no_host_is_left(
    family: Any, tiny_guest: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_guest(HI_AND_HANG))
    script = (
        "import sys, time\nfrom coremesh.cluster.launch.machine import Machine\n"
        "machine = Machine(None, '16M', sys.argv[1], hosts=2)\n"
        "print(*(row['pid'] for row in machine.facts['hosts']), flush=True)\ntime.sleep(600)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(kernel)],
        env=family.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert driver.stdout is not None
    numbers = [int(word) for word in driver.stdout.readline().split()]
    assert len(numbers) == 2
    driver.kill()
    driver.wait(30)
    assert gone(numbers, 5), "vCPUs ran on"
    assert family.wait_gone(30) == {}


# --- clusters --------------------------------------------------------------------------------------------

CLUSTER = """
import sys
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(int(sys.argv[2]) - 1):
    cluster.add_node(num_cpus=1)
from coremesh.cluster.launch.attached import PythonDevice
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
with Machine(None, "16M", sys.argv[1], hosts=2, address=cluster.address) as machine:
    machine.console.expect("hi", 60)
    print(machine.facts["placement"], machine.warning)
shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize(
    ("nodes", "words"), [(2, "STRICT_SPREAD \n"), (1, "PACK the Ray cluster has 1 node")]
)
def test_on_a_cluster_each_host_has_its_node_or_a_word_is_said(
    tiny_guest: Callable[[bytes], bytes], tmp_path: Path, nodes: int, words: str
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_guest(HI_AND_HANG))
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(kernel), str(nodes)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
