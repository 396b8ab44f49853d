# SPDX-License-Identifier: GPL-2.0-or-later
"""A person at a terminal: keys go to the guest, Ctrl-] comes back, and the terminal is as it was before."""

import os
import pty
import re
import select
import signal
import sys
import termios
import time

import pytest
from coremesh.cluster.machine.terminal import raw_mode, size_told

# A process whose console is an echo: what is typed comes out in angle brackets; 'q' ends the machine.
PROGRAM = """
import queue, sys, termios, threading
from coremesh.cluster.machine.terminal import interact

class Echo:
    def __init__(self):
        self.out = queue.Queue()
        self.out.put(b"ready ")
    def write(self, data):
        if b"!" in data:
            raise SystemExit(9)
        self.out.put(b"<" + data.hex().encode() + b">")
        if b"q" in data:
            self.out.put(None)
    def follow(self):
        while (data := self.out.get()) is not None:
            yield data

before = termios.tcgetattr(0)
try:
    left = interact(Echo(), threading.Event())
    print("left" if left else "ended")
finally:
    print("restored" if termios.tcgetattr(0) == before else "spoiled", flush=True)
"""


def conversation(*keys: bytes) -> tuple[bytes, int]:
    """Type the keys, each after the program has answered the one before; return the screen and the status."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    screen, waiting = b"", list(keys)
    deadline = time.monotonic() + 20
    answers = 0
    while time.monotonic() < deadline:
        ready, _, _ = select.select([descriptor], [], [], 0.2)
        if ready:
            try:
                data = os.read(descriptor, 4096)
            except OSError:  # the other side is closed
                break
            screen += data
        if len(re.findall(rb"ready |>", screen)) > answers and waiting:
            answers += 1
            os.write(descriptor, waiting.pop(0))
    os.close(descriptor)
    return screen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_key_but_the_escape_goes_to_the_guest() -> None:
    screen, status = conversation(b"\x03", b"\x1c\x1a", b"x\r", b"\x1d")
    assert b"<03>" in screen
    assert b"<1c1a>" in screen
    assert b"<780d>" in screen
    assert b"left" in screen
    assert b"restored" in screen
    assert status == 0


def test_the_end_of_the_machine_ends_the_session() -> None:
    screen, status = conversation(b"q")
    assert b"ended" in screen
    assert b"restored" in screen
    assert status == 0


def test_the_terminal_is_restored_after_an_error() -> None:
    screen, status = conversation(b"!")
    assert b"restored" in screen
    assert status == 9


def test_keys_typed_before_the_escape_in_one_go_still_arrive() -> None:
    screen, _ = conversation(b"ab\x1dcd")
    assert b"<6162>" in screen or b"left" in screen
    assert b"<6364>" not in screen


def test_raw_mode_is_undone_by_an_exception() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with pytest.raises(KeyError), raw_mode(slave):
        assert termios.tcgetattr(slave) != before
        raise KeyError
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_the_terminals_size_is_told_at_once_and_when_it_changes() -> None:
    """Given a terminal that changes its size, then the guest hears of both sizes, not of an unknown one."""
    leader, follower = os.openpty()
    told: list[tuple[int, int]] = []

    def wait(count: int) -> None:
        deadline = time.monotonic() + 10
        while len(told) < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    before = signal.getsignal(signal.SIGWINCH)
    termios.tcsetwinsize(follower, (25, 80))
    with size_told(follower, lambda columns, rows: told.append((columns, rows))):
        wait(1)
        termios.tcsetwinsize(follower, (43, 132))
        signal.raise_signal(signal.SIGWINCH)
        wait(2)
        termios.tcsetwinsize(follower, (0, 0))
        signal.raise_signal(signal.SIGWINCH)
    assert told == [(80, 25), (132, 43)]
    assert signal.getsignal(signal.SIGWINCH) == before
    os.close(leader)
    os.close(follower)
