# SPDX-License-Identifier: GPL-2.0-or-later
"""A person's terminal as the guest's VGA screen and PS/2 keyboard.

The terminal shows the screen's cells, and only those that change are drawn again. What is typed goes to the
guest as keys of a US keyboard. :class:`Painter` and :func:`typed_keys` are pure.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Final

from coremesh.cluster.machine import terminal
from coremesh.cluster.machine.console import Source
from coremesh.cluster.machine.options import check
from coremesh.core.errors import ConfigurationError, MachineStateError
from coremesh.hw.backend.keys import combination_keys, text_keys
from coremesh.hw.backend.screen import TextScreen

_WAIT_SECONDS: Final = 0.2  # for a change, so that the end of the session is noticed in between
_ENTER: Final = b"\x1b[?1049h\x1b[2J"  # the terminal's second screen, as full-screen programs use it
_LEAVE: Final = b"\x1b[0m\x1b[?25h\x1b[?1049l"
_GRAPHICS: Final = "[the guest shows graphics; this screen has text only]"
_ANSI_COLOURS: Final = (0, 4, 2, 6, 1, 5, 3, 7)
"""VGA counts blue as 1 and red as 4, ECMA-48 the other way round."""

_Cell = tuple[str, int]


class Painter:
    """Draws a screen on a terminal that follows ECMA-48 (8.3.14 CUP, 8.3.117 SGR), 16 colours."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], _Cell] = {}
        self._size = (0, 0)

    def paint(self, screen: TextScreen, width: int, height: int) -> str:
        """What changes the terminal, of `width` columns and `height` rows, from the last screen to `screen`.

        A terminal that is too small shows the rows around the cursor, and the first columns.
        """
        out = []
        if (width, height) != self._size:
            self._size, self._drawn = (width, height), {}
            out.append("\x1b[0m\x1b[2J")
        rows, attributes = screen.rows, screen.attributes
        if screen.graphics or not screen.shown:
            text = _GRAPHICS if screen.graphics else ""
            rows, attributes = (text,), (bytes([0x07]) * len(text),)
        row, column = screen.cursor or (0, 0)
        top = 0 if len(rows) <= height or not screen.cursor else max(0, row - height + 1)
        style, at = -1, (-1, -1)
        for y in range(height):
            cells = [*zip(rows[top + y], attributes[top + y], strict=True)] if top + y < len(rows) else []
            for x in range(width):
                cell = cells[x] if x < len(cells) else (" ", 0x07)
                if self._drawn.get((y, x), (" ", 0x07)) == cell:
                    continue
                self._drawn[y, x] = cell
                if at != (y, x):
                    out.append(f"\x1b[{y + 1};{x + 1}H")
                if style != cell[1]:
                    style = cell[1]
                    out.append(_style(style, blinks=screen.blinks))
                out.append(cell[0])
                at = (y, x + 1)
        shown = screen.cursor is not None and screen.shown and row - top < height and column < width
        out.append(f"\x1b[{row - top + 1};{column + 1}H\x1b[?25h" if shown else "\x1b[?25l")
        return "".join(out)


def _style(attribute: int, *, blinks: bool) -> str:
    colour, background = _ANSI_COLOURS[attribute & 7], _ANSI_COLOURS[attribute >> 4 & 7]
    bright = attribute & 0x80 and not blinks
    codes = [0, (90 if attribute & 8 else 30) + colour, (100 if bright else 40) + background]
    if attribute & 0x80 and blinks:
        codes.append(5)
    return f"\x1b[{';'.join(map(str, codes))}m"


# What terminals send for keys without a character (xterm's control sequences; the Linux console's F1 to F5).
_FINAL: Final = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
                 "P": "f1", "Q": "f2", "R": "f3", "S": "f4"}  # fmt: skip
_NUMBERED: Final = {1: "home", 2: "insert", 3: "delete", 4: "end", 5: "pageup", 6: "pagedown", 7: "home",
                    8: "end", 11: "f1", 12: "f2", 13: "f3", 14: "f4", 15: "f5", 17: "f6", 18: "f7", 19: "f8",
                    20: "f9", 21: "f10", 23: "f11", 24: "f12"}  # fmt: skip
_SEQUENCE: Final = re.compile(
    r"\x1b(?:\[\[(?P<linux>[A-E])|O(?P<single>[A-Z])|\[(?P<number>\d*)(?:;(?P<held>\d+))?(?P<final>[A-Z~])"
    r"|(?P<alt>[^\x1b]))"
)


def typed_keys(data: bytes) -> list[int]:
    """The movements of the keyboard's keys for what a terminal sent: characters, and sequences of keys.

    What no key of a US keyboard stands for is left out. An escape at the end is the Escape key: terminals
    send a sequence whole.
    """
    text = data.decode(errors="replace")
    keys: list[int] = []
    at = 0
    while at < len(text):
        match = _SEQUENCE.match(text, at)
        with contextlib.suppress(ConfigurationError):
            keys += _sequence_keys(match) if match else text_keys(text[at])
        at = match.end() if match else at + 1
    return keys


def _sequence_keys(match: re.Match[str]) -> list[int]:
    if match["alt"]:
        character = text_keys(match["alt"])
        (alt, *_) = combination_keys("alt")
        return [alt, *character, *combination_keys("alt")[1:]]
    if match["linux"]:
        return combination_keys(f"f{ord(match['linux']) - ord('A') + 1}")
    final = match["single"] or match["final"]
    name = _NUMBERED.get(int(match["number"] or 0), "") if final == "~" else _FINAL.get(final, "")
    held = max(0, int(match["held"] or 1) - 1)
    names = [key for bit, key in ((1, "shift"), (4, "ctrl"), (2, "alt")) if held & bit]
    return combination_keys("-".join([*names, name or "none"]))


class ScreenStream:
    """Screen and keyboard as :func:`coremesh.cluster.machine.terminal.interact` takes them."""

    def __init__(self, remote: Source, stop: threading.Event) -> None:
        self.last = TextScreen()  #: what was on the screen when it was looked at last
        self.over = threading.Event()  #: nothing is drawn any more
        self._remote = remote
        self._stop = stop
        self._painter = Painter()

    def write(self, data: bytes | str) -> None:
        """Press the keys for what was typed."""
        if keys := typed_keys(check("data", data)):
            self._remote.call("press_keys", keys)

    def follow(self) -> Iterator[bytes]:
        """Yield what draws the screen, until the machine has ended or the session is over."""
        shown: TextScreen | None = None
        size = os.get_terminal_size()
        try:
            ended = False
            while not ended:
                now, ended = self._remote.call("watch_screen", shown, _WAIT_SECONDS)
                if self._stop.is_set():
                    return
                if now != shown or os.get_terminal_size() != size:
                    size = os.get_terminal_size()
                    yield self._painter.paint(now, *size).encode()
                    self.last = shown = now
        finally:
            self.over.set()


def interact(remote: Source) -> bool:
    """Join this terminal to the guest's screen and keyboard until the machine ends (False) or Ctrl-] (True).

    The terminal is restored, and what was last on the screen of a machine that has ended is printed. Main
    thread. Raises :class:`MachineStateError` without a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MachineStateError("the screen needs a terminal; in a script use screen(), type() and press().")
    stop = threading.Event()
    stream = ScreenStream(remote, stop)
    sink = sys.stdout.fileno()
    os.write(sink, _ENTER)
    try:
        left = terminal.interact(stream, stop)
    finally:
        stop.set()
        stream.over.wait(2 * _WAIT_SECONDS)
        os.write(sink, _LEAVE)
    if not left and (text := str(stream.last)):
        print(text, flush=True)
    return left
