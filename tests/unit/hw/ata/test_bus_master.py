# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus master of an IDE channel: tables of every size, errors, stopping, and the order of what is seen.

The status that software reads is the table of "Programming Interface for Bus Master IDE Controller" 1.0.
"""

import threading
import time
from typing import Any

import pytest
from ata_commands import Command
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.disk import Disk
from coremesh.hw.ata.registers import BMISTA, STATUS

READY = STATUS.DRDY | STATUS.DSC
ACTIVE, ERROR, INTERRUPT = int(BMISTA.BMIDEA), int(BMISTA.ERROR), int(BMISTA.IDEINTS)


def sector(number: int) -> bytes:
    return number.to_bytes(4, "little") * 128


@pytest.mark.parametrize(
    ("regions", "at_the_end", "after_stop"),
    [
        ([(0x1000, 512)], 0, 0),
        ([(0x1000, 1024)], INTERRUPT, INTERRUPT),
        ([(0x1000, 512), (0x3000, 512)], INTERRUPT, INTERRUPT),
        ([(0x1000, 2048)], INTERRUPT | ACTIVE, INTERRUPT),
        ([(0x1000, 1024), (0x3000, 512)], INTERRUPT | ACTIVE, INTERRUPT),
        ([(0x20000, 0)], INTERRUPT | ACTIVE, INTERRUPT),  # zero is 64 KiB
    ],
)
def test_given_a_table_smaller_equal_or_larger_when_two_sectors_are_read_then_the_status_says_so(
    ide: Any, regions: list[tuple[int, int]], at_the_end: int, after_stop: int
) -> None:
    ide.table(regions)
    ide.command(Command.READ_DMA, lba=3, count=2)
    assert ide.bus_master_status == 0
    ide.start()
    assert ide.bus_master_status == at_the_end
    assert ide.wire.high is bool(at_the_end & INTERRUPT)
    assert ide.status == READY
    ide.stop()
    assert ide.bus_master_status == after_stop
    moved = min(sum(length or 65536 for _, length in regions), 1024)
    got = b"".join(bytes(ide.ram.data[at : at + (length or 65536)]) for at, length in regions)
    assert got[:moved] == (sector(3) + sector(4))[:moved]
    assert not any(got[moved:]), "what the drive did not send"
    ide.outb(18, INTERRUPT)
    assert ide.bus_master_status == 0, "written with one, it is cleared"


def test_given_the_start_before_the_command_then_the_transfer_begins_with_the_command(ide: Any) -> None:
    ide.table([(0x1000, 512)])
    ide.start()
    assert ide.bus_master_status == ACTIVE
    ide.command(Command.READ_DMA, lba=1)
    assert ide.bus_master_status == INTERRUPT
    ide.outb(16, 0x09)  # the same value again starts nothing
    ide.command(Command.READ_DMA, lba=2)
    assert ide.status & STATUS.DRQ
    ide.stop()
    ide.start()
    assert ide.ram.data[0x1000:0x1200] == sector(2)


def test_given_odd_addresses_and_lengths_then_their_lowest_bits_are_zero(ide: Any) -> None:
    ide.table([(0x1001, 257), (0x2001, 257)])
    ide.command(Command.READ_DMA, lba=6)
    ide.start()
    assert ide.ram.data[0x1000:0x1100] + ide.ram.data[0x2000:0x2100] == sector(6)
    assert ide.bus_master_status == INTERRUPT


@pytest.mark.parametrize("code", [Command.WRITE_DMA, Command.WRITE_DMA_EXT, Command.WRITE_DMA_FUA_EXT])
def test_given_memory_in_pieces_when_it_is_written_then_the_disk_has_it(
    ide: Any, medium: Any, code: Command
) -> None:
    ide.ram.data[0x1000:0x1100] = b"\x11" * 0x100
    ide.ram.data[0x5000:0x5300] = b"\x22" * 0x300
    ide.table([(0x1000, 0x100), (0x5000, 0x300)])
    ide.command(code, lba=70, count=2, wide=code != Command.WRITE_DMA)
    ide.start(to_memory=False)
    assert medium.data[70 * 512 : 72 * 512] == b"\x11" * 0x100 + b"\x22" * 0x300
    assert ide.bus_master_status == INTERRUPT
    assert medium.calls == ["write", "flush"] if code == Command.WRITE_DMA_FUA_EXT else ["write"]


def test_given_a_table_that_ends_within_a_sector_when_written_then_whole_sectors_alone_are_stored(
    ide: Any, medium: Any
) -> None:
    ide.ram.data[0x1000:0x1400] = b"\x33" * 0x400
    ide.table([(0x1000, 700)])
    ide.command(Command.WRITE_DMA, lba=10, count=2)
    ide.start(to_memory=False)
    assert ide.bus_master_status == 0
    assert not ide.wire.high
    assert medium.data[10 * 512 : 11 * 512] == b"\x33" * 512
    assert medium.data[11 * 512 : 12 * 512] == sector(11)


@pytest.mark.parametrize(
    ("regions", "table"),
    [
        ([(0x8000_0000, 512)], 0x8000),  # no RAM
        ([(0xFFFF_FFFE, 512)], 0x8000),
        ([(0x1000, 256), (0xFFFF_F000, 256)], 0x8000),
        (None, 0x8000_0000),  # the table itself
        (None, 0xFFFF_FFFC),
    ],
)
def test_given_addresses_that_are_no_ram_then_the_bus_master_reports_an_error(
    ide: Any, regions: list[tuple[int, int]] | None, table: int
) -> None:
    if regions:
        ide.table(regions)
    else:
        ide.outb(20, table, 4)
    ide.command(Command.READ_DMA)
    ide.start()
    assert ide.bus_master_status & (ERROR | ACTIVE) == (ERROR if table < 0xFFFF_FFF0 else 0)
    assert not ide.wire.high
    ide.outb(18, ERROR)
    ide.table([(0x1000, 512)])
    ide.stop()
    ide.command(Command.READ_DMA)
    ide.start()
    assert ide.bus_master_status == INTERRUPT, "the next one works"


def test_given_a_table_without_an_end_then_the_walk_stops_at_64_kib(ide: Any) -> None:
    """8192 descriptors of two bytes, none of them the last, are too few for 33 sectors: the walk ends."""
    at = 0x10000
    for i in range(8192):
        ide.ram.data[at + 8 * i : at + 8 * i + 8] = (0x1000).to_bytes(4, "little") + (2).to_bytes(4, "little")
    ide.outb(20, at, 4)
    ide.command(Command.READ_DMA, count=33)
    ide.start()
    assert ide.bus_master_status == 0
    assert ide.channel.counts()["bytes_moved"] == 16384
    ide.outb(20, 0x1FFF8, 4)  # the last descriptor before the boundary
    ide.stop()
    ide.command(Command.READ_DMA)
    ide.start()
    assert ide.bus_master_status == 0


def test_given_a_failing_medium_then_the_drive_reports_it_and_the_interrupt_comes(
    ide: Any, medium: Any
) -> None:
    medium.bad = range(0, 512)
    for code, fault in ((Command.READ_DMA, STATUS.ERR), (Command.WRITE_DMA, STATUS.ERR | STATUS.DF)):
        ide.table([(0x1000, 512)])
        ide.command(code)
        ide.start(to_memory=code == Command.READ_DMA)
        assert ide.bus_master_status == INTERRUPT
        assert ide.wire.high
        assert ide.inb(7) == READY | fault
        ide.stop()
        ide.outb(18, INTERRUPT)


def test_given_a_bus_master_that_is_not_allowed_then_it_waits_until_it_is(ide: Any) -> None:
    ide.channel.use_bus(False)
    ide.table([(0x1000, 512)])
    ide.command(Command.READ_DMA, lba=1)
    ide.start()
    assert ide.bus_master_status == ACTIVE
    assert ide.status & STATUS.DRQ
    assert not any(ide.ram.data[0x1000:0x1200])
    ide.channel.use_bus(True)
    ide.work()
    assert ide.bus_master_status == INTERRUPT
    assert ide.ram.data[0x1000:0x1200] == sector(1)


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ([(3, 2)], False),
        ([(3, 2), (2047, 1), (0, 0)], False),
        ([(3, 2), (2047, 2)], True),  # the second reaches beyond the end: none is discarded
        ([((1 << 48) - 1, 0xFFFF)], True),
    ],
)
def test_given_trim_ranges_when_one_is_invalid_then_the_command_is_aborted(
    ide: Any, medium: Any, ranges: list[tuple[int, int]], error: bool
) -> None:
    entries = b"".join((lba | count << 48).to_bytes(8, "little") for lba, count in ranges)
    ide.ram.data[0x1000:0x1200] = entries.ljust(512, b"\0")
    ide.table([(0x1000, 512)])
    ide.command(Command.DATA_SET_MANAGEMENT, count=1, features=1, wide=True)
    ide.start(to_memory=False)
    assert bool(ide.inb(7) & STATUS.ERR) is error
    assert (medium.data[3 * 512 : 5 * 512] == bytes(1024)) is not error
    assert ("discard" in medium.calls) is not error


def test_given_a_packet_when_it_asks_for_dma_then_blocks_and_answers_go_to_memory(cd: Any) -> None:
    cd.table([(0x1000, 4096)])
    cd.packet(bytes([0x28, 0, 0, 0, 0, 3, 0, 0, 2]), dma=True)
    cd.start()
    assert cd.ram.data[0x1000:0x2000] == b"".join(map(sector, range(12, 20)))
    assert cd.bus_master_status == INTERRUPT
    assert cd.inb(7) == STATUS.DRDY
    cd.stop()
    cd.table([(0x3000, 36)])
    cd.packet(bytes([0x12, 0, 0, 0, 36]), dma=True)
    cd.start()
    assert cd.ram.data[0x3008:0x3010] == b"COREMESH"


# --- order and stopping: with real threads


class Gate:
    """Lets the worker go on when told, and says when it has come here."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(10)


def running(make_ide: Any, medium: Any, kind: Any = Disk) -> Any:
    """A channel whose worker is a thread of its own."""
    ide = make_ide(kind(medium))
    ide.channel.start()
    ide.work = lambda: None
    return ide


def test_given_a_transfer_when_the_line_rises_then_every_register_has_its_final_value(
    make_ide: Any, medium: Any
) -> None:
    """Active clear, Interrupt set, drive ready, data in memory, as the interrupt controller is told."""
    ide = running(make_ide, medium)
    line_high = threading.Event()
    over = threading.Event()
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        if ide.wire.high:
            line_high.set()

    ide.wire.look = look

    def watch() -> None:
        """A vCPU that looks at everything as soon as the line has risen."""
        while not over.is_set():
            if line_high.wait(0.01):
                line_high.clear()
                memory = bytes(ide.ram.data[0x1000:0x1200])
                seen.append((ide.bus_master_status, ide.status, memory, ide.inb(16) & 1))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(20):
        ide.table([(0x1000, 512)])
        ide.command(Command.READ_DMA, lba=number)
        ide.start()
        deadline = time.monotonic() + 10
        while len(seen) == number and time.monotonic() < deadline:
            pass
        assert seen[number:] == [(INTERRUPT, READY, sector(number), 1)]
        ide.stop()
        ide.inb(7)
        ide.outb(18, INTERRUPT)
    over.set()
    watcher.join()
    ide.channel.stop()


@pytest.mark.parametrize("how", ["stop", "software reset", "bus master off"])
def test_given_a_transfer_under_way_when_it_is_stopped_then_that_waits_for_its_end(
    make_ide: Any, medium: Any, how: str
) -> None:
    """After the write that stops it has returned, the device touches the guest's memory no more."""
    ide = running(make_ide, medium)
    gate = Gate()
    ide.table([(0x1000, 512)])
    ide.ram.touched = gate
    ide.command(Command.READ_DMA, lba=9)
    ide.start()
    assert gate.reached.wait(10)
    assert ide.status & (STATUS.BSY | STATUS.DRQ), "other vCPUs are answered meanwhile"
    stopped = threading.Event()

    def stop() -> None:
        if how == "stop":
            ide.stop()
        elif how == "software reset":
            ide.outb(8, 4)
        else:
            ide.channel.use_bus(False)
        stopped.set()

    thread = threading.Thread(target=stop)
    thread.start()
    assert not stopped.wait(0.05), "the transfer is under way"
    gate.open.set()
    assert stopped.wait(10)
    assert ide.ram.data[0x1000:0x1200] == sector(9)
    thread.join()
    ide.channel.stop()


def test_given_a_drive_when_it_has_a_mistake_of_ours_then_the_command_fails_and_the_rest_works(
    ide: Any, medium: Any
) -> None:
    medium.read = lambda *_: 1 // 0
    ide.command(Command.READ_SECTORS)
    assert ide.status & STATUS.ERR
    assert ide.channel.counts()["faults"] == 1
    ide.command(Command.IDENTIFY_DEVICE)
    assert ide.status & STATUS.DRQ


def test_given_a_cd_when_it_is_saved_in_the_middle_then_another_goes_on(
    make_ide: Any, make_medium: Any
) -> None:
    """The buffer, the packet's progress and the tray travel; so does work that was not begun."""
    first = make_ide(Cdrom(make_medium().fill()))
    first.packet(bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 2]), limit=2048)
    assert first.data_in(1000) == b"".join(map(sector, range(4)))[:1000]
    second = make_ide(Cdrom(make_medium().fill()))
    second.channel.load(first.channel.save())
    assert second.data_in(1048) == b"".join(map(sector, range(4)))[1000:2048]
    second.work()
    assert second.data_in(2048) == b"".join(map(sector, range(4, 8)))
    assert second.status == STATUS.DRDY
