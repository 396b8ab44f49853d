# SPDX-License-Identifier: GPL-2.0-or-later
"""A command run by a shell that is only reached through a terminal, with its exact output and status.

:class:`Dialogue` is a pure state machine: console bytes go in, bytes to type and pieces of output come out;
it has no clock, thread or machine. What makes it hold on a terminal that echoes, wraps, edits and rewrites:

- The typed line carries the two halves of a random nonce apart, and only the guest joins them. So whatever a
  line editor makes of the echo, it is never taken for a marker, and no output can hold a marker by accident.
- That line starts a small receiver, which saves the terminal's modes, goes raw and announces itself. The
  command is sent only then, in lines with a prefix: any byte but NUL arrives as it was given, newlines and
  control characters too. Every few KiB the receiver acknowledges, so that the terminal's input queue (4 KiB,
  and no flow control on the line) never overflows.
- While the command runs, the terminal neither echoes nor rewrites newlines, and the kernel's console log
  level is 1, so that the bytes between the markers are the command's own. At 0 Linux keeps a panic to itself
  as well, and the machine would see a guest that resets for no reason.
- The receiver survives Ctrl-C and Ctrl-\\, the command does not: one that takes too long is interrupted, and
  the shell is usable after it. One that ignores both keys is suspended by job control and killed.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import Enum, auto

from coremesh.cluster.machine.option_table import PROMPT as PROMPT
from coremesh.core.errors import ConfigurationError

INTERRUPT = b"\x03"
QUIT = b"\x1c"
SUSPEND = b"\x1a"
KILL_LINE = b"\x15"

#: Typed after SUSPEND has put a command aside that ignores the other keys: ends it and undoes what it had
#: set.
RESCUE = b"\x15 kill -9 %%; stty sane; echo 7 4 1 7 >/proc/sys/kernel/printk\n"

#: Linux limits one argument of execve to 128 KiB (MAX_ARG_STRLEN).
MAX_COMMAND = 120_000

_WINDOW = 2048  # bytes sent before an acknowledgement is asked for

# One line, below the 1,024 characters that busybox lets a person edit, without single quotes inside the
# script. $0 and $1 are the halves of the nonce. The command's redirections are made in a subshell, since a
# shell that makes them itself would report a killed command ("Killed") into the command's output.
_RECEIVER = (
    "m=$0$1;p=/proc/sys/kernel/printk;s=$(stty -g);trap : INT QUIT;"
    "k=$(cat $p)&&echo 1 >$p;"
    'stty raw -echo;printf %s "$m-ready-";'
    'n=$(printf "\\nx");n=${n%x};c=;'
    "while IFS= read -r l;do case $l in "
    "+*) c=$c${l#+}$n;; -*) c=$c${l#-};; a) printf %s $m-ack-;; *) break;; esac;done;"
    "stty $s -echo -opost;printf %s $m-begin-;"
    '(exec sh -c "$c" </dev/null 2>&1);r=$?;printf %s $m-$r-;'
    "echo $k >$p;stty $s"
)


@dataclass(frozen=True)
class CommandResult:
    """What a guest's command printed, standard output and error together, and its exit status.

    `output` is text; `raw` are its bytes. `status` is 0 to 255, as the guest's shell has it in ``$?``.
    """

    output: str
    status: int
    raw: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the status is 0."""
        return self.status == 0


class State(Enum):
    """Where a dialogue stands."""

    CALLING = auto()  # the receiver's line is typed, its answer awaited
    SENDING = auto()  # the command goes over, piece by piece
    RUNNING = auto()  # the command's output comes back
    SETTLING = auto()  # the status has come; the shell's prompt is awaited
    DONE = auto()


@dataclass(frozen=True)
class Step:
    """What follows from console bytes: `send` is to be typed, `output` is the command's."""

    send: bytes = b""
    output: bytes = b""


class Dialogue:
    """One command, from the typed line to its status. Not safe for two threads."""

    def __init__(self, command: str, nonce: str | None = None) -> None:
        encoded = command.encode("utf-8", "surrogateescape")
        if b"\0" in encoded:
            raise ConfigurationError("a shell command cannot hold a NUL character.")
        if len(encoded) > MAX_COMMAND:
            raise ConfigurationError(
                f"a command of {len(encoded)} bytes is too long (at most {MAX_COMMAND}); "
                "write it to a file first."
            )
        self.state = State.CALLING
        self.status: int | None = None
        self._nonce = nonce or secrets.token_hex(12)
        self._mark = self._nonce.encode() + b"-"
        self._pieces = _pieces(encoded)
        self._pending = b""

    def start(self) -> bytes:
        """Return the line to type at the prompt."""
        half = len(self._nonce) // 2
        line = f" sh -c '{_RECEIVER}' {self._nonce[:half]} {self._nonce[half:]} 2>/dev/null\n"
        return KILL_LINE + line.encode()

    def on_bytes(self, data: bytes) -> Step:
        """Advance by what the console printed."""
        self._pending += data
        send = bytearray()
        output = bytearray()
        moved = True
        while moved:
            moved = False
            if self.state is State.CALLING:
                moved = self._after(b"ready-")
                if moved:
                    self.state = State.SENDING
                    send += self._next_piece()
            elif self.state is State.SENDING:
                if self._after(b"ack-"):
                    moved = True
                    send += self._next_piece()
                elif self._after(b"begin-"):
                    moved = True
                    self.state = State.RUNNING
            elif self.state is State.RUNNING:
                moved = self._take_output(output)
            elif self.state is State.SETTLING and re.search(PROMPT, self._pending):
                self.state = State.DONE
        return Step(bytes(send), bytes(output))

    def _after(self, word: bytes) -> bool:
        _, found, rest = self._pending.partition(self._mark + word)
        if found:
            self._pending = rest
        return bool(found)

    def _next_piece(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def _take_output(self, output: bytearray) -> bool:
        match = re.search(re.escape(self._mark) + rb"(\d{1,3})-", self._pending)
        if match:
            output += self._pending[: match.start()]
            self._pending = self._pending[match.end() :]
            self.status = int(match[1])
            self.state = State.SETTLING
            return True
        # A marker may have come in part: hold back what could be the beginning of one, and nothing else.
        begin = self._pending.rfind(self._mark)
        if begin < 0:
            begin = len(self._pending)
            for size in range(min(len(self._mark) - 1, begin), 0, -1):
                if self._pending.endswith(self._mark[:size]):
                    begin -= size
                    break
        output += self._pending[:begin]
        self._pending = self._pending[begin:]
        return False


def _pieces(command: bytes) -> list[bytes]:
    """Cut a command into what is sent between two acknowledgements; the last piece ends the transfer.

    Lines of the wire: ``+text`` is a whole line of the command, ``-text`` the beginning of a long one or the
    command's unterminated end, ``a`` asks for an acknowledgement, ``.`` ends.
    """
    lines: list[bytes] = []
    whole = command.split(b"\n")
    for number, body in enumerate(whole, start=1):
        while len(body) > _WINDOW:
            lines.append(b"-" + body[:_WINDOW] + b"\n")
            body = body[_WINDOW:]
        lines.append((b"-" if number == len(whole) else b"+") + body + b"\n")
    pieces: list[bytes] = []
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > _WINDOW + 16:
            pieces.append(piece + b"a\n")
            piece = b""
        piece += line
    return [*pieces, piece + b".\n"]
