# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine over hosts in network namespaces, without Ray: a process on each, and native links between them.

Each process has the parts that a Ray actor has (``coremesh.cluster.machine.host``), and they are driven step
by step as ``coremesh.cluster.launch.hosts`` does it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from coremesh.cluster.machine.description import MachineDescription, Membership
from coremesh.core.links import choose_wire
from driver import Driver
from network import Network

JOIN_SECONDS = 30.0


def build_host(description: MachineDescription, host: int) -> dict[str, Any]:
    """On a host: make its part of the machine, and say what is there."""
    from coremesh.cluster.machine.device_host import DeviceHost
    from coremesh.cluster.machine.host import HostProcess

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
            self.call("lay", self.call("portion_of", host), host=host)
        wire, _ = choose_wire(description.wire, [facts["computer"] for facts in found])
        ends = dict(enumerate(self.all("open_link", wire)))
        others = [{peer: end for peer, end in ends.items() if peer != host} for host in range(self.hosts)]
        self.each("admit", [(peers,) for peers in others])
        self.each("connect", [(peers,) for peers in others])
        self.all("start_link")
        if not all(self.all("join", JOIN_SECONDS)):
            raise RuntimeError("the hosts have not found each other")

    def start(self) -> None:
        """Let the vCPUs run."""
        for driver in reversed(self._drivers):
            driver.run(60, call_host, "start")

    def call(self, method: str, *words: Any, timeout: float = 60, host: int = 0) -> Any:
        """Call a method of a host."""
        return self._drivers[host].run(timeout, call_host, method, *words)

    def begin(self, host: int, method: str, *words: Any) -> Callable[[float], Any]:
        """Call a method of a host without waiting; see ``Driver.begin``."""
        return self._drivers[host].begin(call_host, method, *words)

    def pid(self, host: int) -> int:
        """The process of a host."""
        return self._drivers[host].pid

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
