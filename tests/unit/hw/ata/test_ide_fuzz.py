# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile driver: any sequence of register accesses, tables and packets is answered, within bounds.

What other emulators' IDE models fell for is among the seeds: tables without a whole sector, packets whose
answer a second command drains, an address of minus one, a disk's command to a drive without a medium.
"""

import time
from typing import Any

from ata_commands import Command
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.disk import Disk
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

REGISTERS = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 16, 16, 17, 18, 19, 20, 21, 22, 23])
COMMANDS = st.one_of(st.sampled_from([int(code) for code in Command]), st.integers(0, 255))
BYTES = st.one_of(
    st.sampled_from([0, 1, 2, 4, 8, 9, 0x10, 0x40, 0x50, 0xA0, 0xE0, 0xFF]), st.integers(0, 255)
)
OPERATIONS = st.one_of(
    st.sampled_from([0x00, 0x03, 0x12, 0x1B, 0x1E, 0x25, 0x28, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBD]),
    st.integers(0, 255),
)
REGION = st.tuples(
    st.one_of(st.sampled_from([0, 0x1000, 0xFFFF0, 0x100000, 0xFFFF_FFFE]), st.integers(0, 2**32 - 1)),
    st.one_of(st.sampled_from([0, 1, 2, 511, 512, 513, 0xFFFE, 0xFFFF]), st.integers(0, 0xFFFF)),
)
EVENT = st.one_of(
    st.tuples(st.just("read"), REGISTERS, st.sampled_from([1, 2, 4])),
    st.tuples(st.just("write"), REGISTERS, st.sampled_from([1, 1, 1, 2, 4]), BYTES),
    st.tuples(
        st.just("command"), COMMANDS, st.integers(0, 2**48 - 1), st.integers(0, 0xFFFF), st.integers(0, 1)
    ),
    st.tuples(st.just("command"), COMMANDS, st.integers(0, 2050), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("table"), st.lists(REGION, min_size=1, max_size=5), st.booleans()),
    st.tuples(st.just("packet"), OPERATIONS, st.binary(min_size=11, max_size=11), st.booleans(), BYTES),
    st.tuples(st.just("data"), st.integers(1, 3000)),
    st.sampled_from(["start", "start out", "stop", "work", "reset", "save"]),
)


def apply(ide: Any, event: Any) -> None:
    match event:
        case "start" | "start out":
            ide.outb(16, 0x09 if event == "start" else 0x01)
        case "stop":
            ide.outb(16, 0)
        case "work":
            ide.work()
        case "reset":
            with ide.channel.lock:
                ide.channel.reset()
        case "save":
            ide.channel.load(ide.channel.save())
        case ("read", register, size):
            ide._read(register, size)
        case ("write", register, size, value):
            ide.outb(register, value, size)
        case ("command", code, lba, count, drive):
            ide.command(code, lba, count, drive=drive, wide=bool(lba >> 28), features=lba & 1)
        case ("table", regions, ended):
            ide.table(regions, ended=ended)
        case ("packet", operation, rest, dma, limit):
            ide.packet(bytes([operation]) + rest, dma=dma, limit=limit * 257, drive=1)
        case ("data", length):
            ide.data_in(length * 2 if length < 40 else 0)
            for _ in range(min(length, 600)):
                ide.outb(0, length & 0xFF, 2)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(EVENT, max_size=60), st.booleans())
@example([("table", [(0x1000, 511)], True), ("command", 0xC8, 0, 0, 0), "start", "work", "stop"], True)
@example(
    [("packet", 0x28, b"\0\0\0\0\0\0\0\2" + b"\0" * 3, False, 8), ("packet", 0x1B, bytes(11), False, 8)], True
)
@example([("packet", 0x28, b"\0" + b"\xff" * 10, True, 8), "start", "work"], True)
@example(
    [("command", 0xF8, 0, 0, 1), ("command", 0x27, 0, 0, 1), ("packet", 0xA8, b"\xff" * 11, True, 0)], False
)
def test_garbage_is_answered_and_nothing_leaves_its_bounds(
    make_ide: Any, make_medium: Any, events: list[Any], with_disc: bool
) -> None:
    """Given a disk and a CD-ROM drive, then no model fails, no lock stays behind, and it takes no time."""
    disc = make_medium(64 * 2048, read_only=True) if with_disc else None
    ide = make_ide(Disk(make_medium(64 * 512)), Cdrom(disc))
    begin = time.perf_counter()
    for event in events:
        apply(ide, event)
    assert time.perf_counter() - begin < 10
    assert ide.channel.counts()["faults"] == 0
    assert not ide.channel.lock.locked()
    ide.channel.show()
    # Afterwards an orderly driver has its disk.
    ide.stop()
    ide.outb(8, 4)
    ide.outb(8, 0)
    ide.command(Command.IDENTIFY_DEVICE)
    assert ide.data_in(2) == b"\x40\x00"
