# SPDX-License-Identifier: GPL-2.0-or-later
"""PS/2 keyboard: a queue of scan codes, and the commands by which a driver sets it up.

Reference: IBM PS/2 Hardware Interface Technical Reference (1988), section "Keyboard". It is no device of its
own: the controller at the other end of its cable (i8042.py) calls it, with the controller's lock held.

Keys that a person presses wait, without limit, until the queue has room and the guest has scanning enabled:
none is lost to a guest that reads slowly. Nothing holds a key down, so there is no typematic repeat.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from coremesh.hw.state import Stateful

QUEUE: Final = 16
RELEASE: Final = 1 << 16
"""Added to a key's code when the key goes up."""

ACK: Final = 0xFA
RESEND: Final = 0xFE
TEST_PASSED: Final = 0xAA
IDENTITY: Final = (0xAB, 0x83)
BREAK: Final = 0xF0
"""Before a code of set 2: the key goes up."""

# Keys by their codes of scan code set 2; E0xxh has the prefix E0h. Two have sequences of their own, because
# the first PC's keyboard had no such keys.
PRINT_SCREEN: Final = 0xE07C
PAUSE: Final = 0xE114
_SEQUENCES: Final = {
    PRINT_SCREEN: (0xE0, 0x12, 0xE0, 0x7C),
    PRINT_SCREEN | RELEASE: (0xE0, BREAK, 0x7C, 0xE0, BREAK, 0x12),
    PAUSE: (0xE1, 0x14, 0x77, 0xE1, BREAK, 0x14, BREAK, 0x77),
    PAUSE | RELEASE: (),
}
_LONGEST: Final = 8

_SET_1: Final = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959"
    "65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d"
    "693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61"
    "6d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f"
    "5253504c4d480145574e514a37494654"
)


def set_1(code: int) -> int:
    """The byte of scan code set 1 for one of set 2. Answers and the prefixes E0h, E1h stay as they are."""
    if code < len(_SET_1):
        return _SET_1[code]
    return {0x83: 0x41, 0x84: 0x54}.get(code, code)


class Command:
    """What a driver sends to the keyboard."""

    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    SET_RATE = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    SET_DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF
    WITH_PARAMETER = (SET_LEDS, SCAN_CODE_SET, SET_RATE)
    ONLY_ACKNOWLEDGED = range(0xF7, 0xFB)  # of all keys: repeat, make and break codes; for scan code set 3


class Ps2Keyboard(Stateful):
    """The keyboard. All methods are called with the lock of the controller."""

    STATE = ("leds", "scanning", "scan_code_set", "_out", "_keys", "_awaits", "_last")

    def __init__(self) -> None:
        self._keys: deque[int] = deque()  # what a person did: codes, with RELEASE for a key that goes up
        self.reset()

    def reset(self) -> None:
        """Power-on. What a person has typed and the guest has not asked for stays."""
        self.leds = 0
        self.scanning = True
        self.scan_code_set = 2
        self._out: deque[int] = deque()
        self._awaits = 0  # the command whose parameter comes next
        self._last = 0  # what was sent last, for RESEND

    def press(self, keys: Iterable[int]) -> None:
        """A person's keys: codes of set 2, with RELEASE for one that goes up."""
        self._keys.extend(keys)
        self._scan()

    @property
    def waiting(self) -> bool:
        """Whether there is a byte to :meth:`take`."""
        return bool(self._out)

    @property
    def keys_left(self) -> int:
        """How many keys' movements wait for the guest."""
        return len(self._keys)

    def take(self) -> int:
        """The next byte on the cable. IndexError without one."""
        self._last = self._out.popleft()
        self._scan()
        return self._last

    def receive(self, byte: int) -> None:
        """The controller sends a command, or the parameter of one."""
        command, self._awaits = self._awaits, 0
        if command and byte < Command.SET_LEDS:
            self._parameter(command, byte)
        elif byte in Command.WITH_PARAMETER:
            self._awaits = byte
            self._send(ACK)
        elif byte == Command.ECHO:
            self._send(byte)
        elif byte == Command.RESEND:
            self._send(self._last)
        elif byte == Command.IDENTIFY:
            self._send(ACK, *IDENTITY)
        elif byte == Command.RESET:
            self.reset()
            self._send(ACK, TEST_PASSED)
        elif byte in (Command.ENABLE, Command.DISABLE, Command.SET_DEFAULTS):
            self._out.clear()
            if byte != Command.SET_DEFAULTS:
                self.scanning = byte == Command.ENABLE
            if byte != Command.ENABLE:
                self.scan_code_set = 2
            self._send(ACK)
        else:
            self._send(ACK if byte in Command.ONLY_ACKNOWLEDGED else RESEND)
        self._scan()

    def _parameter(self, command: int, value: int) -> None:
        if command == Command.SET_LEDS:
            self.leds = value & 0x07
        elif command == Command.SCAN_CODE_SET:
            if value == 0:
                self._send(ACK, self.scan_code_set)
                return
            if value not in (1, 2):  # no driver needs set 3, whose codes differ for each key
                self._send(RESEND)
                return
            self.scan_code_set = value
        self._send(ACK)

    def _send(self, *codes: int) -> None:
        # An answer that finds no room is lost, as any byte is to a driver that never reads.
        self._out.extend(codes[: max(0, QUEUE - len(self._out))])

    def _scan(self) -> None:
        """Put into the queue what a person did, as much as there is room for."""
        while self.scanning and self._keys and len(self._out) + _LONGEST <= QUEUE:
            self._send(*self._codes(self._keys.popleft()))

    def _codes(self, key: int) -> Iterable[int]:
        codes = _SEQUENCES.get(key)
        if codes is None:
            code = key & ~RELEASE
            prefix = (code >> 8,) if code > 0xFF else ()
            codes = (*prefix, *((BREAK,) if key & RELEASE else ()), code & 0xFF)
        return codes if self.scan_code_set == 2 else _to_set_1(codes)


def _to_set_1(codes: Iterable[int]) -> Iterable[int]:
    found, released = [], 0
    for code in codes:
        if code == BREAK:
            released = 0x80
        else:
            found.append(set_1(code) | released)
            released = 0
    return found
