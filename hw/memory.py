# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM as a bus master sees it: scatter lists, and a typed failure for what is not RAM."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from coremesh.core.errors import CoremeshError


class Segment(NamedTuple):
    """``length`` bytes of guest-physical addresses from ``gpa``, both as the guest wrote them: unchecked."""

    gpa: int
    length: int


class BusMasterError(CoremeshError):
    """A bus master named an address that is not RAM, or RAM that is lost with its host.

    ``gpa`` and ``length`` are the segment that failed; ``done`` are the bytes moved before it. The device
    reports it to the guest as its datasheet says (a target abort); it never reaches a person.
    """

    def __init__(self, segment: Segment, done: int) -> None:
        super().__init__(segment, done)
        self.segment = segment
        self.done = done

    def __str__(self) -> str:
        gpa, length = self.segment
        return f"no RAM for the bus master at {gpa:#x}, {length} bytes; {self.done} bytes were moved before"


class Ram(Protocol):
    """What reaches guest RAM, coherent with the vCPUs: :class:`coremesh.core.engine.Host`. Any thread."""

    def ram_read(self, gpa: int, length: int) -> bytes:
        """``length`` bytes at ``gpa``. IndexError for what is not RAM."""

    def ram_write(self, gpa: int, data: bytes) -> None:
        """Lay ``data`` at ``gpa``. IndexError for what is not RAM."""


class GuestMemory:
    """DMA. Any thread, also several at once; a call may wait for a page that another host has.

    So it must not be made with a lock held that a vCPU could need on its way to give that page up: a device
    copies its command under its lock, and moves the data without it.
    """

    def __init__(self, ram: Ram) -> None:
        self._ram = ram

    def gather(self, segments: Iterable[Segment]) -> bytes:
        """The bytes of ``segments``, one behind the other. Raises :class:`BusMasterError`."""
        parts: list[bytes] = []
        done = 0
        for segment in segments:
            try:
                part = self._ram.ram_read(*segment)
            except (IndexError, OverflowError, TypeError) as error:
                raise BusMasterError(segment, done) from error
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def scatter(self, segments: Iterable[Segment], data: bytes) -> int:
        """Lay ``data`` into ``segments`` until either ends; the number of bytes laid.

        Raises :class:`BusMasterError`.
        """
        done = 0
        for segment in segments:
            if done == len(data):
                break
            part = data[done : done + segment.length]
            try:
                self._ram.ram_write(segment.gpa, part)
            except (IndexError, OverflowError, TypeError) as error:
                raise BusMasterError(segment, done) from error
            done += len(part)
        return done
