# SPDX-License-Identifier: GPL-2.0-or-later
"""A teaching kernel that prints on the VGA text screen and echoes keys, seen by a program and by a person."""

import codecs
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine
from coremesh.hw.backend.keys import combination_keys, text_keys
from coremesh.hw.backend.screen import TextScreen, read_screen
from patience import until
from terminal_model import Terminal

_UNFINISHED = re.compile(r"\x1b(?:\[[?\d;]*)?$")
TITLE = " A kernel that learns to print "


def test_given_a_kernel_that_prints_at_b8000_when_keys_come_by_irq_1_then_it_echoes_them(
    guest: Callable[[str], Path],
) -> None:
    """It programs neither controller nor mode. What is typed faster than it reads comes whole."""
    with BaremetalMachine(guest("screen"), vcpus=1) as machine:
        vga, keyboard = machine.node.devices["vga"], machine.node.devices["i8042"]

        def screen() -> TextScreen:
            return read_screen(vga.text_mode(), machine.host.ram_read)  # type: ignore[attr-defined]

        def press(keys: list[int]) -> None:
            keyboard.press(keys)  # type: ignore[attr-defined]

        machine.start()
        machine.wait_for("waiting for keys")
        assert screen().rows[0].startswith(TITLE)
        assert screen().attributes[0][: len(TITLE)] == b"\x1e" * len(TITLE)
        press(text_keys("Hello, {World}!\n2 + 2 = 5\b4"))
        assert until(lambda: "2 + 2 = 4" in screen())
        assert screen().rows[2].rstrip() == ">Hello, {World}!"
        assert screen().cursor == (3, 9)
        press(text_keys("".join(f"\nline {number}" for number in range(300))))
        assert until(lambda: screen().rows[24].startswith("line 299"))
        assert [row.rstrip() for row in screen().rows] == [f"line {number}" for number in range(275, 300)]
        press(combination_keys("esc"))
        result = machine.finish()
    assert result.status == PASSED, result.story()


class Person:
    """Someone at a terminal of 90 by 30 in which ``coremesh boot --screen text`` runs."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            command = [sys.executable, "-m", "coremesh.cluster.cli", "boot", "--screen", "text", *arguments]
            os.execv(sys.executable, command)
        ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("4H", 30, 90, 0, 0))
        self.modes = termios.tcgetattr(self.descriptor)
        self.terminal = Terminal(90, 30)
        self.before = ""  # what was printed on the terminal's first screen
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def look(self, seconds: float = 0.05) -> bool:
        """Take what the program has written; False when it has gone."""
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if not ready:
            return True
        try:
            text = self._rest + self._decoder.decode(os.read(self.descriptor, 1 << 16))
        except OSError:
            return False
        # A sequence that is not complete waits for the rest.
        cut = match.start() if (match := _UNFINISHED.search(text)) else len(text)
        text, self._rest = text[:cut], text[cut:]
        if not self.terminal.second_screen and "\x1b[?1049h" not in text:
            self.before += text
        else:
            head, entered, tail = text.rpartition("\x1b[?1049h") if "\x1b[?1049h" in text else ("", "", text)
            self.before += head
            drawn, left, after = tail.partition("\x1b[?1049l")
            self.terminal.feed(entered + drawn + left)
            self.before += after
        return True

    def sees(self, text: str, seconds: float = 60.0) -> bool:
        deadline = time.monotonic() + seconds
        while not any(text in row for row in self.terminal.rows):
            if time.monotonic() > deadline or not self.look():
                return False
        return True

    def types(self, data: bytes) -> None:
        os.write(self.descriptor, data)

    def leaves(self, seconds: float = 30.0) -> int:
        """The exit status, after the program has ended."""
        deadline = time.monotonic() + seconds
        while self.look() and time.monotonic() < deadline:
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return status


@pytest.mark.timeout(180)
def test_given_a_person_at_a_terminal_when_the_kernel_prints_then_screen_and_keys_are_theirs(
    guest: Callable[[str], Path],
) -> None:
    """Text, colours and the cursor are the kernel's; at its end the terminal is restored."""
    person = Person("--kernel", str(guest("screen")), "--memory", "64M")
    assert person.sees(TITLE), person.before
    assert person.terminal.second_screen
    assert person.terminal.styles[0][1] == "0;93;44"
    person.types(b"Abc, x\x7f\x1b[Dz!")  # the arrow is a key that this kernel does not know
    assert person.sees(">Abc, z!")
    assert until(lambda: person.look(0.01) and (person.terminal.row, person.terminal.column) == (2, 8))
    person.types(b"\x1b")
    assert person.leaves() == PASSED
    assert not person.terminal.second_screen and person.terminal.cursor_shown
    assert ">Abc, z!" in person.before  # the last screen stays for the person to read


@pytest.mark.timeout(180)
def test_given_a_person_when_they_type_the_escape_then_the_machine_is_off_and_the_terminal_restored(
    guest: Callable[[str], Path],
) -> None:
    """Ctrl-] leaves, as from the serial console."""
    person = Person("--kernel", str(guest("screen")), "--memory", "64M")
    assert person.sees(TITLE), person.before
    person.types(b"\x1d")
    assert person.leaves() == 0
    assert not person.terminal.second_screen and person.terminal.cursor_shown
