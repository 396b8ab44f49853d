# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's screen drawn on a terminal, and what is typed there as keys."""

import pytest
from coremesh.cluster.machine.screen import Painter, typed_keys
from coremesh.hw.backend.keys import combination_keys, text_keys
from coremesh.hw.backend.screen import TextScreen
from hypothesis import given
from hypothesis import strategies as st
from terminal_model import Terminal

WIDTH, HEIGHT = 6, 4


def screen(*rows: str, attribute: int = 0x07, cursor: tuple[int, int] | None = None) -> TextScreen:
    padded = tuple(row.ljust(WIDTH) for row in (*rows, *[""] * (HEIGHT - len(rows))))
    return TextScreen(padded, tuple(bytes([attribute]) * WIDTH for _ in padded), cursor)


SCREENS = st.builds(
    TextScreen,
    rows=st.tuples(*[st.text("ab ", min_size=WIDTH, max_size=WIDTH)] * HEIGHT),
    attributes=st.tuples(*[st.binary(min_size=WIDTH, max_size=WIDTH)] * HEIGHT),
    cursor=st.none() | st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)),
)


@given(st.lists(SCREENS, min_size=1, max_size=6))
def test_whatever_was_shown_before_the_terminal_shows_the_screen(screens: list[TextScreen]) -> None:
    """Given any sequence of screens, when each is drawn over the one before, then the last is there, whole.

    Its characters, its colours as a painter that begins anew draws them, and its cursor.
    """
    terminal, fresh = Terminal(WIDTH, HEIGHT), Terminal(WIDTH, HEIGHT)
    painter = Painter()
    for each in screens:
        terminal.feed(painter.paint(each, WIDTH, HEIGHT))
    last = screens[-1]
    fresh.feed(Painter().paint(last, WIDTH, HEIGHT))
    assert terminal.rows == list(last.rows)
    assert [[_plain(style) for style in row] for row in terminal.styles] == [
        [_plain(style) for style in row] for row in fresh.styles
    ]
    assert terminal.cursor_shown is (last.cursor is not None)
    assert last.cursor in (None, (terminal.row, terminal.column))


def _plain(style: str) -> str:
    """A cell that was never drawn looks as one of light grey on black."""
    return "0" if style == "0;37;40" else style


def test_only_what_changes_is_drawn() -> None:
    """Given a screen that is drawn, when one character of it changes, then one is drawn."""
    terminal, painter = Terminal(WIDTH, HEIGHT), Painter()
    terminal.feed(painter.paint(screen("abc", "def"), WIDTH, HEIGHT))
    assert terminal.drawn == 6
    terminal.feed(painter.paint(screen("abc", "dxf"), WIDTH, HEIGHT))
    assert (terminal.drawn, terminal.rows[1]) == (7, "dxf   ")
    assert painter.paint(screen("abc", "dxf"), WIDTH, HEIGHT) == "\x1b[?25l"


@pytest.mark.parametrize(
    ("attribute", "blinks", "style"),
    [
        (0x07, True, "0;37;40"),
        (0x1E, True, "0;93;44"),
        (0x4F, True, "0;97;41"),
        (0x02, True, "0;32;40"),
        (0x8C, True, "0;91;40;5"),
        (0x8C, False, "0;91;100"),
        (0xF1, False, "0;34;107"),
    ],
)
def test_colours(attribute: int, blinks: bool, style: str) -> None:
    """Blue and red change places; the highest bit blinks, or makes the background bright."""
    terminal = Terminal(WIDTH, HEIGHT)
    shown = TextScreen(("x" * WIDTH,), (bytes([attribute]) * WIDTH,), None, blinks)
    terminal.feed(Painter().paint(shown, WIDTH, HEIGHT))
    assert terminal.styles[0][0] == style


def test_a_small_terminal_follows_the_cursor() -> None:
    """Given a terminal of two rows and three columns, then the rows up to the cursor's are shown."""
    terminal, painter = Terminal(3, 2), Painter()
    terminal.feed(painter.paint(screen("abcdef", "ghi", "jkl", cursor=(2, 1)), 3, 2))
    assert terminal.rows == ["ghi", "jkl"]
    assert (terminal.row, terminal.column, terminal.cursor_shown) == (1, 1, True)
    terminal.feed(painter.paint(screen("abcdef", "ghi", "jkl", cursor=(0, 5)), 3, 2))
    assert terminal.rows == ["abc", "ghi"]
    assert not terminal.cursor_shown


def test_another_size_draws_all_anew() -> None:
    """When the terminal's window changes its size, then all is drawn again."""
    painter = Painter()
    painter.paint(screen("abc"), WIDTH, HEIGHT)
    terminal = Terminal(WIDTH, 3)
    terminal.feed(painter.paint(screen("abc"), WIDTH, 3))
    assert terminal.rows[0] == "abc   "


def test_graphics_and_a_dark_screen_are_told_apart() -> None:
    """In a graphics mode a line says so; a screen that the guest has switched off is dark."""
    terminal, painter = Terminal(60, 4), Painter()
    terminal.feed(painter.paint(TextScreen(graphics=True), 60, 4))
    assert "graphics" in terminal.rows[0]
    terminal.feed(painter.paint(TextScreen(("text",), (b"\x07" * 4,), (0, 0), shown=False), 60, 4))
    assert not "".join(terminal.rows).strip() and not terminal.cursor_shown


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aB", text_keys("aB")),
        (b"\r", combination_keys("enter")),
        (b"\x7f", combination_keys("backspace")),
        (b"\x03", combination_keys("ctrl-c")),
        (b"\x1b", combination_keys("esc")),
        (b"\x1b[A\x1bOB", [*combination_keys("up"), *combination_keys("down")]),
        (b"\x1bOP\x1b[[B\x1b[15~", [key for n in (1, 2, 5) for key in combination_keys(f"f{n}")]),
        (b"\x1b[3~", combination_keys("delete")),
        (b"\x1b[1;5C", combination_keys("ctrl-right")),
        (b"\x1b[5;3~", combination_keys("alt-pageup")),
        (b"\x1bx", combination_keys("alt-x")),
        (b"\x1b[99~a", text_keys("a")),
        ("öa".encode(), text_keys("a")),
        (b"\xffa", text_keys("a")),
        (b"", []),
    ],
)
def test_what_a_terminal_sends_becomes_keys(data: bytes, keys: list[int]) -> None:
    """Characters, control characters, and the sequences of keys; what no key stands for is left out."""
    assert typed_keys(data) == keys


@given(st.binary(max_size=40))
def test_anything_typed_is_survived(data: bytes) -> None:
    """Given any bytes, then each key that goes down comes up again."""
    keys = typed_keys(data)
    assert sorted(key & 0xFFFF for key in keys if key < 1 << 16) == sorted(
        key & 0xFFFF for key in keys if key >= 1 << 16
    )
