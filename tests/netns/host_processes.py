# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine over hosts in network namespaces, without Ray: a process on each, and native links between them.

Each process has the parts that a Ray actor has (``coremesh.cluster.machine.host``), and they are brought up
by the same ``coremesh.cluster.machine.bring_up``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, TypeVarTuple

from coremesh.cluster.machine import bring_up
from coremesh.cluster.machine.build import own_build
from coremesh.cluster.machine.description import MachineDescription
from driver import Driver
from network import Network

Given = TypeVarTuple("Given")
Argument = TypeVar("Argument")
Result = TypeVar("Result")


def build_host(description: MachineDescription, host: int) -> None:
    """On a host: make its part of the machine."""
    from coremesh.cluster.machine.device_host import DeviceHost
    from coremesh.cluster.machine.host import HostProcess

    import __main__

    __main__.kept["host"] = (DeviceHost if host == 0 else HostProcess)(description)


def call_host(method: str, *words: Any) -> Any:
    """On a host: call a method of its part."""
    import __main__

    return getattr(__main__.kept["host"], method)(*words)


class ProcessCall(Generic[Result]):
    """A call of a host's process that is under way: ``bring_up.Pending``."""

    def __init__(self, name: str, answer: Callable[[float], Result]) -> None:
        self._name = name
        self._answer = answer

    def result(self, seconds: float, step: str) -> Result:
        """The result; HostLostError when the process does not answer, StoryError for what it raised."""
        try:
            return self._answer(seconds)
        except TimeoutError:
            raise bring_up.unanswered(self._name, seconds, step) from None


class NetworkHost:
    """A process on host ``number`` of ``network``: ``bring_up.SteppedHost``."""

    def __init__(self, network: Network, number: int) -> None:
        self.name = f"host {number} ({network.address(number)})"
        self.interface = network.address(number)
        self.driver = Driver(network, number)

    def begin(self, step: Callable[[Any, *Given], Result], /, *arguments: *Given) -> ProcessCall[Result]:
        """Begin a step."""
        return ProcessCall(self.name, self.driver.begin(call_host, step.__name__, *arguments))

    def begin_with(
        self, step: Callable[[Any, Argument], Result], argument: bring_up.Pending[Argument], /
    ) -> ProcessCall[Result]:
        """Begin a step with what another host answers; through this process, for lack of another way."""
        return self.begin(step, argument.result(60, "answering"))


class NetworkMachine:
    """A machine over the first hosts of ``network``; a context manager. It runs from ``start`` on."""

    def __init__(self, network: Network, description: MachineDescription) -> None:
        self.hosts = description.hosts
        self._description = description
        self._hosts = [NetworkHost(network, number) for number in range(self.hosts)]
        self._drivers = [host.driver for host in self._hosts]
        try:
            parts = [description] + [description.without_images()] * (self.hosts - 1)
            built = [
                driver.begin(build_host, part, host)
                for host, (driver, part) in enumerate(zip(self._drivers, parts, strict=True))
            ]
            for wait in built:
                wait(60)
            bring_up.prepare(description, self._hosts, bring_up.examine(self._hosts, own_build()))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Let the vCPUs run."""
        bring_up.start(self._description, self._hosts)

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
        calls = [driver.begin(call_host, method, *words) for driver in self._drivers]
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
