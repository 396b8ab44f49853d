# SPDX-License-Identifier: GPL-2.0-or-later
"""The fetched Debian disk: to a login and a working network, by IDE and virtio, over hosts, on many cores."""

import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images import debian_disk, ext4
from coremesh.core.errors import ImageFetchError
from debian_archive import served_archive

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("one_ray")]
slow = pytest.mark.slow

SOURCES = "/etc/apt/sources.list"
# Answers what it is told, and is there when this returns.
LISTEN = """systemd-socket-activate -l 22 --inetd -a /bin/cat >/dev/null 2>&1 &
until ss -ltn | grep -q ':22 '; do sleep 0.2; done"""
FAILED = "systemctl --failed --no-legend --plain | cat"


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where a user's own copies of the fetched disk are made."""
    try:
        debian_disk.pristine_disk()
    except ImageFetchError as error:
        pytest.skip(str(error))
    folder = tmp_path / "disks"
    monkeypatch.setenv("COREMESH_DISKS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_mib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) >> 10


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("hosts", "interface"),
    [
        (1, "ide"),  # in CI, where the disk is in the cache
        pytest.param(1, "virtio", marks=slow),
        pytest.param(2, "ide", marks=slow),
        pytest.param(2, "virtio", marks=slow),
    ],
)
def test_given_the_fetched_disk_when_it_is_booted_then_root_logs_in_and_packages_come_by_the_network(
    disks: Path, tmp_path: Path, hosts: int, interface: str
) -> None:
    """apt installs from a server of this computer, whose connections reach the guest; the disk is sound."""
    port = free_port()
    content = random.Random(hosts).randbytes(3 << 20)
    with (
        served_archive(tmp_path, content) as archive,
        Machine(
            8,
            hosts=hosts,
            disks=[f"debian,if={interface}"],
            net=f"user,forward=tcp:{port}:22",
            append="quiet",
        ) as machine,
    ):
        seconds = machine.wait_shell(600)
        print(f"\nlogin after {seconds:.1f} s", file=sys.stderr)
        assert machine.run("id -un; nproc", 60).output == "root\n8\n"
        if debian_disk.own_disk().free_logins:
            services = machine.run("nproc --all; taskset -cp 1 | cut -d: -f2", 60).output.split()
            assert services == ["8", f"0-{8 // hosts - 1}"]
            assert machine.run("lsmod | grep -c -e cfg80211 -e ^9p", 60).output == "0\n"
        assert machine.run(FAILED, 200).output == ""
        begin = time.monotonic()
        machine.run(f"echo '{archive.line}' >{SOURCES}", 60)
        got = machine.run("apt-get update && apt-get install -qy from-the-host", 400)
        assert got.status == 0, got.output
        assert "Get:" in got.output and "Setting up from-the-host" in got.output
        assert machine.run("sha256sum </srv/content", 60).output.split()[0] == archive.sha256
        print(f"apt-get update and install: {time.monotonic() - begin:.1f} s", file=sys.stderr)
        machine.run(LISTEN, 100)
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.settimeout(60)
            connection.sendall(b"from outside\n")
            assert connection.makefile("rb").readline() == b"from outside\n"
        machine.console.write("systemctl poweroff\n")
        end = machine.wait(200)
        assert end is not None and end.kind == "power-off"
    ext4.check(debian_disk.own_disk().disk)


@slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("hosts", [1, 2])
def test_given_a_new_user_when_the_printed_command_is_typed_then_it_logs_in_and_runs(
    disks: Path, hosts: int
) -> None:
    """The command that the fetch names, in a process of its own; a copy of the disk is made at first use."""
    command = [str(Path(sys.executable).with_name("coremesh")), "boot", "--disk", "debian", "--vcpus", "8"]
    command += ["--hosts", str(hosts), "--net", f"user,forward=tcp:{free_port()}:22"]
    command += ["--run", "nproc; ip -4 -o address show scope global"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("8\n") and "inet 10.0.2.15/24" in done.stdout
    assert (disks / "debian/disk.img").is_file()


@slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("interface", ["ide", "virtio"])
def test_given_255_vcpus_when_debian_boots_from_a_disk_then_root_logs_in_and_the_network_works(
    disks: Path, tmp_path: Path, interface: str
) -> None:
    content = random.Random(3).randbytes(1 << 20)
    with (
        served_archive(tmp_path, content) as archive,
        Machine(255, "4G", disks=[f"debian,if={interface},snapshot"], net="user", append="quiet") as machine,
    ):
        seconds = machine.wait_shell(1200)
        mib = resident_mib(machine.facts["pid"])
        print(f"\nlogin after {seconds:.1f} s, {mib} MiB resident", file=sys.stderr)
        assert machine.run("nproc", 120).output == "255\n"
        assert machine.run(FAILED, 400).output == ""
        machine.run(f"echo '{archive.line}' >{SOURCES}", 60)
        got = machine.run("apt-get update && apt-get install -qy from-the-host", 600)
        assert got.status == 0, got.output
        assert machine.run("sha256sum </srv/content", 60).output.split()[0] == archive.sha256
        complaints = (
            "dmesg | grep -E 'BUG|Oops|soft lockup|rcu.*stall|I/O error|EXT4-fs error|lost interrupt'"
        )
        assert machine.run(complaints, 120).output == ""
