# SPDX-License-Identifier: GPL-2.0-or-later
"""A Python process on one host of a network that does what a test asks of it.

Ray keeps threads and connections for as long as a process lives, in the network where it began: so a test
does not go to a host itself, it sends a function there. The function travels by value.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ParamSpec, TypeVar

from network import Network

P = ParamSpec("P")
T = TypeVar("T")


kept: dict[str, Any] = {}
"""What functions keep from one call to the next, as ``__main__.kept`` of the process on the host."""


class StoryError(AssertionError):
    """A function failed on its host; the text is its traceback there."""


class Driver:
    """Runs functions on a host, one after the other; a context manager. Not for several threads."""

    def __init__(self, network: Network, host: int = 0, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            network.command(host, sys.executable, str(Path(__file__))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def run(self, timeout: float, function: Callable[P, T], *words: P.args, **named: P.kwargs) -> T:
        """Call the function there and return its result.

        Raises StoryError when it raised, TimeoutError after ``timeout`` seconds; the process is ended then.
        """
        return self.begin(function, *words, **named)(timeout)

    def begin(self, function: Callable[P, T], *words: P.args, **named: P.kwargs) -> Callable[[float], T]:
        """Call the function there; the result is had by calling what this returns, with a timeout.

        Raises as ``run``. One call at a time.
        """
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
        assert self._process.stdin is not None
        _send(self._process.stdin, cloudpickle.dumps((sys.path, function, words, named)))
        return lambda timeout: self._result(timeout, function.__name__)

    def _result(self, timeout: float, name: str) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._process.kill()
            raise TimeoutError(f"{name} took more than {timeout:g} s")
        answer = _receive(self._process.stdout)
        if answer is None:
            raise StoryError(f"the process ended ({self._process.wait(10)}) in {name}")
        good, value = pickle.loads(answer)
        if not good:
            raise StoryError(value)
        return value

    @property
    def pid(self) -> int:
        """The process on the host."""
        return self._process.pid

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the process end by itself, as a program does; then end it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    head = stream.read(8)
    return stream.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else None


def _serve() -> None:
    # What a function prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (question := _receive(sys.stdin.buffer)) is not None:
        try:
            path, function, words, named = pickle.loads(question)
            sys.path[:] = path
            answer = pickle.dumps((True, function(*words, **named)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        _send(answers, answer)


if __name__ == "__main__":
    _serve()
