# SPDX-License-Identifier: GPL-2.0-or-later
"""Alarms in real time: they come in time, an earlier deadline is heard, none comes after stop."""

import threading
import time
from collections.abc import Callable

from coremesh.hw.clock import HostClock

MS = 1_000_000


class Owner:
    """Something with a lock and an alarm, as a device is."""

    def __init__(self, on_expire: Callable[[], None] = lambda: None) -> None:
        self.clock = HostClock()
        self.lock = threading.Lock()
        self.times: list[int] = []
        self.on_expire = on_expire
        self.rang = threading.Event()
        self.alarm = self.clock.alarm("test", self.lock, self._expire)

    def _expire(self) -> None:
        assert self.lock.locked()
        self.times.append(self.clock.now())
        self.rang.set()
        self.on_expire()

    def arm(self, ns_from_now: int) -> int:
        deadline = self.clock.now() + ns_from_now
        with self.lock:
            self.alarm.arm(deadline)
        return deadline


def test_an_alarm_goes_off_at_its_deadline_and_not_before() -> None:
    """Given a started alarm, when it is armed 10 ms ahead.

    Then it goes off once, not early, and soon after.
    """
    owner = Owner()
    owner.alarm.start()
    deadline = owner.arm(10 * MS)
    assert owner.rang.wait(2)
    owner.alarm.stop()
    assert len(owner.times) == 1
    assert 0 <= owner.times[0] - deadline < 1000 * MS


def test_an_earlier_deadline_replaces_a_later_one() -> None:
    """Given an alarm a minute away, when it is armed 5 ms ahead, then it does not sleep through that."""
    owner = Owner()
    owner.alarm.start()
    owner.arm(60_000 * MS)
    time.sleep(0.01)
    owner.arm(5 * MS)
    assert owner.rang.wait(2)
    owner.alarm.stop()


def test_a_later_deadline_replaces_an_earlier_one() -> None:
    """Given an alarm that is pushed back again and again, then it goes off after the last deadline, once."""
    owner = Owner()
    owner.alarm.start()
    for _ in range(20):
        deadline = owner.arm(300 * MS)
        time.sleep(0.001)
    assert owner.rang.wait(2)
    owner.alarm.stop()
    assert len(owner.times) == 1
    assert owner.times[0] >= deadline


def test_a_cancelled_alarm_is_silent() -> None:
    """When an alarm is cancelled before its deadline, then it does not go off."""
    owner = Owner()
    owner.alarm.start()
    with owner.lock:
        owner.alarm.arm(owner.clock.now() + 10 * MS)
        owner.alarm.cancel()
    assert not owner.rang.wait(0.03)
    owner.alarm.stop()


def test_a_deadline_set_before_the_start_counts() -> None:
    """Given an alarm armed before its thread runs, when it starts after the deadline.

    Then it goes off at once.
    """
    owner = Owner()
    owner.arm(0)
    owner.alarm.start()
    assert owner.rang.wait(2)
    owner.alarm.stop()


def test_after_stop_nothing_goes_off_until_it_starts_again() -> None:
    """When an alarm is stopped, then its deadline passes in silence; started again, it is served."""
    owner = Owner()
    owner.alarm.start()
    owner.arm(100 * MS)
    owner.alarm.stop()
    assert not owner.rang.wait(0.15)
    owner.alarm.start()
    assert owner.rang.wait(2)
    owner.alarm.stop()


def test_a_failing_handler_does_not_end_the_alarm() -> None:
    """Given a handler that raises, when the next deadline comes, then it is called again."""
    failures = [RuntimeError("first")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    owner = Owner(fail_once)
    owner.alarm.start()
    owner.arm(0)
    assert owner.rang.wait(2)
    owner.rang.clear()
    owner.arm(0)
    assert owner.rang.wait(2)
    owner.alarm.stop()


def test_the_handler_may_arm_the_next() -> None:
    """Given a periodic device, whose handler arms its next deadline, then it keeps its rate without drift."""
    owner = Owner()
    start = owner.clock.now()

    def rearm() -> None:
        owner.alarm.arm(start + (len(owner.times) + 1) * 2 * MS)

    owner.on_expire = rearm
    owner.alarm.start()
    owner.arm(0)
    time.sleep(0.1)
    owner.alarm.stop()
    late = [at - start - index * 2 * MS for index, at in enumerate(owner.times)]
    assert len(owner.times) >= 10
    assert min(late) >= 0
