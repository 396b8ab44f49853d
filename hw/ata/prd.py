# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus master's walk through a table of physical region descriptors, and the bytes that it moves by it.

Reference: Programming Interface for Bus Master IDE Controller, revision 1.0 (1994), section 1.2; Intel
82371SB datasheet, section 2.7. Everything here runs without a lock: it may wait for the medium, and for a
page that another host has. The guest can change the table meanwhile, so each descriptor is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from coremesh.hw.ata.drive import Transfer
from coremesh.hw.memory import BusMasterError, GuestMemory, Segment

ENTRY = 8
TABLE_LIMIT = 1 << 16
"""A table does not cross a boundary of 64 KiB; so it has no more than 8192 descriptors."""
_END_OF_TABLE = 1 << 31
_PAGE = 4096
_PIECE = 1 << 20  # bytes in flight at once, whatever a guest asks for


@dataclass(frozen=True)
class Region:
    """One descriptor: guest-physical address and bytes, 2 to 65,536; ``last`` if the table ends with it."""

    gpa: int
    length: int
    last: bool


def regions(memory: GuestMemory, table: int) -> Iterator[Region]:
    """The descriptors of the table at ``table``, as far as it has some, 8192 at most.

    Raises :class:`BusMasterError` for a table that is not in RAM.
    """
    at = table & ~3 & 0xFFFF_FFFF
    end = min(at - at % TABLE_LIMIT + TABLE_LIMIT, 1 << 32)
    while at + ENTRY <= end:
        # As much as is in this page: what is behind the last descriptor is read in vain, and harms nothing.
        length = max(ENTRY, min(_PAGE - at % _PAGE, end - at) // ENTRY * ENTRY)
        data = memory.gather([Segment(at, length)])
        for start in range(0, length, ENTRY):
            address = int.from_bytes(data[start : start + 4], "little")
            word = int.from_bytes(data[start + 4 : start + 8], "little")
            last = bool(word & _END_OF_TABLE)
            yield Region(address & ~1, word & 0xFFFE or 1 << 16, last)
            if last:
                return
        at += length


@dataclass
class Outcome:
    """What became of a transfer: ``moved`` bytes, and what the bus master's status is to say of it."""

    moved: int = 0
    complete: bool = False  # the drive's transfer is done
    table_ended: bool = False  # and so is the table, exactly
    bus_error: bool = False  # no RAM where the guest said
    medium_error: OSError | None = None


def move(transfer: Transfer, memory: GuestMemory, table: int) -> Outcome:
    """Move the drive's ``transfer`` to or from the regions of the table at ``table``."""
    outcome = Outcome()
    left = transfer.length
    batch: list[Segment] = []
    batched = 0
    try:
        for region in regions(memory, table):
            at, length = region.gpa, min(region.length, left)
            outcome.table_ended = region.last and length == region.length
            while length:
                piece = min(length, _PIECE - batched)
                batch.append(Segment(at, piece))
                batched += piece
                at += piece
                length -= piece
                left -= piece
                if batched == _PIECE:
                    outcome.moved += _move(transfer, memory, batch, batched)
                    batch, batched = [], 0
            if not left:
                break
        if batched:
            outcome.moved += _move(transfer, memory, batch, batched)
        if outcome.moved == transfer.length:
            transfer.end()
            outcome.complete = True
    except BusMasterError:
        outcome.bus_error = True
    except OSError as error:
        outcome.medium_error = error
    return outcome


def _move(transfer: Transfer, memory: GuestMemory, segments: list[Segment], length: int) -> int:
    if transfer.to_memory:
        memory.scatter(segments, transfer.take(length))
    else:
        transfer.give(memory.gather(segments))
    return length
