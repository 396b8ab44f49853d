# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's console, from the person's side."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.options import check, compiled_pattern
from coremesh.core.errors import ConfigurationError, ConsoleTimeoutError, MachineStateError, PlatformError

_POLL_SECONDS = 1.0
_TAIL = 2000


class Source(Protocol):
    """What a console speaks through: the host with the serial port."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of that host's methods and return its result."""


class Console:
    """Read from, write to, and wait for text on a guest's console.

    The machine keeps the last 4 MiB that the guest printed; a console has its own place in that stream, so
    two consoles of one machine both see everything. One console is for one thread at a time; writing is for
    any.
    """

    def __init__(
        self, remote: Source, end: Callable[[], MachineEnd | None], report: Callable[[], str] = str
    ) -> None:
        """`end` tells how the machine ended, `report` what its vCPUs do, for an error that says so."""
        self._remote = remote
        self._end = end
        self._report = report
        self._cursor = 0
        self._unread = b""  # taken from the machine, not yet given out
        self._last = b""
        #: Called while a reader waits and nothing comes; what it raises ends the wait.
        self.watch: Callable[[], None] = lambda: None
        self.lost = 0  #: bytes that were overwritten before this console read them

    def write(self, data: bytes | str) -> None:
        """Type `data` (text as UTF-8). Returns at once; the guest takes it as fast as it reads."""
        self._remote.call("feed_console", check("data", data))

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest that its terminal has `columns` and `rows` now, 1 to 65535.

        A serial port has no way to say it: only a machine with ``console="virtio"`` takes notice. Raises
        :class:`ConfigurationError` for other numbers, and :class:`HostLostError`.
        """
        self._remote.call("resize_console", check("columns", columns), check("rows", rows))

    def read(self, timeout: float = 0.0) -> bytes:
        """Return all that came since the last read, waiting up to `timeout` seconds for the first byte.

        Raises :class:`HostLostError`.
        """
        timeout = _patience(timeout)
        data, self._unread = self._unread, b""
        return data or self.take(timeout)[0]

    def next(self, timeout: float) -> bytes:
        """Return what came, waiting up to `timeout` seconds for the first byte.

        When the machine has ended and nothing is left, raises :class:`GuestCrashError` after a crash, else
        :class:`MachineStateError`.
        """
        data, over = self.take(timeout)
        if over:
            raise self._ended()
        if not data:
            self.watch()
        return data

    def take(self, timeout: float) -> tuple[bytes, bool]:
        """Return (the next bytes, whether the machine has ended and all was read).

        Waits up to `timeout` seconds for the first byte. Raises :class:`HostLostError`.
        """
        timeout = _patience(timeout)
        if self._unread:
            return self.read(), False
        data, cursor, over = self._remote.call("read_console", self._cursor, timeout)
        self.lost += cursor - self._cursor - len(data)
        self._cursor = cursor
        self._last = (self._last + data)[-_TAIL:]
        return data, over

    def follow(self) -> Iterator[bytes]:
        """Yield pieces of console output as they come; return when the machine has ended."""
        while True:
            data, over = self.take(_POLL_SECONDS)
            if data:
                yield data
            if over:
                return

    def expect(self, pattern: str | bytes | re.Pattern[bytes], timeout: float = 30.0) -> re.Match[bytes]:
        """Wait until the output not yet read matches `pattern` (a regular expression) and read up to its end.

        The match's groups are bytes. Raises :class:`ConsoleTimeoutError` with the console's last bytes after
        `timeout` seconds, or what the machine ended with.
        """
        wanted, timeout = compiled_pattern("pattern", pattern), _patience(timeout)
        deadline = time.monotonic() + timeout
        seen, over = self._unread, False
        self._unread = b""
        while (match := wanted.search(seen)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or over:
                self._unread = seen
                if over:
                    raise self._ended()
                text = wanted.pattern.decode(errors="replace")
                raise ConsoleTimeoutError(
                    f"{text!r} did not appear on the console in {timeout:g} s; "
                    f"its last bytes: {seen[-200:]!r}",
                    seen[-_TAIL:],
                    self._report(),
                )
            data, over = self.take(min(left, _POLL_SECONDS))
            seen += data
        self._unread = seen[match.end() :]
        return match

    def interact(self) -> bool:
        """Join this terminal to the console until the machine ends (False) or Ctrl-] is typed (True)."""
        import sys

        from coremesh.cluster.machine import terminal

        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise MachineStateError("interact() needs a terminal; in a script use read, write and expect.")
        with terminal.size_told(sys.stdout.fileno(), self.resize):
            return terminal.interact(self, threading.Event())

    def widget(self, *, rows: int = 24, columns: int = 80) -> Any:
        """Return the console as a terminal for a notebook, `rows` lines high: keys go to the guest.

        It is as wide as its cell, `columns` characters until a page shows it. It begins with what the guest
        has printed, 256 KiB at most, and takes nothing away from this console. A cell that ends with a
        console shows one too. Raises :class:`PlatformError` with the way out where a package for it is
        missing. Call it in the notebook's process.
        """
        from coremesh.cluster.machine.console_widget import make_widget

        return make_widget(
            self._remote, self._end, rows=check("rows", rows), columns=check("columns", columns)
        )

    def _repr_mimebundle_(self, **options: Any) -> Any:
        from coremesh.cluster.machine.console_widget import last_lines

        try:
            return self.widget()._repr_mimebundle_(**options)
        except PlatformError:
            return {"text/plain": last_lines(self._remote)}

    @property
    def tail(self) -> bytes:
        """The last bytes read, for messages."""
        return self._last

    def skip(self) -> None:
        """Forget what was printed so far: the next read begins here."""
        self._unread = b""
        self._cursor = int(self._remote.call("console_end"))

    def _ended(self) -> Exception:
        end = self._end()
        if end is not None and end.crashed:
            return end.error()
        return MachineStateError(f"{end}." if end is not None else "the machine has ended.")


def _patience(timeout: float) -> float:
    if timeout is None:
        raise ConfigurationError("a console waits for a number of seconds, not for None: give one.")
    return float(check("timeout", timeout))
