# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's drivers on virtio devices: what all vCPUs write at once is there, and the host finds it sound."""

import hashlib
import http.server
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import ext4_load
import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.hw.backend.network.switch import Switch

pytestmark = pytest.mark.linux


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("vcpus", "hosts"), [(4, 1), (4, 2)], ids=["one-host", "two-hosts"])
def test_ext4_holds_what_all_vcpus_write(debian: DebianImage, image: Path, vcpus: int, hosts: int) -> None:
    """Given an ext4 image as a virtio disk, when every vCPU writes to it at once, also from another host.

    Then each reads its own bytes back, every queue has interrupted, and the host's fsck finds nothing.
    """
    disk = Disk(image, interface="virtio")
    with Machine(
        vcpus, "512M", debian.kernel, debian.initramfs(disks=True), hosts=hosts, disks=[disk], append="quiet"
    ) as machine:
        machine.wait_shell(200)
        wanted = machine.run(ext4_load.ONE_VCPUS_SUM, 60).output
        assert re.fullmatch(r"[0-9a-f]{64}  -\n", wanted)
        result = machine.run(ext4_load.on("vda"), 200)
        assert (result.status, result.output) == (0, wanted * vcpus)
        interrupts = machine.run("grep 'MSI.*virtio.*req' /proc/interrupts", 60).output.splitlines()
        assert len(interrupts) == vcpus, "a queue for each vCPU, each with a vector of its own"
        assert machine.run("dmesg | grep -E 'I/O error|EXT4-fs error'", 60).output == ""
        counts = machine.device_stats().loc["virtio-blk0"]
        assert counts["writes"] > vcpus and counts["reads"] > 0 and counts["flushes"] > 0
        assert counts["bytes_written"] > vcpus * 100_000
        assert counts["errors"] == counts["resets_needed"] == 0
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's bytes."""

    def do_GET(self) -> None:
        data = self.server.data  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    """A web server of this computer, as a guest reaches it through its gateway."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        server.data = bytes(range(256)) * 8192  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("vcpus", "hosts"), [(2, 1), (2, 2)], ids=["one-host", "two-hosts"])
def test_tcp_both_ways_through_user_nat(
    debian: DebianImage, server: http.server.HTTPServer, tmp_path: Path, vcpus: int, hosts: int
) -> None:
    """Given a card on the user network, then the guest has an address, and TCP works in both directions.

    Every byte arrives; a port that is forwarded while the guest runs leads to it; the capture has it all.
    """
    pytest.importorskip("ctypes").CDLL("libslirp.so.0")
    data: bytes = server.data  # type: ignore[attr-defined]
    digest = hashlib.sha256(data).hexdigest()
    with Machine(
        vcpus,
        "256M",
        debian.kernel,
        debian.initramfs(network="dhcp"),
        hosts=hosts,
        net="user",
        append="quiet",
    ) as machine:
        machine.wait_shell(200)
        machine.capture(tmp_path / "c.pcap")
        assert "inet 10.0.2.15/24" in machine.run("ip address show eth0", 60).output
        fetched = machine.run(f"wget -q -O - http://10.0.2.2:{server.server_port}/ | sha256sum", 120)
        assert fetched.output == f"{digest}  -\n"
        port = machine.forward("tcp:0:7")
        machine.run("nc -l -p 7 </dev/null >/tmp/in & echo $! >/tmp/pid; sleep 1", 60)
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(120)
            assert connection.recv(1) == b""
        sent = machine.run("while [ -d /proc/$(cat /tmp/pid) ]; do sleep 0.1; done; sha256sum </tmp/in", 120)
        assert sent.output == f"{digest}  -\n"
        port = machine.forward("tcp:0:8")
        machine.run("nc -l -p 8 </tmp/in >/dev/null & sleep 1", 60)
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.settimeout(120)
            with connection.makefile("rb") as stream:
                assert hashlib.sha256(stream.read(len(data))).hexdigest() == digest
        counts = machine.device_stats().loc["virtio-net0"]
        assert counts["bytes_sent"] > len(data) and counts["bytes_received"] > 2 * len(data)
        assert counts["resets_needed"] == 0
    assert (tmp_path / "c.pcap").stat().st_size > 2 * len(data)


@pytest.mark.timeout(400)
def test_two_machines_meet_at_a_switch(debian: DebianImage, tmp_path: Path) -> None:
    """Given two machines on one switch, when they have addresses, then one reads what the other serves."""
    with Switch(f"unix:{tmp_path}/s") as switch:
        machines = [
            Machine(
                1,
                "256M",
                debian.kernel,
                debian.initramfs(network="manual"),
                net=f"switch={switch.address}",
                append="quiet",
            )
            for _ in range(2)
        ]
        for number, machine in enumerate(machines, 1):
            machine.wait_shell(200)
            machine.run(f"ip addr add 192.168.7.{number}/24 dev eth0; ip link set eth0 up", 60)
        served = machines[0].run("seq 100000 >/tmp/f; httpd -p 80 -h /tmp; sha256sum </tmp/f", 60)
        found = machines[1].run("wget -q -O - http://192.168.7.1/f | sha256sum", 120)
        assert (found.status, found.output) == (0, served.output)
        assert switch.counts()["frames"] > 400
        for machine in machines:
            machine.stop()
