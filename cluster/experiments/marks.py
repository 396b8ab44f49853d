# SPDX-License-Identifier: GPL-2.0-or-later
"""What each number of a command took: when its line came, by the clock and in processor time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Final

#: A line that is a number: ``name=number`` or ``name: number``.
NAMED_NUMBER: Final = re.compile(
    r"^\s*([A-Za-z_]\w*)\s*[=:]\s*([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*$", re.M
)


class Marks:
    """The seconds from one number's line to the next one's, in a command's output as it comes.

    `numbers` are as of a command. The first number's seconds count from where this was made. Numbers that
    come in one piece of output share its time: the first of them has it all.
    """

    def __init__(self, cpu_seconds: Callable[[], float | None], numbers: Mapping[str, str]) -> None:
        """`cpu_seconds` tells the processor time of the machine's process, or None."""
        self._cpu_seconds = cpu_seconds
        self._patterns = {name: re.compile(pattern) for name, pattern in numbers.items()}
        self._line = b""
        self._since = time.monotonic(), cpu_seconds()
        self._seconds: dict[str, tuple[float, float | None]] = {}

    def on_output(self, data: bytes) -> None:
        """Take the next piece of output."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            for name in self._names(line.decode(errors="replace").rstrip("\r")):
                now, cpu = time.monotonic(), self._cpu_seconds()
                since, cpu_since = self._since
                used = None if cpu is None or cpu_since is None else cpu - cpu_since
                self._seconds[name] = now - since, used
                self._since = now, cpu

    def columns(self) -> dict[str, float]:
        """Return ``marks.NAME.host_seconds`` and, where it is known, ``marks.NAME.cpu_seconds``."""
        found: dict[str, float] = {}
        for name, (seconds, cpu) in self._seconds.items():
            found[f"marks.{name}.host_seconds"] = seconds
            if cpu is not None:
                found[f"marks.{name}.cpu_seconds"] = cpu
        return found

    def _names(self, line: str) -> list[str]:
        if self._patterns:
            return [name for name, pattern in self._patterns.items() if pattern.search(line)]
        named = NAMED_NUMBER.match(line)
        return [] if named is None else [named[1]]
