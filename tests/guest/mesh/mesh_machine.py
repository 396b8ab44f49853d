# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of several hosts in one process: each with vCPUs, RAM and a protocol thread of its own.

They are joined by the in-process link, or by a real wire, and need neither network nor Ray: what runs is
the page protocol, the links' frames, the clock and the interrupts as between real hosts. The devices are on
host 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

from baremetal_machine import MIB, RunResult
from coremesh.cluster.machine import bring_up
from coremesh.cluster.machine.build import own_build
from coremesh.cluster.machine.description import MachineDescription, Membership, Rom
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.host import HostProcess
from coremesh.core._native import InProcessSwitch, Link
from coremesh.core.engine import Host
from coremesh.core.links import Ends
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.tuning import OVERFLOW
from coremesh.core.mesh import Policy
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.node import DeviceNode
from coremesh.hw.power import PowerEvent

Given = TypeVarTuple("Given")
Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class MeshResult(RunResult):
    """How a guest ended, with what passed between its hosts: ``mesh`` has a dictionary for each."""

    mesh: list[dict[str, int]] = field(default_factory=list)

    def between(self, counter: str) -> int:
        """The sum of a counter of ``Host.mesh_stats`` over the hosts."""
        return sum(int(host[counter]) for host in self.mesh)

    def story(self) -> str:
        """What to show when a test fails."""
        lines = [f"host {number}: {counters}" for number, counters in enumerate(self.mesh)]
        return "\n".join([super().story(), *lines])


class Wires:
    """The in-process switch between the hosts of one machine, made when the first of them opens its link.

    ``delay_us`` is how long a frame takes at least and at most.
    """

    def __init__(self, hosts: int, delay_us: tuple[int, int], seed: int) -> None:
        self._hosts = hosts
        self._delay_us = delay_us
        self._seed = seed
        self._lock = threading.Lock()
        self._switch: InProcessSwitch | None = None

    def switch(self, machine_id: int, epoch: int) -> InProcessSwitch:
        """The one switch."""
        with self._lock:
            if self._switch is None:
                self._switch = InProcessSwitch(
                    self._hosts,
                    machine_id=machine_id,
                    epoch=epoch,
                    min_delay_us=self._delay_us[0],
                    max_delay_us=self._delay_us[1],
                    seed=self._seed,
                )
            return self._switch


class InProcessEnds:
    """One host's end of the links, on the switch: ``coremesh.core.links.Ends``, with nobody to keep out."""

    def __init__(self, wires: Wires, host: int) -> None:
        self._wires = wires
        self._host = host
        self.end = LinkEnd("in-process", b"", str(host))

    def admit(self, peers: Mapping[int, LinkEnd]) -> None:
        """Nothing else reaches the switch."""

    def connect(self, peers: Mapping[int, LinkEnd]) -> None:
        """All are connected to the switch."""

    def open(
        self,
        machine_id: int,
        epoch: int,
        *,
        spin_us: int | None = None,
        overflow: int = OVERFLOW,
        vcpus: int = 0,
    ) -> Link:
        """The native link."""
        return self._wires.switch(machine_id, epoch).link(self._host)

    def close(self) -> None:
        """The switch goes with the machine."""


class InProcessHost(HostProcess):
    """A host whose links are the switch, and whose end the test sees to: no thread of it watches."""

    wires: Wires | None = None  #: None: a real wire

    def _make_ends(self, wire: str, membership: Membership) -> Ends:
        if self.wires is None:
            return super()._make_ends(wire, membership)
        return InProcessEnds(self.wires, membership.host)

    def start(self) -> None:
        """Let the vCPUs run."""
        if self._description.restarts:  # its own supervisor sees to the end
            super().start()
        else:
            self._start_parts()

    def close(self) -> None:
        """End all threads."""
        if self._host is not None:
            self._stop_parts()
        if self._description.restarts:
            self._reasons.put(MachineEnd("stopped"))  # what the supervisor waits for, which keeps the memory
        if self._ends is not None:
            self._ends.close()  # a context of ZeroMQ that is collected with open sockets waits for ever


class InProcessDeviceHost(InProcessHost, DeviceHost):
    """Host 0, which keeps what its guest asks of the power switch."""

    def __init__(self, description: MachineDescription) -> None:
        self.events: list[PowerEvent] = []
        self.over = threading.Event()
        super().__init__(description)

    @property
    def console(self) -> ConsolePort:
        """What the guest prints."""
        return self._port

    @property
    def node(self) -> DeviceNode:
        """All devices."""
        return self._devices()

    def _on_power(self, event: PowerEvent) -> None:
        if self._description.restarts and event.kind == "reset":
            super()._on_power(event)
            return
        self.events.append(event)
        self.over.set()


class InProcessCall(Generic[Result]):
    """A step that runs in a thread of its own: ``bring_up.Pending``."""

    def __init__(self, name: str, step: Callable[[], Result]) -> None:
        self._name = name
        self._step = step
        self._results: list[Result] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._step())
        except Exception as error:
            self._error = error

    def result(self, seconds: float, step: str) -> Result:
        """The result; what the step raised."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise bring_up.unanswered(self._name, seconds, step)
        if self._error is not None:
            raise self._error
        return self._results[0]


class InProcessSteps:
    """A host of this process as it is brought up: ``bring_up.SteppedHost``."""

    interface = "127.0.0.1"

    def __init__(self, host: HostProcess, number: int) -> None:
        self.name = f"host {number}"
        self._host = host

    def begin(self, step: Callable[[Any, *Given], Result], /, *arguments: *Given) -> InProcessCall[Result]:
        """Begin a step."""
        method: Callable[..., Result] = getattr(self._host, step.__name__)
        return InProcessCall(self.name, lambda: method(*arguments))

    def begin_with(
        self, step: Callable[[Any, Argument], Result], argument: bring_up.Pending[Argument], /
    ) -> InProcessCall[Result]:
        """Begin a step with what another host's results in."""
        return self.begin(step, argument.result(60, "answering"))


class MeshMachine:
    """A machine with ``shares`` vCPUs on its hosts; a context manager that ends all of their threads.

    ``kernel`` is the bytes of a Multiboot or Linux kernel. ``delay_us`` is how long a frame takes at least
    and at most from host to host; with a ``wire`` ("shm", "tcp", "zmq") they go over that. The links run when
    the constructor returns, the vCPUs after ``start``.
    """

    def __init__(
        self,
        kernel: bytes,
        *,
        shares: Sequence[int] = (1, 1),
        cmdline: str = "",
        initrd: bytes | None = None,
        policy: Policy = "adaptive",
        protection: str = "auto",
        ram_bytes: int = 128 * MIB,
        delay_us: tuple[int, int] = (0, 0),
        seed: int = 1,
        disks: Sequence[Path | str] = (),
        roms: Sequence[Rom] = (),
        bios: bytes = b"",
        restarts: bool = False,
        wire: str = "",
        device_host: int = 0,
    ) -> None:
        description = MachineDescription(
            vcpus=sum(shares),
            ram_bytes=ram_bytes,
            kernel=kernel,
            initrd=initrd,
            cmdline=cmdline,
            protection=protection,
            unpack=False,
            shares=tuple(shares),
            policy=policy,
            disks=check_disks(list(disks)),
            roms=tuple(roms),
            bios=bios,
            bios_bytes=len(bios),
            restarts=restarts,
            wire=wire or "auto",
            device_host=device_host,
        )
        self.restarts = restarts
        self.topology = Topology(MemoryMap(ram_bytes).layout, shares, device_host=device_host)
        self._wires = Wires(len(shares), delay_us, seed)
        self._description = description
        self._first = InProcessDeviceHost(description)
        self._processes: list[InProcessHost] = [
            self._first if host == device_host else InProcessHost(description.without_images())
            for host in range(len(shares))
        ]
        self._steps = [InProcessSteps(process, number) for number, process in enumerate(self._processes)]
        self._started = 0.0
        for process in self._processes:
            process.wires = None if wire else self._wires
        try:
            bring_up.prepare(description, self._steps, bring_up.examine(self._steps, own_build()))
        except BaseException:
            self.stop()
            raise
        self.hosts: list[Host] = [process.engine for process in self._processes]
        self.events = self._first.events
        self.console = self._first.console

    @property
    def node(self) -> DeviceNode:
        """The device node; a test may add devices before ``start``."""
        return self._first.node

    @property
    def first(self) -> InProcessDeviceHost:
        """The host of the devices."""
        return self._first

    @property
    def switch(self) -> InProcessSwitch:
        """What carries the frames; it can be told to lose them."""
        return self._wires.switch(0, 0)  # made by now

    def __enter__(self) -> MeshMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Let the vCPUs run, those of the host that boots last."""
        self._started = time.monotonic()
        bring_up.start(self._description, self._steps)

    def stop(self) -> None:
        """Stop all hosts, at the same time: one may be waiting for another."""
        threads = [threading.Thread(target=process.close) for process in self._processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def restarted(self) -> int:
        """How many resets have restarted the machine."""
        return self._first.restarts()

    def pause(self) -> None:
        """Park the vCPUs of all hosts."""
        for host in self.hosts:
            host.pause()

    def resume(self) -> None:
        """Let them go on."""
        for host in self.hosts:
            host.resume()

    def output(self) -> str:
        """All that the guest has printed so far."""
        return self.console.read(0, 0.0)[0].decode("latin-1")

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Wait until the guest has printed ``text``; all output. Raises AssertionError at the timeout."""
        deadline = time.monotonic() + timeout
        while text not in self.output():
            assert time.monotonic() < deadline, (
                f"no {text!r} from the guest:\n{self._result('timeout').story()}"
            )
            time.sleep(0.002)
        return self.output()

    def finish(self, timeout: float = 60.0) -> MeshResult:
        """Wait for the guest's end, or give up; the vCPUs are parked then."""
        deadline = time.monotonic() + timeout
        crash: Any = None
        while not self._first.over.wait(0.002) and time.monotonic() < deadline and crash is None:
            for number, host in enumerate([] if self.restarts else self.hosts):
                crash = crash or host.wait(0.0)
                if crash is not None:
                    crash = {"here": number, **crash}
                    break
        self.pause()
        if self.events:
            return self._result(self.events[0].kind, value=self.events[0].value)
        if crash is not None:
            return self._result(str(crash["kind"]), str(crash))
        return self._result("timeout", self._registers())

    def _registers(self) -> str:
        lines = []
        for number, host in enumerate(self.hosts):
            for index in range(len(self.topology.apic_ids(number))):
                state = host.registers(index)
                words = [
                    f"{name}={state[name]:x}" for name in ("rip", "rsp", "rflags", "cr2") if name in state
                ]
                lines.append(f"host {number} vCPU {index}: {' '.join(words)}")
        return "\n".join(lines)

    def _result(self, ended: str, detail: str = "", value: int = 0) -> MeshResult:
        return MeshResult(
            self.output(),
            ended,
            value << 1 | 1 if ended == "debug-exit" else None,
            time.monotonic() - self._started,
            [vcpu for host in self.hosts for vcpu in host.stats()],
            detail,
            mesh=[host.mesh_stats() for host in self.hosts],
        )


def run_on_mesh(
    guest: Path,
    *,
    shares: Sequence[int] = (1, 1),
    cmdline: str = "",
    policy: Policy = "adaptive",
    protection: str = "auto",
    timeout: float = 60.0,
    delay_us: tuple[int, int] = (0, 0),
    ram_bytes: int = 128 * MIB,
    disks: Sequence[Path] = (),
    roms: Sequence[Rom] = (),
    wire: str = "",
    device_host: int = 0,
) -> MeshResult:
    """Start the guest on a machine of its own in this process and wait for its end."""
    with MeshMachine(
        guest.read_bytes(),
        shares=shares,
        cmdline=cmdline,
        policy=policy,
        protection=protection,
        delay_us=delay_us,
        ram_bytes=ram_bytes,
        disks=disks,
        roms=roms,
        wire=wire,
        device_host=device_host,
    ) as machine:
        machine.start()
        return machine.finish(timeout)
