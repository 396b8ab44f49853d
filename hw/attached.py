# SPDX-License-Identifier: GPL-2.0-or-later
"""A device whose code runs in another process: the device node's end of it.

The guest's accesses become numbered requests, in the order in which they came. The process that has the code
fetches them with :meth:`AttachedDevice.exchange`, and hands back with the same call what it has done. A vCPU
that reads waits for the answer, with the device's lock held, so that the order is that of the accesses; a
write is posted and the vCPU goes on. No wait is endless: where the code does not answer in time the read is
all ones, and until it answers again no vCPU waits for it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from coremesh.core._native import step_out
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine

READ, WRITE, RESET = "read", "write", "reset"
MOST_WAITING: Final = 4096
"""Requests that wait to be fetched; a vCPU whose write would be one more waits."""


MOST_FETCHED: Final = 512
"""Requests that are fetched at once, so that room comes soon for vCPUs that wait for it."""


class Request(NamedTuple):
    """What the guest did: ``number`` counts from 1; ``value`` is that of a write."""

    number: int
    kind: str
    offset: int = 0
    size: int = 1
    value: int = 0


class Answer(NamedTuple):
    """What became of a request: the ``value`` read. ``failed``: the code raised an exception."""

    number: int
    value: int = 0
    failed: bool = False


class AttachedDevice(Device):
    """Forwards accesses of any width to whom fetches them; ``timeout`` seconds is the longest wait of a vCPU.

    ``line`` is its interrupt line, or None. What vCPU threads and the fetching thread share is guarded by
    ``_changed``; the line has a lock of its own, because the code may drive it while a vCPU waits for it.
    """

    widths = (1, 2, 4, 8)

    def __init__(self, name: str, line: IrqLine | None, timeout: float) -> None:
        super().__init__(name)
        self._line = line
        self._line_lock = threading.Lock()
        self._timeout = timeout
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[Request] = deque()
        self._last = 0  # number of the last request
        self._fetched = 0  # number of the last request that was fetched
        self._awaited = 0  # the read that a vCPU waits for; 0: none
        self._answer: Answer | None = None  # to the one that is awaited
        self._overdue = 0  # the read that was not answered in time; 0: the code keeps up
        self._closed = False
        self._failed = 0  # answers that say that the code raised an exception
        self._told_of = 0  # time-outs of which the fetching thread knows
        self._counts = dict.fromkeys(
            ("reads", "writes", "bytes_read", "bytes_written", "service_ns", "deepest", "timeouts",
             "unanswered", "lost_writes"), 0
        )  # fmt: skip

    # --- the guest's side: with ``lock`` held, so there is one vCPU at a time ------------------------------

    def read(self, offset: int, size: int) -> int:
        """Wait for the code's answer; all ones where it does not come in time."""
        ones = (1 << 8 * size) - 1
        with self._changed:
            counts = self._counts
            counts["reads"] += 1
            counts["bytes_read"] += size
            if self._closed or self._overdue:
                counts["unanswered"] += 1
                return ones
            begin = time.monotonic_ns()
            self._answer, self._awaited = None, self._post(READ, offset, size)
            step_out()
            self._changed.wait_for(lambda: self._answer is not None or self._closed, self._timeout)
            answer, self._awaited = self._answer, 0
            counts["service_ns"] += time.monotonic_ns() - begin
            if answer is None:
                counts["unanswered"] += 1
                if not self._closed:
                    counts["timeouts"] += 1
                    self._overdue = self._last
                return ones
        return ones if answer.failed else answer.value & ones

    def write(self, offset: int, size: int, value: int) -> None:
        """Post it. Where too many wait to be fetched, wait for room, or lose it."""
        with self._changed:
            counts = self._counts
            counts["writes"] += 1
            counts["bytes_written"] += size
            if len(self._waiting) >= MOST_WAITING and not self._overdue:
                step_out()
                self._changed.wait_for(self._has_room, self._timeout)
                if not self._has_room():
                    counts["timeouts"] += 1
                    self._overdue = self._last
            if self._closed or len(self._waiting) >= MOST_WAITING:
                counts["lost_writes"] += 1
                return
            self._post(WRITE, offset, size, value)

    def reset(self) -> None:
        """The RESET pin: lower the line, and tell the code."""
        self.set_irq(False)
        with self._changed:
            if not self._closed:
                self._post(RESET)

    def _has_room(self) -> bool:
        return self._closed or len(self._waiting) < MOST_WAITING

    def _post(self, kind: str, offset: int = 0, size: int = 1, value: int = 0) -> int:
        self._last += 1
        self._waiting.append(Request(self._last, kind, offset, size, value))
        self._counts["deepest"] = max(self._counts["deepest"], len(self._waiting))
        self._changed.notify_all()
        return self._last

    # --- the code's side -----------------------------------------------------------------------------------

    def exchange(self, answers: Iterable[Answer], timeout: float) -> tuple[list[Request], int] | None:
        """Hand in what was done, and fetch what is to be done: at once, or within ``timeout`` seconds.

        Also returns how many time-outs there were since the last call. None: the device is detached. One
        thread at a time.
        """
        with self._changed:
            for answer in answers:
                self._failed += answer.failed
                if answer.number == self._awaited:
                    self._answer = answer
            # Whatever was late has been dealt with when all that was fetched is done: this call says so.
            if self._overdue and self._overdue <= self._fetched:
                self._overdue = 0
            self._changed.notify_all()
            if not self._waiting:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed, timeout)
            if self._closed:
                return None
            requests = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_FETCHED))]
            if requests:
                self._fetched = requests[-1].number
                self._changed.notify_all()  # there is room
            told, self._told_of = self._told_of, self._counts["timeouts"]
            return requests, self._told_of - told

    def set_irq(self, level: bool) -> None:
        """Drive the interrupt line. Any thread; not with ``_changed`` held. Nothing without a line."""
        if self._line is not None:
            with self._line_lock:
                self._line.set(level)

    def pulse_irq(self) -> None:
        """A rising edge, whatever the level; the line stays high. Any thread."""
        if self._line is not None:
            with self._line_lock:
                self._line.pulse()

    # --- its end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Answer no more: a vCPU that waits gets all ones, and the fetching thread hears of the end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """Accesses by kind and their bytes, the time that reads waited, and what was not answered in time."""
        with self._changed:
            return {**super().counts(), "faults": self.faults + self._failed, **self._counts}
