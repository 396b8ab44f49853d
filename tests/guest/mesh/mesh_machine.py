# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of several hosts in one process: each with vCPUs, RAM and a protocol thread of its own.

They are joined by the in-process link, so that no network and no Ray is needed: what runs is the page
protocol, the links' frames, the clock and the interrupts as between real hosts. The devices are on host 0.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baremetal_machine import MIB, RunResult
from coremesh.core import image
from coremesh.core._native import InProcessSwitch
from coremesh.core.engine import Host
from coremesh.core.memory_map import LOW_RAM_LIMIT, MemoryMap
from coremesh.core.mesh import Mesh, Policy
from coremesh.core.topology import Topology
from coremesh.hw.ata.drive import Drive
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.board.pc import build_pc
from coremesh.hw.firmware.acpi import build_firmware
from coremesh.hw.memory import GuestMemory
from coremesh.hw.power import PowerEvent

JOIN_SECONDS = 10.0


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


class MeshMachine:
    """A machine with ``shares`` vCPUs on its hosts; a context manager that ends all of their threads.

    ``kernel`` is the bytes of a Multiboot or Linux kernel. ``delay_us`` is how long a frame takes at least
    and at most from host to host.
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
        hold_us: int = 50,
        prefetch: int = 8,
        drives: Sequence[Drive | None] = (),
    ) -> None:
        memory = MemoryMap(ram_bytes)
        self.topology = Topology(memory, shares)
        apic_ids = self.topology.all_apic_ids
        machine = secrets.randbits(63)
        self.switch = InProcessSwitch(
            len(shares),
            machine_id=machine,
            epoch=1,
            min_delay_us=delay_us[0],
            max_delay_us=delay_us[1],
            seed=seed,
        )
        self.hosts = [
            Host(
                ram_bytes=ram_bytes,
                low_ram_bytes=min(ram_bytes, LOW_RAM_LIMIT),
                apic_ids=list(self.topology.apic_ids(number)),
                total_vcpus=len(apic_ids),
                protection=protection,
                mesh=Mesh(
                    host=number,
                    hosts=len(shares),
                    homes=self.topology.homes,
                    vcpu_hosts=self.topology.vcpu_hosts,
                    machine_id=machine,
                    policy=policy,
                    hold_us=hold_us,
                    prefetch=prefetch,
                ),
            )
            for number in range(len(shares))
        ]
        self.console = ConsolePort()
        self.events: list[PowerEvent] = []
        self._over = threading.Event()
        self._started = 0.0
        first = self.hosts[0]
        self.node = build_pc(
            first,
            console=self.console,
            on_power=self._on_power,
            ram_bytes=ram_bytes,
            vcpus=len(apic_ids),
            drives=drives,
            memory=GuestMemory(first),
        )
        first.connect(self.node)
        for space, start, last in self.node.claims():
            for host in self.hosts:
                host.claim(space, start, last)
        firmware, rsdp = build_firmware(apic_ids, memory, self.topology)
        plan = image.plan_boot(kernel, initrd, cmdline, memory, rsdp)
        for gpa, data in [*firmware, *plan.writes]:
            for host in self.hosts:  # each keeps what is at home there
                host.load(gpa, data)
        first.set_registers(0, plan.registers)

    def _on_power(self, event: PowerEvent) -> None:
        self.events.append(event)
        self._over.set()

    def __enter__(self) -> MeshMachine:
        self.node.start()
        for number, host in enumerate(self.hosts):
            host.start_link(self.switch.link(number))
        for number, host in enumerate(self.hosts):
            assert host.joined(JOIN_SECONDS), f"host {number} hears nobody"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Let the vCPUs run, those of host 0 last: one of them boots."""
        self._started = time.monotonic()
        for host in reversed(self.hosts):
            host.start()

    def stop(self) -> None:
        """Stop all hosts, at the same time: one may be waiting for another."""
        threads = [threading.Thread(target=host.stop) for host in self.hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.node.stop()

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
        crash: dict[str, object] | None = None
        while not self._over.wait(0.002) and time.monotonic() < deadline and crash is None:
            for number, host in enumerate(self.hosts):
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
            [host.mesh_stats() for host in self.hosts],
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
    drives: Sequence[Drive | None] = (),
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
        drives=drives,
    ) as machine:
        machine.start()
        return machine.finish(timeout)
