# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's driver on a virtio console: a shell on hvc0, its size, and a port to a program here."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.core.errors import ImageFetchError

pytestmark = pytest.mark.linux


@pytest.fixture(autouse=True)
def debian() -> Iterator[None]:
    try:
        fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    yield
    shutdown()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("vcpus", "hosts"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.slow)], ids=["one-host", "two-hosts"]
)
def test_a_shell_on_hvc0_and_a_port_beside_it(tmp_path: Path, vcpus: int, hosts: int) -> None:
    """Given a virtio console with a port, then the shell is on hvc0, nothing it prints is lost or doubled.

    The terminal's size follows the person's; the port carries bytes both ways; the log has it all.
    """
    console = f"virtio,log={tmp_path}/log,port=org.example.port:{tmp_path}/port"
    with Machine(vcpus, "256M", hosts=hosts, console=console) as machine:
        machine.wait_shell(300)
        assert machine.run("cat /sys/class/tty/console/active", 60).output == "hvc0\n"
        assert machine.run("seq 20000", 200).output == "".join(f"{n}\n" for n in range(1, 20001))
        assert machine.run("cat /sys/class/virtio-ports/vport*p1/name", 60).output == "org.example.port\n"
        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(60)
            program.connect(f"{tmp_path}/port")
            # One program at a time may open a port: it reads a line first, and then writes.
            machine.run("{ read -r line; echo $line >/tmp/in; seq 1000 >&0; } <>/dev/vport0p1 & sleep 1", 60)
            program.sendall(b"from the host\n")
            wanted = b"".join(b"%d\n" % n for n in range(1, 1001))
            data = b""
            while len(data) < len(wanted):
                data += program.recv(65536)
            assert data == wanted
            assert machine.run("cat /tmp/in", 60).output == "from the host\n"
        machine.console.resize(132, 43)
        assert machine.run("sleep 1; stty -F /dev/hvc0 size", 60).output == "43 132\n"
        counts = machine.device_stats().loc["virtio-console"]
        assert counts["bytes_sent"] > 100_000 and counts["resets_needed"] == 0
    assert b"19999\n20000\n" in (tmp_path / "log").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_given_the_debian_disk_when_its_console_is_virtio_then_root_logs_in_on_hvc0() -> None:
    """By its kernel alone: systemd starts a login on the console that the kernel was given."""
    try:
        machine = Machine(2, "1G", disks=["debian,if=virtio,snapshot"], console="virtio", append="quiet")
    except ImageFetchError as error:
        pytest.skip(str(error))
    with machine:
        machine.wait_shell(400)
        assert machine.run("systemctl is-active serial-getty@hvc0", 60).output == "active\n"
        assert machine.run("seq 5000 | tail -n 1", 60).output == "5000\n"
        assert machine.run("systemctl --failed --no-legend --plain | cat", 60).output.strip() == ""
