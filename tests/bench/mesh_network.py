# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage of tests/netns for the benchmarks, and the TCP floor between the same hosts. Needs root."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "netns"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "guest"))

from host_processes import NetworkMachine, description_of
from network import Network

__all__ = [
    "PAGE_BYTES",
    "REQUEST_BYTES",
    "NetworkMachine",
    "OneComputer",
    "TcpFloor",
    "description_of",
    "stage_of",
]

HERE = Path(__file__).resolve().parent
REQUEST_BYTES = 112  # a link's frame with one message of the page protocol
PAGE_BYTES = 4096
FLOOR_PORT = 7171


class OneComputer(Network):
    """Hosts that are processes of this computer and namespace, as shared memory needs them."""

    def __init__(self, hosts: int) -> None:
        super().__init__(hosts)

    def address(self, host: int) -> str:
        """The loopback's: the only one that all have."""
        return "127.0.0.1"

    def command(self, host: int, *words: str) -> list[str]:
        """The words as they are."""
        return list(words)

    def __enter__(self) -> OneComputer:
        return self

    def close(self) -> None:
        """Nothing was made."""


def stage_of(network: Network, wire: str) -> Network:
    """Where a machine on ``wire`` runs: on ``network``, or without one."""
    return OneComputer(network.hosts) if wire == "shm" else network


class TcpFloor:
    """Blocking TCP round trips between hosts 1 and 0 of a network."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "tcp_floor"
        source = HERE / "tcp_floor.c"
        subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-o", self._program, source], check=True)

    def measure(self, network: Network, reply: int, count: int = 1000) -> float:
        """The median in microseconds of questions of one message that are answered by ``reply`` bytes."""
        sizes = [str(REQUEST_BYTES), str(reply)]
        serve = network.command(0, str(self._program), "serve", str(FLOOR_PORT), *sizes)
        with subprocess.Popen(serve, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            ask = [str(self._program), "ask", network.address(0), str(FLOOR_PORT), *sizes, str(count)]
            done = subprocess.run(network.command(1, *ask), check=True, capture_output=True, text=True)
        found = re.search(r"median_ns=(\d+)", done.stdout)
        assert found is not None, done.stdout
        return int(found[1]) / 1000
