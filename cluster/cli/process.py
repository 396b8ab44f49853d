# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of the command line: what signals do to it, and what its standard streams are.

Imported before everything else, so only what the interpreter has loaded anyway is imported here.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from types import FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

received: list[int] = []  #: signals that asked this process to end, since :func:`raise_on_signals`


def leave_at_once_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process without a word: it has nothing to clean up, or no time.

    Processes that were started by then end themselves, because they watch this one. A signal that was ignored
    when the process started (nohup; a job in the background) stays ignored.
    """
    _handle(_leave)


def raise_on_signals() -> None:
    """Let these signals raise SystemExit, so that machines are stopped and the terminal is restored."""
    _handle(_raise)


def open_standard_streams() -> None:
    """Give this process its three streams, whatever state it was started in.

    A closed descriptor becomes /dev/null: else the next file or socket would get its number, and the output.
    Standard output raises :class:`~coremesh.core.errors.OutputError` where it cannot be written; what cannot
    be said on standard error is dropped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Sink(1, must_arrive=True), "surrogateescape")
    sys.stderr = _text(_Sink(2, must_arrive=False), "backslashreplace", line_buffering=True)


def say(text: object) -> None:
    """Tell the person something, on standard error."""
    print(f"coremesh: {printable(str(text))}", file=sys.stderr)


def printable(text: str) -> str:
    """Write out what would steer a terminal: names and errors come from other processes and computers too."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def close_output() -> None:
    """Write out what is left, and drop what is printed from now on. Raises OutputError."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    try:
        sys.stdout.flush()
    finally:
        if isinstance(raw, _Sink):
            raw.must_arrive = False


class _Sink(io.FileIO):
    """A descriptor to write to, which may be a pipe without a reader, a full disk, or set not to block."""

    def __init__(self, descriptor: int, *, must_arrive: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.must_arrive = must_arrive

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            if not self.must_arrive:
                return size
            from coremesh.core.errors import OutputError

            raise OutputError(error.errno or 0, error.strerror or str(error)) from error


def _text(raw: _Sink, errors: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, encoding="utf-8", errors=errors, line_buffering=line_buffering or raw.isatty()
    )


def _handle(handler: signal._HANDLER) -> None:
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    received.append(number)
    raise SystemExit(128 + number)
