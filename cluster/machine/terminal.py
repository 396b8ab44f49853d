# SPDX-License-Identifier: GPL-2.0-or-later
"""A person's terminal joined to a guest's console, and console text made plain for a pipe or a file."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Protocol

from coremesh.core.errors import CoremeshError

#: Ctrl-], as telnet has it.
ESCAPE = b"\x1d"

# CSI and OSC sequences, other escape sequences (ECMA-48, section 5; ECMA-35, section 13), carriage returns.
_CONTROL = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-Z\\^-~]|\r",
)
_UNFINISHED = re.compile(rb"\x1b(?:[ -/]*|\[[0-?]*[ -/]*|\][^\x07\x1b]{0,256}\x1b?)\Z")


class PlainText:
    """A filter that drops what only a terminal understands. Sequences may be split between pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return the plain text of `data`, holding back a control sequence that is not complete yet."""
        data = self._held + data
        unfinished = _UNFINISHED.search(data)
        self._held = data[unfinished.start() :] if unfinished else b""
        return _CONTROL.sub(b"", data[: unfinished.start()] if unfinished else data)


class Stream(Protocol):
    """The guest's console, as :class:`coremesh.cluster.machine.console.Console` gives it."""

    def write(self, data: bytes | str) -> None:
        """Type on the console."""

    def follow(self) -> Iterator[bytes]:
        """Yield what the guest prints until the machine ends."""


@contextlib.contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Put a terminal into raw mode, and back into its former modes whatever happens inside."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def size_told(descriptor: int, resize: Callable[[int, int], None]) -> Iterator[None]:
    """Call `resize` with a terminal's columns and rows now, and whenever they change inside.

    On a thread of its own: a signal's handler must not wait for another host. Main thread; elsewhere changes
    are not noticed.
    """
    changed, over = threading.Event(), threading.Event()

    def tell() -> None:
        while changed.wait() and not over.is_set():
            changed.clear()
            with contextlib.suppress(CoremeshError, OSError):
                size = os.get_terminal_size(descriptor)
                if size.columns and size.lines:
                    resize(size.columns, size.lines)

    teller = threading.Thread(target=tell, name="terminal size", daemon=True)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGWINCH, lambda *_: changed.set()) if is_main else None
    changed.set()
    teller.start()
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGWINCH, before)
        over.set()
        changed.set()
        teller.join(timeout=2)


def interact(console: Stream, stop: threading.Event, escape: bytes = ESCAPE) -> bool:
    """Join this process's terminal to `console` until the machine ends or the person types the escape key.

    Returns True when the person left. Both standard input and output must be terminals. The modes of the
    terminal are restored in any case; `stop` is set when the join is over. Main thread.
    """
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    reader, writer = os.pipe()
    finished = threading.Event()

    def show() -> None:
        try:
            for data in console.follow():
                _write_all(sink, data)
                if stop.is_set():
                    break
        except (
            CoremeshError,
            OSError,
        ):  # the machine has gone, its next caller is told why; or the terminal has
            pass
        finally:
            finished.set()
            os.write(writer, b"x")  # wakes the wait for a key

    shower = threading.Thread(target=show, name="console output", daemon=True)
    left = False
    try:
        with raw_mode(source):
            shower.start()
            left = _type_until(escape, source, reader, console.write, finished)
    finally:
        stop.set()
        if not left:
            shower.join(timeout=2)
        if not shower.is_alive():
            os.close(reader)
            os.close(writer)
    return left


def _type_until(
    escape: bytes, source: int, wake: int, write: Callable[[bytes], None], finished: threading.Event
) -> bool:
    while not finished.is_set():
        ready, _, _ = select.select([source, wake], [], [])
        if wake in ready:
            return False
        data = os.read(source, 4096)
        if not data:  # the terminal hung up
            return True
        before, found, _ = data.partition(escape)
        if before:
            write(before)
        if found:
            return True
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
