# SPDX-License-Identifier: GPL-2.0-or-later
"""The text screen from the person's side: cells of display memory as characters, colours and a cursor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coremesh.hw.isa.vga import CELL_BYTES, WINDOW_BYTES, TextMode

# Code page 437 as a screen shows it: where Python's codec has control characters, there are pictures.
_PICTURES: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
GLYPHS: Final = (
    _PICTURES
    + bytes(range(0x20, 0x7F)).decode("cp437")
    + "⌂"
    + bytes(range(0x80, 0xFF)).decode("cp437")
    + " "
)


@dataclass(frozen=True)
class TextScreen:
    """What is on the screen at one moment. Printed, or as a string, it is the text.

    `rows` are strings of equal length, the screen's width; `attributes` has a byte for each of their
    characters: bits 3 to 0 the colour (blue 1, green 2, red 4, bright 8), bits 6 to 4 the background's, and
    bit 7, which with `blinks` lets the character blink, and without makes the background bright. `cursor` is
    (row, column) from 0, None where it is off or not on the screen. `shown` is False while the guest has the
    screen switched off. In a graphics mode, `graphics`, there are no rows.
    """

    rows: tuple[str, ...] = ()
    attributes: tuple[bytes, ...] = ()
    cursor: tuple[int, int] | None = None
    blinks: bool = True
    shown: bool = True
    graphics: bool = False

    def __str__(self) -> str:
        """The text, without the blanks at the ends of lines and below the last one."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n")

    def __contains__(self, text: str) -> bool:
        """Whether `text` stands somewhere in the text."""
        return text in str(self)


def read_screen(mode: TextMode, read: Callable[[int, int], bytes]) -> TextScreen:
    """The text that `mode` describes; ``read(gpa, length)`` gives guest memory. Any thread, without locks."""
    if mode.graphics:
        return TextScreen(blinks=mode.blinks, shown=mode.shown, graphics=True)
    memory = read(mode.memory, WINDOW_BYTES)
    cells = WINDOW_BYTES // CELL_BYTES
    characters, attributes = memory[0::2] * 2, memory[1::2] * 2  # twice: a row may run round the end
    rows, colours, cursor = [], [], None
    for row in range(mode.rows):
        first = mode.start + row * mode.pitch if row < mode.split else (row - mode.split) * mode.pitch
        if mode.cursor is not None and first <= mode.cursor < first + mode.columns:
            cursor = (row, mode.cursor - first)
        first %= cells
        rows.append("".join(map(GLYPHS.__getitem__, characters[first : first + mode.columns])))
        colours.append(attributes[first : first + mode.columns])
    return TextScreen(tuple(rows), tuple(colours), cursor, mode.blinks, mode.shown)
