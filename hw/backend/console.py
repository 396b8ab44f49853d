# SPDX-License-Identifier: GPL-2.0-or-later
"""The byte pipe between a serial port and people: output for many readers, input for one port.

The serial port writes byte by byte from a vCPU's thread, and a reader that woke for each would fight that
thread for the interpreter. So a reader that had to wait collects for a moment before it returns.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

RING_BYTES = 4 << 20
SLACK_BYTES = 64 << 10  # how far the ring overgrows before it is cut, so that cutting is rare
COLLECT_SECONDS = 0.004
UNMOVED_CHUNKS = 4096


class ConsoleLine(Protocol):
    """What a device of the guest sees of a console. Any thread."""

    def attach(self, on_input: Callable[[], None]) -> None:
        """``on_input`` is called, without locks, when there is something to ``take``."""

    def transmit(self, data: bytes) -> None:
        """The guest has sent ``data``. Cheap, never waits for a reader."""

    def take(self, limit: int) -> bytes:
        """Up to ``limit`` bytes of input, in order, each byte once."""

    @property
    def input_left(self) -> int:
        """Bytes of input that were not taken yet."""


class ConsolePort:
    """Output is a ring with absolute positions ("cursors"), input a queue without limit.

    All methods: any thread.
    """

    def __init__(self, ring_bytes: int = RING_BYTES) -> None:
        self._ring_bytes = ring_bytes
        # The innermost lock of all: nothing is called while it is held. It guards all below but _sent and
        # _closed.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # What the guest has sent and no thread has moved to the ring yet. Appending to a deque is atomic, so
        # the vCPU that prints takes no lock; only the holder of the lock takes from it.
        self._sent: deque[bytes] = deque()
        self._output = bytearray()
        self._base = 0  # absolute position of _output[0]
        self._waiting = 0
        self._input = bytearray()
        self._closed = False
        self._on_input: Callable[[], None] = lambda: None

    def attach(self, on_input: Callable[[], None]) -> None:
        """The port's side: ``on_input`` is called, without locks, when there is something to ``take``."""
        self._on_input = on_input

    def transmit(self, data: bytes) -> None:
        """The port's side: the guest has sent ``data``. Cheap, never waits for a reader."""
        self._sent.append(data)
        # A reader counts itself before it looks into _sent, and this looks at the count after having filled
        # it.
        if self._waiting or len(self._sent) > UNMOVED_CHUNKS:
            with self._lock:
                self._move()
                self._changed.notify_all()

    def _move(self) -> int:
        """Move what was sent into the ring, with the lock held; the position after it."""
        sent = self._sent
        self._output += b"".join([sent.popleft() for _ in range(len(sent))])
        excess = len(self._output) - self._ring_bytes
        if excess > SLACK_BYTES:
            del self._output[:excess]
            self._base += excess
        return self._base + len(self._output)

    def take(self, limit: int) -> bytes:
        """The port's side: up to ``limit`` bytes of input, in order, each byte once."""
        if not self._input:
            return b""
        with self._lock:
            data = bytes(self._input[:limit])
            del self._input[:limit]
            return data

    @property
    def input_left(self) -> int:
        """Bytes fed that the guest has not been given yet."""
        return len(self._input)

    def feed(self, data: bytes) -> None:
        """The person's side: type ``data``. It waits here until the port has room."""
        with self._lock:
            self._input += data
        self._on_input()

    @property
    def end(self) -> int:
        """The cursor after the last byte sent by the guest."""
        with self._lock:
            return self._move()

    def read(self, cursor: int, timeout: float) -> tuple[bytes, int]:
        """The bytes since the absolute position ``cursor`` and the position after them.

        Waits up to ``timeout`` seconds for the first byte; ``(b"", cursor)`` when there was none or the
        port is closed. A reader that was too slow gets what the ring still holds: ``new_cursor - len(data)
        - cursor`` bytes are lost to it.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            waited = False
            self._waiting += 1
            while self._move() <= cursor and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
                waited = True
            self._waiting -= 1
        if waited:
            time.sleep(min(COLLECT_SECONDS, max(0.0, deadline - time.monotonic())))
        with self._lock:
            end = self._move()
            data = bytes(self._output[max(cursor, self._base) - self._base :])
            return (data, end) if data else (b"", cursor)

    def close(self) -> None:
        """No more output will come: readers that wait return, also later ones."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called; what the ring holds can still be read."""
        return self._closed


class Handover:
    """One console for two devices of the guest, as a serial port and hvc0.

    Both print on it. What is typed goes to the ``later`` device while ``takes_over`` says so, as long as it
    has a driver, and to the ``first`` one before.
    """

    def __init__(self, port: ConsolePort) -> None:
        self.takes_over: Callable[[], bool] = lambda: False
        self.first = _End(port, lambda: not self.takes_over())
        self.later = _End(port, lambda: self.takes_over())
        port.attach(self.typed)

    def typed(self) -> None:
        """There is input, or another device is to take it. Any thread, without locks."""
        (self.later if self.takes_over() else self.first).on_input()


class _End:
    """A :class:`ConsoleLine`."""

    def __init__(self, port: ConsolePort, is_mine: Callable[[], bool]) -> None:
        self._port = port
        self._is_mine = is_mine
        self.on_input: Callable[[], None] = lambda: None
        self.transmit = port.transmit

    def attach(self, on_input: Callable[[], None]) -> None:
        self.on_input = on_input

    def take(self, limit: int) -> bytes:
        return self._port.take(limit) if self._is_mine() else b""

    @property
    def input_left(self) -> int:
        return self._port.input_left if self._is_mine() else 0
