# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's driver on a network card of several pairs of queues: a socket on each vCPU, all at once."""

import hashlib
import re
import socketserver
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.core.errors import ImageFetchError

pytestmark = pytest.mark.linux

# Each vCPU sends a file of its own and reads it back.
LOAD = """
cat >/load <<'END'
seq $1 $(($1 + 20000)) >/tmp/$1.sent
taskset -c $1 nc 10.0.2.2 {port} </tmp/$1.sent >/tmp/$1.back
cmp /tmp/$1.sent /tmp/$1.back && echo whole
END
for cpu in $(seq 0 $(($(nproc) - 1))); do sh /load $cpu & done | sort | uniq -c
"""


@pytest.fixture
def debian() -> Iterator[DebianImage]:
    try:
        yield fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    shutdown()


class Echo(socketserver.BaseRequestHandler):
    """Gives back what comes, when all has come."""

    def handle(self) -> None:
        data = b""
        while part := self.request.recv(1 << 16):
            data += part
            if data.endswith(b"\n") and data.count(b"\n") == 20001:
                break
        self.server.seen.append(hashlib.sha256(data).hexdigest())  # type: ignore[attr-defined]
        self.request.sendall(data)


@pytest.fixture
def port() -> Iterator[tuple[int, list[str]]]:
    """A server of this computer, and the hashes of what came."""

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 512
        daemon_threads = True

    with Server(("127.0.0.1", 0), Echo) as server:
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], server.seen  # type: ignore[attr-defined]
        server.shutdown()


@pytest.mark.parametrize(
    ("vcpus", "queues", "memory"),
    [
        pytest.param(3, 3, "256M", marks=pytest.mark.timeout(400)),
        pytest.param(255, 8, "4G", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_a_socket_on_each_vcpu(
    debian: DebianImage, port: tuple[int, list[str]], vcpus: int, queues: int, memory: str
) -> None:
    """Given a card of several pairs of queues, when each vCPU has a connection, then every byte comes back.

    The driver uses all pairs, and each has interrupts of its own.
    """
    pytest.importorskip("ctypes").CDLL("libslirp.so.0")
    number, seen = port
    with Machine(
        vcpus,
        memory,
        debian.kernel,
        debian.initramfs(network="dhcp"),
        net=f"user,queues={queues}",
        append="quiet",
    ) as machine:
        machine.wait_shell(1000)
        found = machine.run(LOAD.format(port=number), 1500)
        assert re.fullmatch(rf" *{vcpus} whole\n", found.output)
        lines = machine.run("grep -E 'virtio.-(input|output)' /proc/interrupts", 100).output.splitlines()
        assert len(lines) == 2 * queues
        busy = [line for line in lines if sum(map(int, re.findall(r" (\d+)(?= )", line.split(":")[1]))) > 0]
        assert len(busy) > queues
        counts = machine.device_stats().loc["virtio-net0"]
        assert counts["pairs_used"] == queues and counts["resets_needed"] == 0
        assert counts["bytes_received"] > vcpus * 100_000
    assert len(seen) == vcpus and len(set(seen)) == vcpus
