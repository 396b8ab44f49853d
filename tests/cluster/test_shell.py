# SPDX-License-Identifier: GPL-2.0-or-later
"""A command's exact output and status, over a real terminal and real shells; no guest needed."""

import os
import pty
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from typing import cast

import pytest
from coremesh.cluster.machine.command import run_command
from coremesh.cluster.machine.console import Console
from coremesh.cluster.machine.shell import INTERRUPT, PROMPT, Dialogue, State
from coremesh.core.errors import ConfigurationError, ConsoleTimeoutError
from hypothesis import given
from hypothesis import strategies as st

SHELLS = {"busybox": ["busybox", "sh", "-i"], "bash": ["bash", "--norc", "-i"], "dash": ["dash", "-i"]}


class TerminalShell:
    """An interactive shell on a pseudo-terminal, with its echo, line editing and newline rewriting."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**os.environ, "PS1": "$ ", "TERM": "vt100"})
        seen = b""
        while not re.search(PROMPT, seen):
            seen += self.read(5.0)

    def read(self, timeout: float) -> bytes:
        ready, _, _ = select.select([self.descriptor], [], [], timeout)
        return os.read(self.descriptor, 65536) if ready else b""

    def run(
        self, command: str, keys: tuple[bytes, ...] = (), patience: float = 10.0
    ) -> tuple[bytes, int | None]:
        dialogue, output = Dialogue(command), b""
        waiting = list(keys)
        os.write(self.descriptor, dialogue.start())
        while dialogue.state is not State.DONE:
            typing = bool(waiting) and dialogue.state is State.RUNNING
            data = self.read(0.4 if typing else patience)
            if not data:
                assert typing, f"the dialogue hangs in {dialogue.state}"
                os.write(self.descriptor, waiting.pop(0))
            step = dialogue.on_bytes(data)
            os.write(self.descriptor, step.send)
            output += step.output
        return output, dialogue.status

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[TerminalShell]:
    command = SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    shell = TerminalShell(command)
    yield shell
    shell.close()


def test_output_arrives_byte_for_byte_and_the_status_with_it(shell: TerminalShell) -> None:
    assert shell.run("printf 'a\\r\\n\\tb\\033[1m'; exit 7") == (b"a\r\n\tb\x1b[1m", 7)


def test_many_commands_in_a_row_leave_the_shell_usable(shell: TerminalShell) -> None:
    for status in (0, 1, 42, 255):
        assert shell.run(f"echo {status}; exit {status}") == (b"%d\n" % status, status)


def test_any_quoting_and_several_lines_mean_what_they_say(shell: TerminalShell) -> None:
    command = """a='b

c'; echo "$a" "it's" '"q" $HOME `x`' \\\\
for i in 1 2; do
    echo "<$i>"
done"""
    assert shell.run(command) == (b'b\n\nc it\'s "q" $HOME `x` \\\n<1>\n<2>\n', 0)


def test_control_characters_in_a_command_reach_it_and_not_the_terminal(shell: TerminalShell) -> None:
    assert shell.run("printf '\x03\x04\x11\x13\x15\x16\x1a\x1c\x7f'") == (
        b"\x03\x04\x11\x13\x15\x16\x1a\x1c\x7f",
        0,
    )


def test_letters_of_the_world_come_back(shell: TerminalShell) -> None:
    assert shell.run("printf 'œuvre 心 🜂'") == ("œuvre 心 🜂".encode(), 0)


def test_a_command_longer_than_the_terminals_queue_arrives_whole(shell: TerminalShell) -> None:
    long = "x" * 30_000
    assert shell.run(f"echo {long}") == (long.encode() + b"\n", 0)


def test_a_command_of_thousands_of_lines_arrives_whole(shell: TerminalShell) -> None:
    output, status = shell.run("\n".join(["# nothing"] * 3000 + ["echo end"]))
    assert (output, status) == (b"end\n", 0)


def test_megabytes_of_output_arrive_whole(shell: TerminalShell) -> None:
    output, status = shell.run("seq 200000")
    assert (output, status) == ("".join(f"{n}\n" for n in range(1, 200_001)).encode(), 0)


def test_a_missing_last_newline_stays_missing_and_no_output_is_none(shell: TerminalShell) -> None:
    assert shell.run("printf x") == (b"x", 0)
    assert shell.run("") == (b"", 0)


def test_standard_input_is_empty_so_that_cat_ends(shell: TerminalShell) -> None:
    assert shell.run("cat; echo done") == (b"done\n", 0)


def test_standard_error_is_part_of_the_output_in_order(shell: TerminalShell) -> None:
    assert shell.run("echo one; echo two >&2; echo three") == (b"one\ntwo\nthree\n", 0)


def test_a_killed_command_says_so_by_its_status_alone(shell: TerminalShell) -> None:
    assert shell.run("kill -9 $$") == (b"", 137)


def test_a_syntax_error_has_a_status_and_does_not_end_the_dialogue(shell: TerminalShell) -> None:
    output, status = shell.run("if")
    assert status == 2
    assert b"yntax" in output
    assert shell.run("echo still here") == (b"still here\n", 0)


def test_a_command_that_takes_too_long_dies_of_ctrl_c_and_the_shell_lives(shell: TerminalShell) -> None:
    begin = time.monotonic()
    assert shell.run("echo begun; sleep 60", keys=(INTERRUPT,)) == (b"begun\n", 130)
    assert time.monotonic() - begin < 10
    assert shell.run("echo on") == (b"on\n", 0)


def test_a_command_that_spoils_the_terminal_does_not_spoil_the_next(shell: TerminalShell) -> None:
    shell.run("stty raw echo </dev/tty; printf '\\033[?25l'")
    assert shell.run("printf 'a\\nb'") == (b"a\nb", 0)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts: list[int]) -> None:
    """Given a recorded conversation, when it arrives in any pieces, then the result is the same."""
    dialogue = Dialogue("x", nonce="ab" * 12)
    mark = b"ab" * 12 + b"-"
    stream = b" sh -c '...' abab abab\r\n" + mark + b"ready-" + mark + b"begin-" + b"out-put " + mark[:9]
    stream += b" more\n" + mark + b"93-" + b"\r\n~ # \x1b[6n"
    dialogue.start()
    output, sent = b"", b""
    while stream:
        size = cuts.pop() if cuts else len(stream)
        step = dialogue.on_bytes(stream[:size])
        output, sent, stream = output + step.output, sent + step.send, stream[size:]
    assert (dialogue.state, dialogue.status) == (State.DONE, 93)
    assert output == b"out-put " + mark[:9] + b" more\n"
    assert sent == b"-x\n.\n"


class Guest:
    """A console whose shell answers at once, and has nothing more to say after its prompt."""

    lost, tail = 0, b""

    def __init__(self, *last: bytes) -> None:
        self._last = last
        self._said: list[bytes] = []
        self._interrupted = False

    def write(self, data: bytes) -> None:
        if typed := re.search(rb"' (\w+) (\w+) 2>", data):
            self._mark = typed[1] + typed[2] + b"-"
            self._said = [self._mark + b"ready-"]
        elif data == INTERRUPT:
            self._interrupted = True
            self._say(b"130-\r\n~ # ")
        elif data.endswith(b".\n"):
            self._said.append(self._mark + b"begin-")
            self._say(*self._last)

    def _say(self, *pieces: bytes) -> None:
        self._said += [b"out" + self._mark + piece if b"-" in piece else piece for piece in pieces]

    def next(self, timeout: float) -> bytes:
        if not self._said and not self._last and not self._interrupted:
            time.sleep(timeout)
            return b""
        assert self._said, "it is read once more after the prompt"
        return self._said.pop(0)


@pytest.mark.parametrize("last", [(b"7-\r\n~ # ",), (b"7-\r\n", b"~ # \x1b[6n")])
def test_given_a_prompt_in_one_piece_with_the_status_or_alone_when_it_is_there_then_the_command_is_over(
    last: tuple[bytes, ...],
) -> None:
    result = run_command(cast(Console, Guest(*last)), "true", 60.0)
    assert (result.output, result.status) == ("out", 7)


def test_given_a_command_that_is_too_slow_when_its_end_comes_with_the_prompt_then_no_more_is_read() -> None:
    with pytest.raises(ConsoleTimeoutError, match=r"longer than 0\.2 s"):
        run_command(cast(Console, Guest()), "sleep 9", 0.2)


@pytest.mark.parametrize(
    ("text", "is_prompt"),
    [
        (b"~ # ", True),
        (b"\r\n~ # \x1b[6n", True),
        (b"\r\nroot@guest:/# ", True),
        (b"\r\n\x1b[1muser$\x1b[0m ", True),
        (b"Linux version 6.1 ... (Debian) #1 SMP\r\n", False),
        (b"\r\n[    0.000000] Linux version 6.1.0 (gcc-12, GNU ld 2.40) #", False),
        (b"\r\n[    1.2] evm: 100%", False),
        (b"", False),
    ],
)
def test_a_prompt_is_told_from_the_kernels_log(text: bytes, is_prompt: bool) -> None:
    assert bool(re.search(PROMPT, text)) is is_prompt


def test_what_cannot_be_sent_is_refused_before_anything_is_typed() -> None:
    with pytest.raises(ConfigurationError, match="NUL"):
        Dialogue("a\0b")
    with pytest.raises(ConfigurationError, match="too long"):
        Dialogue("x" * 200_000)


def test_the_typed_line_never_holds_a_marker() -> None:
    dialogue = Dialogue("true", nonce="0123456789abcdef01234567")
    assert b"0123456789abcdef01234567" not in dialogue.start()
    assert len(dialogue.start()) < 1000
