# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal in a few lines, for tests of what is drawn on one: cells, colours, the cursor (ECMA-48)."""

import re

_PIECE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|(.)", re.DOTALL)


class Terminal:
    """`rows` of characters, `styles` of their SGR parameters. Raises ValueError for what it does not know."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.row = self.column = 0
        self.cursor_shown = True
        self.second_screen = False
        self.drawn = 0  # characters put so far
        self._style = "0"
        self._clear()

    def _clear(self) -> None:
        self.cells = [[" "] * self.width for _ in range(self.height)]
        self.styles = [["0"] * self.width for _ in range(self.height)]

    def feed(self, text: str) -> None:
        """What a program writes."""
        for match in _PIECE.finditer(text):
            private, parameters, final, character = match.groups()
            if character is not None:
                self._put(character)
            elif private:
                self._mode(parameters, final == "h")
            elif final == "H":
                row, column = map(int, parameters.split(";"))
                self.row, self.column = row - 1, column - 1
            elif final == "J":
                self._clear()
            elif final == "m":
                self._style = parameters
            else:
                raise ValueError(f"no such sequence: {match[0]!r}")

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
        else:
            if not (
                0 <= self.row < self.height and 0 <= self.column < self.width and character.isprintable()
            ):
                raise ValueError(f"{character!r} at row {self.row}, column {self.column}")
            self.cells[self.row][self.column] = character
            self.styles[self.row][self.column] = self._style
            self.column += 1
            self.drawn += 1

    def _mode(self, number: str, on: bool) -> None:
        if number == "25":
            self.cursor_shown = on
        elif number == "1049":
            self.second_screen = on
        else:
            raise ValueError(f"no such mode: {number}")

    @property
    def rows(self) -> list[str]:
        """The text."""
        return ["".join(row) for row in self.cells]
