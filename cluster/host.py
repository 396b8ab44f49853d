# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that holds the vCPUs and, embedded, the device node: what runs inside the Ray actor.

The class knows no Ray, so that a test can use it in its own process. Its methods are called from the threads
of the actor's concurrency groups. The guest runs on native threads that take no interpreter lock but for an
access to a device written in Python.

Threads of ours: *supervisor* (waits for the first reason to end, stops everything, keeps the reason), *engine
watch* (blocks in ``Host.wait``), *shell watch* (looks for the first prompt, for the boot time). State they
share is guarded by ``_lock`` but for the queue and the events.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from coremesh.cluster import lifeline
from coremesh.cluster.description import MachineDescription
from coremesh.cluster.ending import MachineEnd
from coremesh.cluster.registers import format_registers
from coremesh.core.errors import ConfigurationError, MachineStateError, PlatformError
from coremesh.hw.console import ConsolePort

if TYPE_CHECKING:
    from coremesh.hw.power import PowerEvent

PANIC = b"Kernel panic - not syncing"

_POLL_SECONDS = 1.0
_QUIET_SECONDS = 0.05  # a prompt counts when nothing follows it for so long
_NUDGE_SECONDS = 3.0  # silence after which a shell that is waited for is sent a newline
_STOP_SECONDS = 20.0
_TAIL = 4096
_SWITCH_SECONDS = 0.0005


class HostProcess:
    """One machine's vCPUs and devices: prepare, start, (pause, resume)*, an end. Any thread may call."""

    def __init__(
        self, description: MachineDescription, driver: lifeline.ProcessIdentity | None = None
    ) -> None:
        self._description = description
        self._lock = threading.Lock()
        self._host: Any = None
        self._node: Any = None
        self._port = ConsolePort()
        self._started_at = 0.0
        self._reasons: queue.SimpleQueue[MachineEnd] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._end: MachineEnd | None = None
        self._shell_ready = threading.Event()
        self._shell_seconds: float | None = None
        self._paused = False
        if driver is not None:
            lifeline.watch(driver, self._abandon)

    def prepare(self, extension_hash: str | None = None) -> dict[str, Any]:
        """Lay out RAM, devices, tables and images. Returns what was chosen ('protection', 'tsc_hz', 'pid').

        `extension_hash` is the driver's :func:`extension_hash`; another build here is refused.
        """
        from coremesh.cluster.assembly import assemble

        if extension_hash not in (None, own_hash := _extension_hash()):
            raise PlatformError(
                f"this node runs another build of coremesh (extension {own_hash[:12]}, the driver has "
                f"{str(extension_hash)[:12]}). Install the same wheel on every node."
            )
        self._check_memory()
        # A guest's access to a device waits for whichever Python thread runs: half a millisecond at most, not
        # the interpreter's five.
        sys.setswitchinterval(_SWITCH_SECONDS)
        assembled = assemble(self._description, self._port, self._on_power)
        self._host, self._node = assembled.host, assembled.node
        return {
            "pid": os.getpid(),
            "protection": str(getattr(self._host, "protection", "")),
            "tsc_hz": int(getattr(self._host, "tsc_hz", 0)),
        }

    def start(self) -> None:
        """Start devices and vCPUs: the start of emulation, from which all times count."""
        with self._lock:
            if self._host is None or self._started_at:
                raise MachineStateError("the machine is not prepared, or was started before.")
            self._started_at = time.monotonic()
            self._node.start()
            self._host.start()
        for name, target in (
            ("supervisor", self._supervise),
            ("engine watch", self._watch_engine),
            ("shell watch", self._watch_shell),
        ):
            threading.Thread(target=target, name=name, daemon=True).start()

    def pause(self) -> None:
        """Park all vCPUs; returns when they are parked."""
        with self._lock:
            self._require_running()
            if not self._paused:
                self._host.pause()
                self._paused = True

    def resume(self) -> None:
        """Let parked vCPUs go on."""
        with self._lock:
            self._require_running()
            if self._paused:
                self._host.resume()
                self._paused = False

    def stop(self) -> MachineEnd:
        """End the machine if it has not ended by itself, and return how it ended.

        Does not wait for ever: a process that cannot stop its vCPUs is ended by whoever called.
        """
        if self._started_at:
            self._reasons.put(MachineEnd("stopped", seconds=self._now()))
            self._ended.wait(_STOP_SECONDS)
        return self._end or MachineEnd("stopped")

    def wait(self, timeout: float) -> MachineEnd | None:
        """Return how the machine ended, or None if it still runs after `timeout` seconds."""
        self._ended.wait(timeout)
        return self._end

    def wait_shell(self, timeout: float) -> float | None:
        """Return the seconds from the start of emulation to the first prompt; None at the timeout or the end.

        A shell whose prompt was drowned by later messages is asked for another one by a newline.
        """
        deadline = time.monotonic() + timeout
        position, since = -1, time.monotonic()
        while not self._shell_ready.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            now = time.monotonic()
            if now >= deadline or self._ended.is_set():
                return None
            end = self._port.end
            if end != position:
                position, since = end, now
            elif end and now - since > _NUDGE_SECONDS:
                self._port.feed(b"\n")
                since = now
        return self._shell_seconds

    def read_console(self, cursor: int, timeout: float) -> tuple[bytes, int, bool]:
        """Return (bytes since position `cursor`, position after them, whether no more will come)."""
        # Asked before reading: what came before the end is not missed then.
        ended = self._port.closed
        data, position = self._port.read(cursor, timeout)
        return data, position, bool(ended and not data)

    def feed_console(self, data: bytes) -> None:
        """Type `data` on the guest's console."""
        self._port.feed(data)

    def console_end(self) -> int:
        """Return the absolute position after the last byte that the guest has printed."""
        return int(self._port.end)

    def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters, one row a vCPU."""
        if self._host is None:
            raise MachineStateError("the machine is not prepared.")
        return list(self._host.stats())

    def device_counters(self) -> dict[str, dict[str, int]]:
        """Return accesses and lock contention by device."""
        counters: dict[str, dict[str, int]] = self._node.counters()
        return counters

    def registers(self, vcpu: int) -> dict[str, Any]:
        """Return a vCPU's registers; the machine must be paused or at its end."""
        with self._lock:
            if not 0 <= vcpu < self._description.vcpus:
                raise ConfigurationError(f"there is no vCPU {vcpu}; they count from 0.")
            if not (self._paused or self._ended.is_set()):
                raise MachineStateError(
                    "registers can be read while the machine is paused: call pause() first."
                )
            return dict(self._host.registers(vcpu))

    def read_memory(self, gpa: int, length: int) -> bytes:
        """Return guest RAM."""
        return bytes(self._host.ram_read(gpa, length))

    # --- the end -----------------------------------------------------------------------------------------

    def _on_power(self, event: PowerEvent) -> None:
        # On the thread of the vCPU that wrote the register: stopping that vCPU from here would wait for
        # itself.
        self._reasons.put(MachineEnd(event.kind, value=event.value, seconds=self._now()))

    def _watch_engine(self) -> None:
        while not self._ended.is_set():
            try:
                report = self._host.wait(_POLL_SECONDS)
            except Exception as error:  # an engine that cannot be waited for has failed
                report = {"kind": "internal-error", "detail": str(error)}
            if report is None:
                continue
            if report["kind"] != "stopped":
                end = MachineEnd(
                    report["kind"],
                    vcpu=report.get("vcpu"),
                    detail=str(report.get("detail", "")),
                    seconds=self._now(),
                )
                self._reasons.put(end)
            return

    def _supervise(self) -> None:
        end = self._reasons.get()
        with contextlib.suppress(Exception):  # the reason must come out whatever the stop meets
            self._host.stop()
        with contextlib.suppress(Exception):
            self._node.stop()
        self._end = self._with_details(end)
        self._port.close()
        self._ended.set()

    def _with_details(self, end: MachineEnd) -> MachineEnd:
        kind, vcpu, detail, state = end.kind, end.vcpu, end.detail, ""
        if kind == "reset" and (panic := self._panic_line()):
            kind, detail = "panic", panic
        if kind in ("triple-fault", "internal-error") and vcpu is not None and vcpu >= 0:
            with contextlib.suppress(Exception):
                state = format_registers(vcpu, self._host.registers(vcpu))
        return MachineEnd(kind, end.value, vcpu, detail, state, end.seconds)

    def _panic_line(self) -> str:
        tail, _ = self._port.read(max(0, self._port.end - (64 << 10)), 0.0)
        _, found, rest = tail.rpartition(PANIC)
        return rest.split(b"\n")[0].strip(b": \r").decode(errors="replace") if found else ""

    def _abandon(self) -> None:
        """Our driver is gone: nothing may be left running, and nobody is there to be told."""
        if self._host is not None:
            stopper = threading.Thread(target=self._host.stop, daemon=True)
            stopper.start()
            stopper.join(timeout=2)
        os._exit(1)

    # --- the first prompt --------------------------------------------------------------------------------

    def _watch_shell(self) -> None:
        prompt = re.compile(self._description.prompt)
        cursor, tail = 0, b""
        seen_at: float | None = None
        while not self._ended.is_set():
            data, cursor = self._port.read(cursor, _POLL_SECONDS if seen_at is None else _QUIET_SECONDS)
            if data:
                tail = (tail + data)[-_TAIL:]
                seen_at = self._now() if prompt.search(tail) else None
            elif seen_at is not None:
                self._shell_seconds = seen_at
                self._shell_ready.set()
                return

    # --- small things ------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self._started_at if self._started_at else 0.0

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


def _extension_hash() -> str:
    from coremesh.cluster.build import extension_hash

    return extension_hash()
