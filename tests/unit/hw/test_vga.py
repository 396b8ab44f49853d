# SPDX-License-Identifier: GPL-2.0-or-later
"""VGA: the registers as a text-mode driver uses them, and the text that a person then sees."""

from itertools import pairwise
from typing import Any

import pytest
from coremesh.hw.backend.screen import GLYPHS, TextScreen, read_screen
from coremesh.hw.isa.vga import COLOUR_TEXT, MONOCHROME_TEXT, WINDOW_BYTES, Vga

FRAME_NS = 449 * 31_778


class Card:
    """A VGA in a PC as a guest programs it by port, and display memory that a test fills."""

    def __init__(self, pc: Any) -> None:
        self.pc = pc
        self.device: Vga = pc.node.devices["vga"]
        self.memory = {COLOUR_TEXT: bytearray(WINDOW_BYTES), MONOCHROME_TEXT: bytearray(WINDOW_BYTES)}

    def crtc(self, index: int, value: int, base: int = 0x3D4) -> None:
        self.pc.outw(base, value << 8 | index)

    def crtc_at(self, index: int, base: int = 0x3D4) -> int:
        self.pc.outb(base, index)
        return int(self.pc.inb(base + 1))

    def attribute(self, index: int, value: int) -> None:
        self.pc.inb(0x3DA)
        self.pc.outb(0x3C0, index)
        self.pc.outb(0x3C0, value)

    def put(self, cell: int, text: str, attribute: int = 0x07, window: int = COLOUR_TEXT) -> None:
        for offset, character in enumerate(text.encode("cp437")):
            at = 2 * (cell + offset) % WINDOW_BYTES
            self.memory[window][at : at + 2] = bytes([character, attribute])

    def screen(self) -> TextScreen:
        return read_screen(self.device.text_mode(), lambda gpa, length: bytes(self.memory[gpa][:length]))


@pytest.fixture
def card(pc: Any) -> Card:
    return Card(pc)


def test_it_comes_up_in_80_by_25(card: Card) -> None:
    """Given a PC that was switched on, then text is shown at once, with the cursor in the first cell."""
    card.put(0, "Hello", 0x1F)
    card.put(24 * 80 + 79, "!")
    screen = card.screen()
    assert (len(screen.rows), {len(row) for row in screen.rows}) == (25, {80})
    assert screen.rows[0].rstrip() == "Hello" and screen.rows[24][79] == "!"
    assert screen.attributes[0][:6] == b"\x1f" * 5 + b"\0"
    assert (screen.cursor, screen.blinks, screen.shown, screen.graphics) == ((0, 0), True, True, False)
    assert "Hello" in screen and str(screen).startswith("Hello\n")


def test_the_cursor_is_where_the_crt_controller_has_it(card: Card) -> None:
    """When the guest writes the cursor's address, a byte at a time or with one word, then it stands there."""
    card.pc.outb(0x3D4, 0x0E)
    card.pc.outb(0x3D5, 0x03)
    card.pc.outb(0x3D4, 0x0F)
    card.pc.outb(0x3D5, 0xC1)
    assert card.screen().cursor == (12, 1)
    card.crtc(0x0F, 0xC2)
    assert card.screen().cursor == (12, 2)
    assert (card.crtc_at(0x0E), card.crtc_at(0x0F)) == (0x03, 0xC2)


@pytest.mark.parametrize(("start", "end"), [(0x2D, 0x0E), (0x0F, 0x0E), (0x10, 0x1F)])
def test_a_cursor_that_is_off_is_not_shown(card: Card, start: int, end: int) -> None:
    """When bit 5 of its start is set, or it begins behind its end or below the cell, there is none."""
    card.crtc(0x0A, start)
    card.crtc(0x0B, end)
    assert card.screen().cursor is None
    card.crtc(0x0A, 0x00)
    card.crtc(0x0B, 0x0F)
    assert card.screen().cursor == (0, 0)


def test_the_start_address_scrolls(card: Card) -> None:
    """Given text further down in the display memory, when the start address moves there, then it is shown."""
    card.put(80, "second")
    card.put(25 * 80, "twenty-sixth")
    card.crtc(0x0C, 0)
    card.crtc(0x0D, 80)
    card.crtc(0x0F, 80)
    screen = card.screen()
    assert screen.rows[0].rstrip() == "second" and screen.rows[24].rstrip() == "twenty-sixth"
    assert screen.cursor == (0, 0)


def test_text_runs_round_the_end_of_its_window(card: Card) -> None:
    """Given a start address 10 cells before the end of the 32 KiB, then the row goes on at the beginning."""
    card.put(WINDOW_BYTES // 2 - 10, "0123456789abc")
    card.crtc(0x0C, (WINDOW_BYTES // 2 - 10) >> 8)
    card.crtc(0x0D, (WINDOW_BYTES // 2 - 10) & 0xFF)
    assert card.screen().rows[0].startswith("0123456789abc")


def test_a_split_screen_begins_its_lower_part_at_the_first_cell(card: Card) -> None:
    """Given line compare at scan line 319, then the rows from the 21st on come from cell 0."""
    card.put(0, "status")
    card.put(1000, "scrolled")
    card.crtc(0x0C, 1000 >> 8)
    card.crtc(0x0D, 1000 & 0xFF)
    card.crtc(0x11, 0x0E)
    card.crtc(0x07, 0x1F)
    card.crtc(0x09, 0x0F)
    card.crtc(0x18, 319 & 0xFF)
    screen = card.screen()
    assert screen.rows[0].startswith("scrolled") and screen.rows[20].startswith("status")


def test_50_rows(card: Card) -> None:
    """When the guest makes the cells 8 lines high, then there are 50 rows."""
    card.put(49 * 80, "fiftieth")
    card.crtc(0x09, 0x47)
    screen = card.screen()
    assert len(screen.rows) == 50 and screen.rows[49].startswith("fiftieth")


def test_40_columns_with_a_pitch_of_its_own(card: Card) -> None:
    """Given 40 columns shown of rows that are 80 cells apart, then each row shows its first 40."""
    card.crtc(0x11, 0x0E)
    card.crtc(0x01, 0x27)
    card.put(80, "second row")
    screen = card.screen()
    assert len(screen.rows[0]) == 40 and screen.rows[1].startswith("second row")


def test_write_protection_of_the_timing(card: Card) -> None:
    """Given bit 7 of register 11h, then registers 0 to 7 keep their values, but for line compare's bit 8."""
    before = [card.crtc_at(index) for index in range(8)]
    for index in range(8):
        card.crtc(index, 0x00)
    assert [card.crtc_at(index) for index in range(7)] == before[:7]
    assert card.crtc_at(7) == before[7] & ~0x10
    card.crtc(0x11, 0x0E)
    card.crtc(0x00, 0x2D)
    assert card.crtc_at(0x00) == 0x2D


def test_the_flip_flop_of_the_attribute_controller(card: Card) -> None:
    """Given index and data at one port, when input status 1 is read, then the next write is an index."""
    card.attribute(0x30, 0x00)  # the mode, without blinking; bit 5 leaves the screen on
    assert not card.screen().blinks
    card.pc.inb(0x3DA)
    card.pc.outb(0x3C0, 0x30)
    assert (card.pc.inb(0x3C0), card.pc.inb(0x3C1)) == (0x30, 0x00)
    card.pc.inb(0x3DA)  # back to the index, though no data came
    card.pc.outb(0x3C0, 0x30)
    card.pc.outb(0x3C0, 0x08)
    assert card.screen().blinks


def test_the_screen_can_be_switched_off(card: Card) -> None:
    """When the sequencer switches it off, or the palette is being loaded, then that is told with the text."""
    card.put(0, "kept")
    card.pc.outw(0x3C4, 0x2001)
    assert not card.screen().shown and "kept" in card.screen()
    card.pc.outw(0x3C4, 0x0001)
    assert card.screen().shown
    card.attribute(0x00, 0x00)
    assert not card.screen().shown
    card.pc.inb(0x3DA)
    card.pc.outb(0x3C0, 0x20)
    assert card.screen().shown


def test_monochrome_moves_ports_and_memory(card: Card) -> None:
    """When MISC chooses 3Bxh, then the CRT controller answers there alone; the text is at B0000h."""
    assert card.pc.inb(0x3CC) & 1
    assert card.crtc_at(0x0A, 0x3B4) == 0xFF
    card.pc.outb(0x3C2, 0x66)
    card.pc.outw(0x3CE, 0x0A06)
    card.put(0, "mono", window=MONOCHROME_TEXT)
    assert card.screen().rows[0].startswith("mono")
    assert card.pc.inb(0x3D5) == 0xFF and card.pc.inb(0x3DA) == 0xFF
    card.crtc(0x0F, 3, 0x3B4)
    assert card.crtc_at(0x0F, 0x3B4) == 3 and card.screen().cursor == (0, 3)
    assert card.pc.inb(0x3BA) != 0xFF


def test_text_stays_while_a_font_is_loaded(card: Card) -> None:
    """Given the graphics controller mapped to A0000h, as font loaders do, then the text is where it was."""
    card.put(0, "text")
    card.pc.outw(0x3CE, 0x0006)
    assert card.screen().rows[0].startswith("text")


@pytest.mark.parametrize("how", ["graphics controller", "attribute controller"])
def test_a_graphics_mode_has_no_text(card: Card, how: str) -> None:
    """When the guest sets a graphics mode, then a person is told so instead of shown garbage."""
    if how == "graphics controller":
        card.pc.outw(0x3CE, 0x0506)
    else:
        card.attribute(0x30, 0x01)
    screen = card.screen()
    assert screen.graphics and screen.rows == () and str(screen) == ""


def test_dac_registers_read_back(card: Card) -> None:
    """When a colour is written, three times 6 bits, then it reads back, and the index moves on."""
    card.pc.outb(0x3C8, 5)
    for value in (0x15, 0x2A, 0xFF):
        card.pc.outb(0x3C9, value)
    assert card.pc.inb(0x3C8) == 6 and card.pc.inb(0x3C7) == 0x00
    card.pc.outb(0x3C7, 5)
    assert card.pc.inb(0x3C7) == 0x03
    assert [card.pc.inb(0x3C9) for _ in range(3)] == [0x15, 0x2A, 0x3F]
    card.pc.outb(0x3C7, 0x07)  # light grey, as the palette of a text mode has it
    assert [card.pc.inb(0x3C9) for _ in range(3)] == [0x2A, 0x2A, 0x2A]
    card.pc.outb(0x3C6, 0x0F)
    assert card.pc.inb(0x3C6) == 0x0F


def test_indexed_registers_read_back(card: Card) -> None:
    """When sequencer and graphics controller are written, they hold it; beyond the last there is nothing."""
    for port, last in ((0x3C4, 4), (0x3CE, 8)):
        for index in range(last + 1):
            card.pc.outw(port, (0x40 | index) << 8 | index)
        for index in range(last + 1):
            card.pc.outb(port, index)
            assert (card.pc.inb(port), card.pc.inb(port + 1)) == (index, 0x40 | index)
    card.pc.outw(0x3CE, 0x550F)
    assert card.pc.inb(0x3CF) == 0


def test_a_guest_can_wait_for_the_vertical_retrace(card: Card) -> None:
    """Given a loop that polls input status 1 every 10 us, then it meets each edge of the retrace at 70 Hz."""
    levels = []
    for _ in range(3 * FRAME_NS // 10_000):
        card.pc.clock.advance(10_000)
        levels.append(bool(card.pc.inb(0x3DA) & 0x08))
    rises = sum(now and not before for before, now in pairwise(levels))
    assert rises == 3
    assert {card_status & 0x01 for card_status in _statuses(card)} == {0, 1}


def _statuses(card: Card) -> list[int]:
    found = []
    for _ in range(100):
        card.pc.clock.advance(1_000)
        found.append(int(card.pc.inb(0x3DA)))
    return found


def test_any_character_has_one_glyph() -> None:
    """Every byte is shown as one printable character: nothing of a guest steers a person's terminal."""
    assert len(GLYPHS) == 256
    assert all(glyph.isprintable() for glyph in GLYPHS)
    assert GLYPHS[0x01] == "☺" and GLYPHS[0xDB] == "█" and GLYPHS[0x41] == "A" and GLYPHS[0xE1] == "ß"
