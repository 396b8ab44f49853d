# SPDX-License-Identifier: GPL-2.0-or-later
"""Time for devices: a clock in nanoseconds, and alarms that wait in threads of their own.

A device computes its state from the clock whenever it is looked at, and asks for an alarm only where the
outside world must notice without being asked: an interrupt. So a device without a pending interrupt costs
no wake-up.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)


class Alarm(Protocol):
    """One deadline of one device. All methods but start and stop are called with the device's lock held."""

    def arm(self, deadline: int) -> None:
        """Call the device at ``deadline`` (the clock's nanoseconds), instead of any deadline set before."""

    def cancel(self) -> None:
        """Forget the deadline."""

    def start(self) -> None:
        """Begin to serve deadlines; those armed earlier count. Without effect when started."""

    def stop(self) -> None:
        """Serve no more. Returns when the device is certain not to be called any more."""


class Clock(Protocol):
    """Where devices get their time from. Any thread."""

    def now(self) -> int:
        """Nanoseconds since an arbitrary moment; never runs backwards."""

    def wall(self) -> int:
        """Nanoseconds since 1970-01-01 00:00 UTC."""

    def alarm(self, name: str, lock: threading.Lock, expire: Callable[[], None]) -> Alarm:
        """A new alarm that calls ``expire`` with ``lock`` held."""


class HostClock:
    """The host's clock: guest devices live in real time."""

    # The C functions themselves: devices ask for the time at many an access of a vCPU.
    now: Callable[[], int] = staticmethod(time.monotonic_ns)
    wall = staticmethod(time.time_ns)

    def __init__(self, now: int | None = None) -> None:
        """``now``: nanoseconds that the clock shows at this moment, for a machine that goes on from there."""
        if now is not None:
            ahead = now - time.monotonic_ns()
            self.now = lambda: time.monotonic_ns() + ahead

    def alarm(self, name: str, lock: threading.Lock, expire: Callable[[], None]) -> Alarm:
        """An alarm with a thread of its own, which sleeps to the deadline and not by ticks."""
        return HostAlarm(name, lock, expire, self.now)


class HostAlarm:
    """A thread that sleeps until its deadline on a condition of the device's lock.

    The deadline is guarded by the device's lock. An earlier deadline wakes the thread; a later one lets it
    find out by itself, which saves a wake-up for every timer that a guest keeps pushing back.
    """

    def __init__(
        self, name: str, lock: threading.Lock, expire: Callable[[], None], now: Callable[[], int]
    ) -> None:
        self._now = now
        self._name = name
        self._changed = threading.Condition(lock)
        self._expire = expire
        self._deadline: int | None = None
        self._sleeps_until: int | None = None  # None: until it is woken
        self._stopping = False
        self._thread: threading.Thread | None = None

    def arm(self, deadline: int) -> None:
        """See :class:`Alarm`."""
        self._deadline = deadline
        if self._sleeps_until is None or deadline < self._sleeps_until:
            self._changed.notify()

    def cancel(self) -> None:
        """See :class:`Alarm`."""
        self._deadline = None

    def start(self) -> None:
        """See :class:`Alarm`."""
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """See :class:`Alarm`. Not to be called with the device's lock held."""
        if self._thread is not None:
            with self._changed:
                self._stopping = True
                self._changed.notify()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with self._changed:
            while not self._stopping:
                deadline = self._sleeps_until = self._deadline
                if deadline is None:
                    self._changed.wait()
                    continue
                left = deadline - self._now()
                if left > 0:
                    self._changed.wait(left / 1e9)
                    continue
                self._deadline = None
                try:
                    self._expire()
                except Exception:
                    logger.exception(
                        "%s: the alarm's handler failed; the device goes on without it", self._name
                    )
