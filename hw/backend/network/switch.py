# SPDX-License-Identifier: GPL-2.0-or-later
"""A learning Ethernet switch that joins machines of one experiment, over stream sockets.

Each machine, QEMU, or anything that speaks the framing of ``stream.py`` is a port. A port whose reader is
slow loses frames, and delays no other.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from coremesh.core.errors import NetworkError
from coremesh.hw.backend.network.stream import Line, parse_address

_AGE_SECONDS: Final = 300.0  # as IEEE 802.1D recommends
_MOST_ADDRESSES: Final = 8192
_MOST_PORTS: Final = 1024


class AddressTable:
    """Which port an Ethernet address was last seen at. Pure; times in seconds are the caller's."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, float]] = {}

    def learn(self, address: bytes, port: int, now: float) -> None:
        """A frame with this source came in at ``port``; group addresses are no sources."""
        if address[0] & 1:
            return
        if address not in self._places and len(self._places) >= _MOST_ADDRESSES:
            self._places.pop(next(iter(self._places)))
        self._places.pop(address, None)  # the youngest come last
        self._places[address] = (port, now)

    def find(self, address: bytes, now: float) -> int | None:
        """The port to send to; None: to all."""
        place = self._places.get(address)
        return place[0] if place is not None and now - place[1] < _AGE_SECONDS else None

    def forget(self, port: int) -> None:
        """The port has gone."""
        self._places = {a: place for a, place in self._places.items() if place[0] != port}


class Switch:
    """A switch that listens at ``address``: ``unix:PATH`` or ``HOST:PORT``; a context manager.

    It runs on a thread of this process until :meth:`close`. Raises :class:`NetworkError` for an address that
    is taken.
    """

    def __init__(self, address: str) -> None:
        family, place = parse_address(address)
        self.address = address
        self._path = place if isinstance(place, str) else None
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET:
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(place)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise NetworkError(f"a switch cannot listen at {address} ({error.strerror}).") from None
        self._listener.setblocking(False)
        self._wakes, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._table = AddressTable()
        self._ports: dict[int, Line] = {}
        self._next = 0
        self._frames = self._dropped = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def counts(self) -> dict[str, int]:
        """Ports that are connected, frames that came in, and those that a slow port lost."""
        ports = list(self._ports.values())
        return {
            "ports": len(ports),
            "frames": self._frames,
            "frames_dropped": self._dropped + sum(line.dropped for line in ports),
        }

    def close(self) -> None:
        """Disconnect all ports. Idempotent."""
        if self._thread.is_alive():
            self._stopping = True
            os.write(self._wake_end, b"\0")
            self._thread.join()
            for end in (self._wakes, self._wake_end):
                os.close(end)

    def __enter__(self) -> Switch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- its thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wakes, selectors.EVENT_READ)
            while not self._stopping:
                for key, events in selector.select():
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif key.data is not None:
                        self._serve(selector, key.data, events)
            for number in list(self._ports):
                self._drop(selector, number)
        self._listener.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._ports) >= _MOST_PORTS:
            connection.close()
            return
        number = self._next
        self._next += 1
        self._ports[number] = Line(connection)
        selector.register(connection, selectors.EVENT_READ, number)

    def _drop(self, selector: selectors.BaseSelector, number: int) -> None:
        line = self._ports.pop(number, None)
        if line is not None:
            self._dropped += line.dropped
            selector.unregister(line.socket)
            line.close()
            self._table.forget(number)

    def _serve(self, selector: selectors.BaseSelector, number: int, events: int) -> None:
        line = self._ports.get(number)
        if line is None:
            return
        try:
            frames = line.read() if events & selectors.EVENT_READ else []
            if events & selectors.EVENT_WRITE:
                self._watch(selector, number, line, done=line.flush())
        except OSError:
            self._drop(selector, number)
            return
        self._frames += len(frames)
        outgoing: dict[int, list[bytes]] = {}
        now = time.monotonic()
        for frame in frames:
            if len(frame) < 14:  # two addresses and a type
                self._dropped += 1
                continue
            self._table.learn(frame[6:12], number, now)
            found = None if frame[0] & 1 else self._table.find(frame[:6], now)
            for target in self._ports if found is None else (found,):
                if target != number:
                    outgoing.setdefault(target, []).append(frame)
        for target, batch in outgoing.items():
            other = self._ports.get(target)
            if other is None:
                continue
            try:
                self._watch(selector, target, other, done=other.send(batch))
            except OSError:
                self._drop(selector, target)

    def _watch(self, selector: selectors.BaseSelector, number: int, line: Line, *, done: bool) -> None:
        events = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
        selector.modify(line.socket, events, number)
