# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that holds one host's vCPUs: what runs inside the Ray actor.

The class knows no Ray, so that a test can use it in its own process. Its methods are called from the threads
of the actor's concurrency groups. The guest runs on native threads that take no interpreter lock but for an
access to a device written in Python, and only the host with the devices has such: :mod:`device_host`.

Threads of ours: *supervisor* (waits for the first reason to end, stops everything, keeps the reason), *engine
watch* (blocks in ``Host.wait``). State they share is guarded by ``_lock`` but for the queue and the events.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from coremesh.cluster.machine import assembly, lifeline, log
from coremesh.cluster.machine.build import Build, own_build
from coremesh.cluster.machine.description import MachineDescription, Membership
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.post_mortem import Rows, format_trace, format_vcpus
from coremesh.cluster.machine.registers import format_registers
from coremesh.core.errors import ConfigurationError, MachineStateError

if TYPE_CHECKING:
    from coremesh.core.engine import Host
    from coremesh.core.links import Ends
    from coremesh.core.links.door import LinkEnd

_POLL_SECONDS = 1.0
_STOP_SECONDS = 20.0
_SWITCH_SECONDS = 0.0005
_TAKEN_BACK_SECONDS = 0.05
#: A host that was cut off has stopped its vCPUs. It waits this time for orders of its driver, then it ends.
_CUT_OFF_SECONDS = 10.0


@dataclass(frozen=True)
class Examined:
    """What a host finds where it runs.

    `name` is the node's; `tsc_hz` the rate of its time-stamp counter; `computer` is equal for processes that
    can share memory (:func:`coremesh.core.links.this_computer`), `cores` for those that share their cores.
    """

    build: Build
    identity: lifeline.ProcessIdentity
    name: str
    tsc_hz: int
    computer: str
    cores: str


@dataclass(frozen=True)
class Prepared:
    """What a host has chosen: its process, how it guards guest memory, the guest clock's rate in Hz."""

    pid: int
    protection: str
    tsc_hz: int


class HostProcess:
    """One host: prepare, (open_link, admit, connect, start_link, join,) start, (pause, resume)*, an end.

    Any thread may call. The calls in parentheses are for one host of several, each made on all hosts before
    the next one on any.
    """

    def __init__(
        self, description: MachineDescription, driver: lifeline.ProcessIdentity | None = None
    ) -> None:
        self._description = description
        self._membership: Membership | None = None
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._ends: Ends | None = None  # of the links to other hosts
        self._started_at = 0.0
        self._reasons: queue.SimpleQueue[MachineEnd] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._end: MachineEnd | None = None
        self._glances: Rows = []  # what the vCPUs did when the engine ended by itself
        self._paused = False
        self._lives = 1  # how often the machine has been started; a restart counts it up
        self._driven = driver is not None  # this process is here for the machine alone
        self._keeper: log.Keeper | None = None
        if driver is not None:
            lifeline.watch(driver, self._abandon)

    @property
    def engine(self) -> Host:
        """The native part, for this process alone. Raises :class:`MachineStateError` before `prepare`."""
        if self._host is None:
            raise MachineStateError("the machine is not prepared.")
        return self._host

    # --- before the start --------------------------------------------------------------------------------

    def examine(self) -> Examined:
        """Return what is here."""
        from coremesh.core._native import host_tsc_hz
        from coremesh.core.cores import which_cores
        from coremesh.core.links import this_computer

        return Examined(
            build=own_build(),
            identity=lifeline.ProcessIdentity.current(),
            name=platform.node(),
            tsc_hz=host_tsc_hz(),
            computer=this_computer(),
            cores=which_cores(),
        )

    def prepare(self, membership: Membership | None = None) -> Prepared:
        """Lay out RAM, engines and all that is local. Returns what was chosen.

        `membership` is given to each host of several.
        """
        self._check_memory()
        # A guest's access to a device waits for whichever Python thread runs: half a millisecond at most, not
        # the interpreter's five.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._membership = membership
        self._host = self._assemble()
        log.event("info", "prepared", protection=self._host.protection, tsc_hz=self._host.tsc_hz)
        return Prepared(os.getpid(), self._host.protection, self._host.tsc_hz)

    def lay(self, portion: assembly.Portion) -> None:
        """Take over this host's portion of what the host with the devices has put together."""
        assembly.lay(self.engine, portion)

    def open_link(self, wire: str) -> LinkEnd:
        """Make this host's end of the links for `wire`; return what the others have to know of it."""
        assert self._membership is not None
        self._ends = self._make_ends(wire, self._membership)
        return self._ends.end

    def admit(self, peers: dict[int, LinkEnd]) -> None:
        """Let the other hosts connect: number -> their ends. No other process reaches this host's port."""
        assert self._ends is not None
        self._ends.admit(peers)

    def connect(self, peers: dict[int, LinkEnd]) -> None:
        """Connect to the other hosts: number -> their ends. No other host will be heard."""
        assert self._ends is not None
        self._ends.connect(peers)

    def start_link(self) -> None:
        """Let the protocol thread and its heartbeats run."""
        assert self._membership is not None and self._ends is not None
        membership = self._membership
        link = self._ends.open(membership.machine_id, membership.epoch, vcpus=membership.neighbours)
        self.engine.start_link(link)

    def join(self, timeout: float) -> bool:
        """Wait until all hosts were heard and share one time; False after `timeout` seconds."""
        return self.engine.joined(timeout)

    # --- running -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the vCPUs: the start of emulation, from which all times count."""
        with self._lock:
            if self._host is None or self._started_at:
                raise MachineStateError("the machine is not prepared, or was started before.")
            self._started_at = time.monotonic()
            self._start_parts()
        log.event("info", "vcpus-started", first=self._first_vcpu())
        for name, target in self._watches().items():
            threading.Thread(target=target, name=name, daemon=True).start()

    def pause(self) -> None:
        """Park all vCPUs; returns when they are parked."""
        with self._lock:
            self._require_running()
            if not self._paused:
                self.engine.pause()
                self._paused = True
                log.event("info", "paused")

    def resume(self) -> None:
        """Let parked vCPUs go on."""
        with self._lock:
            self._require_running()
            if self._paused:
                self.engine.resume()
                self._paused = False
                log.event("info", "resumed")

    def stop(self) -> MachineEnd:
        """End the machine if it has not ended by itself, and return how it ended.

        Does not wait for ever: a process that cannot stop its vCPUs is killed by the caller.
        """
        if self._started_at:
            self._reasons.put(MachineEnd("stopped", seconds=self._now()))
            self._ended.wait(_STOP_SECONDS)
        return self._end or MachineEnd("stopped")

    def wait(self, timeout: float) -> MachineEnd | None:
        """Return how the machine ended, or None if it still runs after `timeout` seconds."""
        self._ended.wait(timeout)
        return self._end

    def claim(self, ranges: tuple[tuple[int, int, int], ...]) -> None:
        """Let this host's vCPUs take `ranges`, (space, first, last) each, to the device node."""
        for space, first, last in ranges:
            self.engine.claim(space, first, last)

    def transact(self, operation: str, gpa: int, size: int, operand: int, expected: int) -> int:
        """Execute one memory transaction from this host and return the value before it."""
        engine = self.engine
        try:
            return int(engine.transact(operation, gpa, size, operand, expected))
        except (ValueError, IndexError, TypeError) as error:
            raise ConfigurationError(f"{error}.") from error

    # --- what it tells -----------------------------------------------------------------------------------

    def observe(self, number: int, epoch: int, wanted: log.Wanted, aloud: bool) -> None:
        """Tell of events from now on, as host `number`; with `aloud` also on standard error."""
        log.bind(process="host", machine=self._description.name, host=number, epoch=epoch)
        self._keeper = log.keep(wanted, aloud=aloud)

    def take_events(self, timeout: float) -> list[dict[str, Any]]:
        """Return what there is to tell since the last time; wait `timeout` seconds for something."""
        return [] if self._keeper is None else self._keeper.take(timeout)

    def sample(self) -> dict[str, Any]:
        """Return what metrics are made of: 'stats' (rows), 'mesh', 'devices' and 'process'."""
        from coremesh.cluster.machine.usage import of_this_process

        several = self._membership is not None
        return {
            "stats": self.stats(),
            "mesh": self.mesh_stats() if several else {},
            "devices": {},
            "process": of_this_process(),
        }

    # --- looking at it -----------------------------------------------------------------------------------

    def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters, one row a vCPU."""
        return list(self.engine.stats())

    def mesh_stats(self) -> dict[str, Any]:
        """Return this host's counters of pages, transactions and links."""
        return dict(self.engine.mesh_stats())

    def contended_pages(self, count: int) -> list[dict[str, Any]]:
        """Return the `count` most contended of the pages whose home is here."""
        return list(self.engine.contended_pages(count))

    def registers(self, vcpu: int) -> dict[str, Any]:
        """Return the registers of the machine's `vcpu`, one of this host's; it must be paused or ended."""
        with self._lock:
            if not 0 <= vcpu < self._description.vcpus:
                raise ConfigurationError(f"there is no vCPU {vcpu}; they count from 0.")
            if not (self._paused or self._ended.is_set()):
                raise MachineStateError(
                    "registers can be read while the machine is paused: call pause() first."
                )
            return dict(self.engine.registers(vcpu - self._first_vcpu()))

    def report(self) -> str:
        """Return as text what this host's vCPUs do, and the last messages to and from other hosts.

        At any time once the machine is prepared; with registers while it is paused or has ended.
        """
        ended = self._ended.is_set() and bool(self._glances)
        return self._told(self._glances if ended else self.engine.glances())

    def trace(self, count: int) -> list[dict[str, Any]]:
        """Return the last messages of the page protocol to and from this host, at most `count` of 1024."""
        return list(self.engine.trace(count))

    def read_memory(self, gpa: int, length: int) -> bytes:
        """Return guest RAM."""
        return bytes(self.engine.ram_read(gpa, length))

    # --- what a host with devices does more --------------------------------------------------------------

    def _assemble(self) -> Host:
        from coremesh.core._native import serve_remote_queues

        host = assembly.build_host(self._description, self._membership)
        serve_remote_queues(host.bus_master())
        return host

    def _make_ends(self, wire: str, membership: Membership) -> Ends:
        from coremesh.core.links import make_ends

        hosts, curve = self._description.hosts, self._description.curve
        return make_ends(wire, membership.host, hosts, membership.interface, curve=curve)

    def _start_parts(self) -> None:
        self.engine.start()

    def _stop_parts(self) -> None:
        with contextlib.suppress(Exception):  # the reason must come out whatever the stop meets
            self.engine.stop()

    def _watches(self) -> dict[str, Callable[[], None]]:
        return {"supervisor": self._supervise, "engine watch": self._watch_engine}

    def _began_anew(self, reason: MachineEnd) -> bool:
        """Whether `reason` has restarted the machine instead of ending it: on the host with the devices."""
        return False

    def _explain(self, end: MachineEnd) -> MachineEnd:
        """Add what is known of `end` beyond its kind."""
        if end.kind not in ("triple-fault", "internal-error") and not end.lost:
            return end
        with contextlib.suppress(Exception):
            return replace(end, state=self._post_mortem(end))
        return end

    def _post_mortem(self, end: MachineEnd) -> str:
        parts = []
        if end.vcpu is not None and end.vcpu >= 0:
            parts.append(format_registers(end.vcpu, self.engine.registers(end.vcpu - self._first_vcpu())))
        return "\n".join([*parts, self._told(self._glances or self.engine.glances())])

    def _told(self, glances: Rows) -> str:
        with contextlib.suppress(RuntimeError):  # while vCPUs run, only they know their registers
            registers = {glance["vcpu"]: self.engine.registers(glance["vcpu"]) for glance in glances}
            return self._text(glances, registers)
        return self._text(glances, {})

    def _text(self, glances: Rows, registers: dict[int, Any]) -> str:
        here = f"host {self._membership.host}:" if self._membership is not None else "vCPUs:"
        vcpus = format_vcpus(glances, registers, self._first_vcpu())
        return "\n".join(part for part in (here, vcpus, format_trace(self.engine.trace())) if part)

    def _last_words(self) -> None:
        """Called when the end is known, before the calls that wait for it return."""

    # --- the end -----------------------------------------------------------------------------------------

    def _watch_engine(self) -> None:
        while not self._ended.is_set():
            report: Any
            try:
                report = self.engine.wait(_POLL_SECONDS)
            except Exception as error:  # an engine that cannot be waited for has failed
                report = {"kind": "internal-error", "detail": str(error)}
            if report is None:
                continue
            if report["kind"] == "stopped":
                return
            self._reasons.put(self._end_of(report))
            life = self._lives  # it stays so, unless a restart takes it back
            while not self._ended.wait(_TAKEN_BACK_SECONDS) and self._lives == life:
                pass

    def _end_of(self, report: dict[str, Any]) -> MachineEnd:
        """The engine counts its own vCPUs; a person those of the machine."""
        self._glances = report.get("vcpus", [])
        vcpu, here = report.get("vcpu"), self._membership.host if self._membership is not None else None
        end = MachineEnd(report["kind"], detail=str(report.get("detail", "")), seconds=self._now())
        if end.lost:
            return replace(end, host=report.get("host", here))
        other = report.get("host")
        # A vCPU of another host asks the one with the devices for a restart.
        if here == self._description.device_host and other is not None and other != here:
            return replace(end, vcpu=self._description.first_vcpu(other) + int(vcpu or 0), host=other)
        return replace(end, vcpu=None if vcpu is None else vcpu + self._first_vcpu(), host=here)

    def _supervise(self) -> None:
        end = self._reasons.get()
        while self._began_anew(end):
            end = self._reasons.get()
        self._stop_parts()
        self._end = self._explain(end)
        log.event(
            "warning" if end.lost or end.crashed else "info",
            "ended", kind=end.kind, detail=end.detail, seconds=round(end.seconds, 3),
        )  # fmt: skip
        self._last_words()
        self._ended.set()
        if end.lost and self._driven:
            # A host that is cut off may have lost the driver too, which would otherwise end this process.
            time.sleep(_CUT_OFF_SECONDS)
            os._exit(1)

    def _abandon(self) -> None:
        """Our driver is gone: nothing may be left running, and no caller waits for a word."""
        log.event("warning", "driver-gone")
        if self._host is not None:
            stopper = threading.Thread(target=self._host.stop, daemon=True)
            stopper.start()
            stopper.join(timeout=2)
        os._exit(1)

    # --- small things ------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self._started_at if self._started_at else 0.0

    def _first_vcpu(self) -> int:
        return self._description.first_vcpu(self._membership.host) if self._membership is not None else 0

    def _require_running(self) -> None:
        if not self._started_at or self._ended.is_set():
            raise MachineStateError("the machine does not run.")

    def _check_memory(self) -> None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self._description.ram_bytes > total:
            raise ConfigurationError(
                f"{self._description.ram_bytes >> 20} MiB of guest memory do not fit this host, which has "
                f"{total >> 20} MiB. Give a smaller --memory."
            )
