# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine over hosts in network namespaces, without Ray; and the TCP floor between the same hosts.

Each host is a process of its own with the parts that a Ray actor has (``coremesh.cluster.host``), driven step
by step as ``coremesh.cluster.hosts`` does it. Needs root, as tests/netns.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "netns"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "guest"))

from coremesh.cluster.description import MachineDescription, Membership
from driver import Driver
from network import Network

HERE = Path(__file__).resolve().parent
REQUEST_BYTES = 112  # a link's frame with one message of the page protocol
PAGE_BYTES = 4096
FLOOR_PORT = 7171


def build_host(description: MachineDescription, host: int) -> dict[str, Any]:
    """On a host: make its part of the machine, and say what is there."""
    from coremesh.cluster.device_host import DeviceHost
    from coremesh.cluster.host import HostProcess

    import __main__

    part = (DeviceHost if host == 0 else HostProcess)(description)
    __main__.kept["host"] = part  # type: ignore[attr-defined]
    return part.examine()


def call_host(method: str, *words: Any) -> Any:
    """On a host: call a method of its part."""
    import __main__

    return getattr(__main__.kept["host"], method)(*words)  # type: ignore[attr-defined]


class NetworkMachine:
    """A machine over the first hosts of ``network``; a context manager. It runs from ``start`` on."""

    def __init__(self, network: Network, description: MachineDescription) -> None:
        self.hosts = description.hosts
        self._drivers = [Driver(network, host) for host in range(self.hosts)]
        try:
            self._prepare(network, description)
        except BaseException:
            self.close()
            raise

    def _prepare(self, network: Network, description: MachineDescription) -> None:
        several = self.hosts > 1
        parts = [description] + [description.without_images()] * (self.hosts - 1)
        calls = [
            driver.begin(build_host, part, host)
            for host, (driver, part) in enumerate(zip(self._drivers, parts, strict=True))
        ]
        found = [call(60) for call in calls]
        machine = secrets.randbits(63)
        self.each(
            "prepare",
            [
                (Membership(host, machine, 1, found[0]["tsc_hz"], network.address(host)),) if several else ()
                for host in range(self.hosts)
            ],
        )
        if not several:
            return
        for host in range(1, self.hosts):
            writes = self.call("writes_for", host)
            self._drivers[host].run(60, call_host, "lay", writes)
        ends = dict(enumerate(self.all("open_link")))
        others = [{peer: end for peer, end in ends.items() if peer != host} for host in range(self.hosts)]
        self.each("connect", [(peers,) for peers in others])
        self.all("start_link")

    def start(self) -> None:
        """Let the vCPUs run."""
        for driver in reversed(self._drivers):
            driver.run(60, call_host, "start")

    def call(self, method: str, *words: Any, timeout: float = 60) -> Any:
        """Call a method of host 0."""
        return self._drivers[0].run(timeout, call_host, method, *words)

    def all(self, method: str, *words: Any) -> list[Any]:
        """Call a method of all hosts at the same time."""
        return self.each(method, [words] * self.hosts)

    def each(self, method: str, words: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same with arguments of its own for each."""
        calls = [
            driver.begin(call_host, method, *own) for driver, own in zip(self._drivers, words, strict=True)
        ]
        return [call(120) for call in calls]

    def finish(self, timeout: float) -> dict[str, float]:
        """Wait for a bare-metal guest's end; its ``key=value`` words. Raises RuntimeError for a bad end."""
        end = self.call("wait", timeout, timeout=timeout + 10)
        output = self.console()
        if end is None or end.kind != "debug-exit" or end.value != 16:
            raise RuntimeError(f"the guest did not come to a good end: {end}\n{output}")
        return {key: float(value) for key, value in re.findall(r"(\w+)=(-?\d+)", output)}

    def console(self) -> str:
        """All that the guest has printed."""
        return bytes(self.call("read_console", 0, 0.0)[0]).decode("latin-1")

    def mesh_stats(self) -> list[dict[str, int]]:
        """What passed between the hosts."""
        return self.all("mesh_stats") if self.hosts > 1 else [{}]

    def __enter__(self) -> NetworkMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.all("stop")
        finally:
            self.close()

    def close(self) -> None:
        """End the processes."""
        for driver in self._drivers:
            driver.close()


def description_of(
    kernel: bytes, shares: Sequence[int], cmdline: str = "", memory_mib: int = 128, **more: Any
) -> MachineDescription:
    """A machine with ``shares`` vCPUs on its hosts."""
    return MachineDescription(
        vcpus=sum(shares),
        ram_bytes=memory_mib << 20,
        kernel=kernel,
        cmdline=cmdline,
        shares=tuple(shares) if len(shares) > 1 else (),
        **more,
    )


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
