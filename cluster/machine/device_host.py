# SPDX-License-Identifier: GPL-2.0-or-later
"""The host with the devices: vCPUs as on any host, devices, the guest's console, and its power switch.

One thread more than any host has: *shell watch* looks for the first prompt, for the boot time.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremesh.cluster.machine import lifeline, log
from coremesh.cluster.machine.assembly import Portion, assemble, memory_of
from coremesh.cluster.machine.attachments import Attachments, Wanted
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.host import HostProcess, Prepared
from coremesh.cluster.machine.machine_state import MachineState
from coremesh.cluster.machine.restart import Restarts, restart
from coremesh.core.errors import ConfigurationError, MachineStateError
from coremesh.hw.backend.console import ConsolePort

if TYPE_CHECKING:
    from coremesh.core.engine import Host
    from coremesh.hw.attached import Answer, Request
    from coremesh.hw.backend.network.capture import Tap
    from coremesh.hw.backend.network.slirp import Forward
    from coremesh.hw.backend.screen import TextScreen
    from coremesh.hw.clock import Clock
    from coremesh.hw.node import DeviceNode
    from coremesh.hw.power import PowerEvent

PANIC = b"Kernel panic - not syncing"

_POLL_SECONDS = 1.0
_QUIET_SECONDS = 0.05  # a prompt counts when nothing follows it for this time
_NUDGE_SECONDS = 3.0  # silence after which a shell that is waited for is sent a newline
_LOGIN = b" login: "
_LOGIN_SECONDS = 0.3  # the same where the name is asked for: nothing else is to be waited for
_SCREEN_SECONDS = 0.03  # between looks at a screen that a person watches
_TAIL = 4096


class DeviceHost(HostProcess):
    """The host that a machine of one host consists of, and that speaks for a machine of several."""

    def __init__(
        self, description: MachineDescription, driver: lifeline.ProcessIdentity | None = None
    ) -> None:
        self._node: DeviceNode | None = None
        self._close_parts: Callable[[], None] = lambda: None
        self._taps: list[Tap] = []
        self._resize: Callable[[int, int], None] = lambda columns, rows: None
        self._attachments: Attachments | None = None
        self._port = ConsolePort()
        self._elsewhere: dict[int, Portion] = {}
        self._shell_ready = threading.Event()
        self._restarts = Restarts(description.restarts)
        self._life_begins_at = 0  # position of the console at the machine's last start
        self._next_life = threading.Event()  # for the shell watch: there was one
        self._shell_seconds: float | None = None
        self._clock: Clock | None = None
        self._state: MachineState | None = None
        self._wanted_at = -math.inf  # when a caller last waited for the shell
        super().__init__(description, driver)

    def portion_of(self, host: int) -> Portion:
        """Return what another host is to lay of what was put together here; once, to save the memory."""
        return self._elsewhere.pop(host)

    # --- state -------------------------------------------------------------------------------------------

    def save(self) -> MachineState:
        """Return the state of the machine, which has one host and is paused; it stays as it is."""
        with self._lock:
            if not self._paused or self._host is None or self._clock is None:
                raise MachineStateError("a machine is saved while it is paused: call pause() first.")
            if self._membership is not None:
                raise MachineStateError("a machine of several hosts cannot be saved: run it on one.")
            node = self._devices()
            if self._attachments:
                raise MachineStateError(
                    "a machine with attached devices cannot be saved: their state is not here; detach them."
                )
            node.stop()
            try:
                return MachineState.take(self._host, node, self._clock)
            finally:
                node.start()

    def restore(self, state: MachineState) -> Prepared:
        """As :meth:`prepare`, but the machine goes on from `state` when it is started: soon, time passes."""
        self._state = state
        return self.prepare()

    # --- console -----------------------------------------------------------------------------------------

    def wait_shell(self, timeout: float) -> float | None:
        """Return the seconds from the start of emulation to the first prompt; None at the timeout or the end.

        A shell whose prompt was drowned by later messages is asked for another one by a newline. A login
        prompt gets the name of root, which needs no password on the console of our own images.
        """
        deadline = time.monotonic() + timeout
        while not self._shell_ready.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            # The watch outlives this call, which a caller makes again and again, each time for a second.
            self._wanted_at = time.monotonic()
            if self._wanted_at >= deadline or self._ended.is_set():
                return None
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

    def resize_console(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its terminal, if its console has a way to say it."""
        self._resize(columns, rows)

    def console_end(self) -> int:
        """Return the absolute position after the last byte that the guest has printed."""
        return int(self._port.end)

    # --- screen ------------------------------------------------------------------------------------------

    def screen(self) -> TextScreen:
        """Return what is on the VGA screen."""
        from coremesh.hw.backend.screen import read_screen
        from coremesh.hw.isa.vga import Vga

        vga = self._devices().devices["vga"]
        assert isinstance(vga, Vga)
        return read_screen(vga.text_mode(), self.engine.ram_read)

    def watch_screen(self, before: TextScreen | None, timeout: float) -> tuple[TextScreen, bool]:
        """Return what is on the screen once it is not `before`, or after `timeout` seconds; and whether the
        machine has ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self._ended.is_set()  # asked before looking: what came before the end is not missed then
            now = self.screen()
            if now != before or ended or time.monotonic() >= deadline:
                return now, ended
            self._ended.wait(_SCREEN_SECONDS)

    def press_keys(self, keys: list[int]) -> None:
        """Move keys of the PS/2 keyboard: codes as of :mod:`coremesh.hw.isa.ps2_keyboard`."""
        from coremesh.hw.isa.i8042 import Keyboard8042

        controller = self._devices().devices["i8042"]
        assert isinstance(controller, Keyboard8042)
        controller.press(keys)

    # --- networks, devices -------------------------------------------------------------------------------

    def forward(self, forward: Forward, card: int) -> int:
        """Lead a port of this host to the guest; return this host's port. Raises :class:`NetworkError`."""
        from coremesh.hw.backend.network.slirp import SlirpPort

        port = self._card(card).port
        if not isinstance(port, SlirpPort):
            raise ConfigurationError("only a 'user' network forwards ports of the host.")
        return port.forward(forward)

    def capture(self, path: Path, card: int) -> None:
        """Write what passes a network card into a pcap file. Raises :class:`NetworkError`."""
        from coremesh.hw.backend.network.capture import Capture

        self._card(card).add(Capture(path))

    def _card(self, number: int) -> Tap:
        if number >= len(self._taps):
            raise ConfigurationError(f"the machine has {len(self._taps)} network cards; they count from 0.")
        return self._taps[number]

    def device_counters(self) -> dict[str, dict[str, int]]:
        """Return accesses and lock contention by device."""
        return self._devices().counters()

    def sample(self) -> dict[str, Any]:
        """As any host's, with what the devices count."""
        return {**super().sample(), "devices": self.device_counters()}

    def device_uses(self) -> list[tuple[str, int | None, int, int, int]]:
        """Return (device, vCPU, accesses, bytes, ns) of each pair that has met; :meth:`DeviceNode.uses`."""
        return self._devices().uses()

    # --- devices whose code is in the driver's process ---------------------------------------------------

    def attach_device(self, wanted: Wanted) -> str:
        """Attach a device and return its name; all hosts are told of its addresses by :meth:`claim`."""
        return self._attached().attach(wanted)

    def detach_device(self, name: str) -> None:
        """Let an attached device answer nowhere any more."""
        self._attached().detach(name)

    def exchange_device(
        self, name: str, answers: list[Answer], timeout: float
    ) -> tuple[list[Request], int] | None:
        """Hand in what a device's code has done, and fetch what is to be done: :class:`AttachedDevice`."""
        return self._attached().exchange(name, answers, timeout)

    def set_device_irq(self, name: str, level: bool | None) -> None:
        """Drive an attached device's interrupt line; None is a pulse."""
        self._attached().set_irq(name, level)

    def dma_read(self, gpa: int, length: int) -> bytes:
        """Return guest RAM as a bus master sees it."""
        return self._attached().dma_read(gpa, length)

    def dma_write(self, gpa: int, data: bytes) -> None:
        """Write guest RAM as a bus master does."""
        self._attached().dma_write(gpa, data)

    def _attached(self) -> Attachments:
        if self._attachments is None:
            raise MachineStateError("the machine is not prepared.")
        return self._attachments

    # --- what this host does more than others ------------------------------------------------------------

    def _assemble(self) -> Host:
        assembled = assemble(self._description, self._port, self._on_power, self._membership, self._state)
        self._state = None  # it may be large
        self._clock = assembled.clock
        self._node, self._elsewhere = assembled.node, assembled.elsewhere
        self._close_parts, self._taps = assembled.close, assembled.taps
        self._resize = assembled.resize
        layout = memory_of(self._description).layout
        self._attachments = Attachments(assembled.node, assembled.host, layout)
        return assembled.host

    def _start_parts(self) -> None:
        self._devices().start()
        super()._start_parts()

    def _stop_parts(self) -> None:
        if self._attachments is not None:
            self._attachments.close()  # a vCPU may wait for one
        super()._stop_parts()
        with contextlib.suppress(Exception):
            self._devices().stop()
        with contextlib.suppress(Exception):
            self._close_parts()

    def _devices(self) -> DeviceNode:
        if self._node is None:
            raise MachineStateError("the machine is not prepared.")
        return self._node

    def _watches(self) -> dict[str, Callable[[], None]]:
        return {**super()._watches(), "shell watch": self._watch_shell}

    def _began_anew(self, reason: MachineEnd) -> bool:
        if (reason.kind == "reset" and self._panic_line()) or not self._restarts.wants(reason):
            return False
        with self._lock:  # a pause waits, and then finds vCPUs that run again
            # Looked for anew: from here on no shell is ready, and what was printed is the earlier life's.
            self._shell_ready.clear()
            self._life_begins_at = self._port.end
            self._next_life.set()
            self._restarts.done(self._now())  # before the guest can show that it runs again
            try:
                restart(self._description, self.engine, self._devices(), self._forget_resets)
            except Exception as error:  # it cannot go on, and must not hang
                self._reasons.put(MachineEnd("internal-error", detail=f"the restart failed: {error}"))
                return True
            self._lives += 1
        log.event("info", "restarted", kind=reason.kind, restarts=self._restarts.count)
        return True

    def _forget_resets(self) -> None:
        """What vCPUs asked for while they were brought to a halt is being done; all else ends the machine."""
        with contextlib.suppress(queue.Empty):
            while self._restarts.is_restart(other := self._reasons.get_nowait()):
                pass
            self._reasons.put(other)

    def restarts(self) -> int:
        """Return how many resets have restarted the machine."""
        return self._restarts.count

    def _explain(self, end: MachineEnd) -> MachineEnd:
        if end.kind == "reset" and (panic := self._panic_line()):
            end = replace(end, kind="panic", detail=panic)
        return super()._explain(end)

    def _last_words(self) -> None:
        self._port.close()

    def _on_power(self, event: PowerEvent) -> None:
        # On the thread of the vCPU that wrote the register: stopping that vCPU from here would wait for
        # itself.
        self._reasons.put(MachineEnd(event.kind, value=event.value, seconds=self._now()))

    def _panic_line(self) -> str:
        tail, _ = self._port.read(max(self._life_begins_at, self._port.end - (64 << 10)), 0.0)
        _, found, rest = tail.rpartition(PANIC)
        return rest.split(b"\n")[0].strip(b": \r").decode(errors="replace") if found else ""

    # --- the first prompt --------------------------------------------------------------------------------

    def _watch_shell(self) -> None:
        while not self._ended.is_set():
            self._await_prompt()
            while not self._next_life.wait(_POLL_SECONDS) and not self._ended.is_set():
                pass
            self._next_life.clear()

    def _await_prompt(self) -> None:
        prompt = re.compile(self._description.prompt)
        cursor, tail, answered = self._life_begins_at, b"", False
        seen_at: float | None = None
        moved_at = time.monotonic()
        while not self._ended.is_set() and not self._next_life.is_set():
            asked = tail.endswith(_LOGIN)
            silence = _LOGIN_SECONDS if asked and not answered else _NUDGE_SECONDS
            wait = _QUIET_SECONDS if seen_at is not None else min(silence, _POLL_SECONDS)
            data, cursor = self._port.read(cursor, wait)
            if data:
                moved_at, answered = time.monotonic(), False
                tail = (tail + data)[-_TAIL:]
                seen_at = self._now() if prompt.search(tail) else None
            elif seen_at is not None:
                self._shell_seconds = seen_at
                self._shell_ready.set()
                log.event("info", "shell-ready", seconds=round(seen_at, 3))
                return
            elif tail and self._is_wanted() and time.monotonic() - moved_at > silence:
                self._port.feed(b"root\n" if asked else b"\n")
                moved_at, answered = time.monotonic(), True

    def _is_wanted(self) -> bool:
        """Whether a caller waits for the shell; without one the console is the person's alone."""
        return time.monotonic() - self._wanted_at < 2 * _POLL_SECONDS
