# SPDX-License-Identifier: GPL-2.0-or-later
"""The byte pipe between a serial port and people."""

import threading
import time

import pytest
from coremesh.hw.backend.console import SLACK_BYTES, ConsolePort


def test_every_reader_gets_everything_from_its_own_cursor() -> None:
    """Given two readers, when the guest sends, then each reads all of it at its own pace."""
    port = ConsolePort()
    port.transmit(b"one ")
    first, at = port.read(0, 0)
    port.transmit(b"two")
    assert first == b"one "
    assert port.read(at, 0) == (b"two", 7)
    assert port.read(0, 0) == (b"one two", 7)
    assert port.end == 7


def test_nothing_new_is_an_empty_read_at_the_same_cursor() -> None:
    """Given a reader that has read all, when nothing comes in time.

    Then it gets nothing and keeps its place.
    """
    port = ConsolePort()
    port.transmit(b"x")
    start = time.monotonic()
    assert port.read(1, 0.05) == (b"", 1)
    assert time.monotonic() - start >= 0.045


def test_a_waiting_reader_wakes_and_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a reader that waits, when bytes come one by one.

    Then it returns soon and with more than the first.
    """
    monkeypatch.setattr("coremesh.hw.backend.console.COLLECT_SECONDS", 0.2)
    port = ConsolePort()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(port.read(0, 5)[0]))
    reader.start()
    time.sleep(0.02)
    for byte in b"login: ":
        port.transmit(bytes([byte]))
    reader.join(2)
    assert got == [b"login: "]


def test_a_slow_reader_is_told_how_much_it_lost() -> None:
    """Given a ring of 1000 bytes, when far more has gone by.

    Then the reader gets the last and can count the rest.
    """
    port = ConsolePort(ring_bytes=1000)
    total = 3 * SLACK_BYTES
    for start in range(0, total, 512):
        port.transmit(bytes((start + i) % 251 for i in range(512)))
    data, cursor = port.read(0, 0)
    lost = cursor - len(data) - 0
    assert cursor == total
    assert 1000 <= len(data) <= 1000 + SLACK_BYTES
    assert lost == total - len(data) > 0
    assert data[-1] == (total - 1) % 251


def test_a_cursor_in_the_future_waits_for_it() -> None:
    """Given a cursor beyond the end, then there is nothing to read and the cursor stays."""
    port = ConsolePort()
    port.transmit(b"abc")
    assert port.read(10, 0) == (b"", 10)


def test_input_is_taken_in_order_and_once() -> None:
    """When a person types more than the port takes at once, then each byte is taken once, in order."""
    port = ConsolePort()
    calls: list[int] = []
    port.attach(lambda: calls.append(port.input_left))
    port.feed(b"abc")
    port.feed(b"def")
    assert calls == [3, 6]
    assert [port.take(4), port.take(4), port.take(4)] == [b"abcd", b"ef", b""]


def test_closing_wakes_readers_and_keeps_the_output() -> None:
    """Given a waiting reader, when the machine ends.

    Then it returns at once; what was sent stays readable.
    """
    port = ConsolePort()
    port.transmit(b"last words")
    ended = threading.Event()

    def read_until_closed() -> None:
        port.read(10, 30)
        ended.set()

    reader = threading.Thread(target=read_until_closed)
    reader.start()
    time.sleep(0.02)
    port.close()
    assert ended.wait(2)
    reader.join()
    assert port.closed
    assert port.read(0, 0)[0] == b"last words"
