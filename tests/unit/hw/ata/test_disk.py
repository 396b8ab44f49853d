# SPDX-License-Identifier: GPL-2.0-or-later
"""An ATA disk at its registers (ATA/ATAPI-6), by PIO."""

from typing import Any

import pytest
from ata_commands import Command
from coremesh.hw.ata.disk import Disk
from coremesh.hw.ata.registers import ERROR, STATUS

READY = STATUS.DRDY | STATUS.DSC


def sector(number: int) -> bytes:
    return number.to_bytes(4, "little") * 128


def test_given_a_reset_then_the_signature_says_a_disk(ide: Any) -> None:
    assert [ide.inb(register) for register in range(1, 6)] == [1, 1, 1, 0, 0]
    assert ide.status == READY


def test_given_a_disk_when_it_is_identified_then_words_and_checksum_hold(ide: Any) -> None:
    ide.command(Command.IDENTIFY_DEVICE)
    assert ide.status == READY | STATUS.DRQ
    assert ide.wire.high
    data = ide.data_in(512)
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(0, 512, 2)]
    assert words[60] | words[61] << 16 == 2048
    assert words[100] == 2048
    assert data[54:94].decode().replace(" ", "")[:2] == "OC"  # pairs of characters are swapped
    assert words[83] & 0x0400, "48-bit addresses"
    assert sum(data) & 0xFF == 0
    assert ide.status == READY


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("code", [Command.READ_SECTORS, Command.READ_SECTORS_EXT])
def test_given_sectors_when_they_are_read_then_each_comes_with_its_interrupt(
    ide: Any, code: Command, size: int
) -> None:
    ide.command(code, lba=5, count=3, wide=code == Command.READ_SECTORS_EXT)
    for number in (5, 6, 7):
        assert ide.wire.high, number
        assert ide.inb(7) == READY | STATUS.DRQ
        assert not ide.wire.high, "reading the status takes the interrupt back"
        assert ide.data_in(512, size) == sector(number)
        ide.work()
    assert ide.status == READY
    assert not ide.wire.high
    assert ide.wire.rises == 3


def test_given_an_address_as_cylinder_head_sector_when_read_then_the_geometry_counts(ide: Any) -> None:
    """Cylinder 1, head 2, sector 3 of 16 heads and 63 sectors."""
    for register, value in ((2, 1), (3, 3), (4, 1), (5, 0), (6, 0xA2), (7, Command.READ_SECTORS)):
        ide.outb(register, value)
    ide.work()
    assert ide.data_in(512) == sector((1 * 16 + 2) * 63 + 2)
    ide.outb(3, 0)  # there is no sector 0
    ide.outb(7, Command.READ_SECTORS)
    assert ide.status & STATUS.ERR
    assert ide.inb(1) == ERROR.IDNF


def test_given_data_when_it_is_written_then_the_first_burst_has_no_interrupt(ide: Any, medium: Any) -> None:
    ide.command(Command.WRITE_SECTORS, lba=9, count=2)
    assert ide.status == READY | STATUS.DRQ
    assert not ide.wire.high
    ide.data_out(b"\xaa" * 512)
    assert ide.wire.high
    assert ide.inb(7) == READY | STATUS.DRQ
    ide.data_out(b"\xbb" * 512)
    assert ide.inb(7) == READY
    assert medium.data[9 * 512 : 11 * 512] == b"\xaa" * 512 + b"\xbb" * 512
    assert ide.wire.rises == 2


def test_given_read_multiple_when_a_mode_is_set_then_bursts_have_its_length(ide: Any) -> None:
    ide.command(Command.READ_MULTIPLE, count=4)
    assert ide.status & STATUS.ERR, "READ MULTIPLE before SET MULTIPLE MODE"
    ide.command(Command.SET_MULTIPLE_MODE, count=3)
    assert ide.status & STATUS.ERR, "three is no power of two"
    ide.command(Command.SET_MULTIPLE_MODE, count=4)
    assert ide.status == READY
    ide.inb(7)
    rises = ide.wire.rises
    ide.command(Command.READ_MULTIPLE, lba=1, count=6)
    assert ide.data_in(2048) == b"".join(map(sector, (1, 2, 3, 4)))
    ide.work()
    assert ide.data_in(1024) == b"".join(map(sector, (5, 6)))
    assert ide.wire.rises == rises + 1  # the line was high from the first burst on


def test_given_a_count_of_zero_then_it_means_the_most(make_ide: Any, make_medium: Any) -> None:
    ide = make_ide(Disk(make_medium(300 * 512).fill()))
    ide.command(Command.READ_VERIFY, lba=44, count=0)
    assert ide.inb(7) == READY  # 44 + 256 = 300
    ide.command(Command.READ_VERIFY, lba=45, count=0)
    assert ide.inb(7) & STATUS.ERR
    assert ide.inb(1) == ERROR.IDNF
    ide.command(Command.READ_VERIFY_EXT, count=0, wide=True)
    assert ide.inb(7) & STATUS.ERR, "65,536 sectors"


def test_given_hob_when_the_task_file_is_read_then_it_shows_the_bytes_before(ide: Any) -> None:
    ide.outb(3, 0x12)
    ide.outb(3, 0x34)
    assert ide.inb(3) == 0x34
    ide.outb(8, 0x80)
    assert ide.inb(3) == 0x12
    ide.outb(2, 0)
    assert ide.inb(3) == 0x34, "a write to the command block clears HOB"


def test_given_the_native_size_when_asked_then_the_last_sector_is_told(ide: Any) -> None:
    ide.command(Command.READ_NATIVE_MAX)
    assert [ide.inb(3), ide.inb(4), ide.inb(5), ide.inb(6) & 15] == [0xFF, 0x07, 0, 0]


def test_given_bad_places_when_they_are_used_then_the_guest_gets_an_error(ide: Any, medium: Any) -> None:
    medium.bad = range(7 * 512, 8 * 512)
    ide.command(Command.READ_SECTORS, lba=7)
    assert ide.wire.high
    assert ide.inb(7) == READY | STATUS.ERR
    assert ide.inb(1) == ERROR.UNC
    assert ide.inb(3) == 7
    ide.command(Command.WRITE_SECTORS, lba=7)
    ide.data_out(bytes(512))
    assert ide.inb(7) == READY | STATUS.ERR | STATUS.DF
    ide.command(Command.READ_SECTORS, lba=8)
    assert ide.inb(7) == READY | STATUS.DRQ, "the next command has nothing of it"


def test_given_a_medium_that_may_only_be_read_when_it_is_written_then_the_command_is_aborted(
    make_ide: Any, make_medium: Any
) -> None:
    ide = make_ide(Disk(make_medium(read_only=True)))
    for code in (Command.WRITE_SECTORS, Command.WRITE_DMA, Command.DATA_SET_MANAGEMENT):
        ide.command(code, features=1)
        assert ide.inb(7) & STATUS.ERR
        assert ide.inb(1) == ERROR.ABRT
    ide.command(Command.FLUSH_CACHE)
    assert ide.inb(7) == READY


def test_given_the_write_cache_when_it_is_off_then_each_write_is_flushed(ide: Any, medium: Any) -> None:
    ide.command(Command.WRITE_SECTORS)
    ide.data_out(bytes(512))
    assert medium.calls == ["write"]
    ide.command(Command.FLUSH_CACHE_EXT)
    assert medium.calls == ["write", "flush"]
    ide.command(Command.SET_FEATURES, features=0x82)
    assert medium.calls == ["write", "flush", "flush"], "turning it off writes what is in it"
    ide.command(Command.WRITE_SECTORS)
    ide.data_out(bytes(512))
    assert medium.calls[3:] == ["write", "flush"]


def test_given_nien_when_a_command_ends_then_the_interrupt_is_held_and_not_lost(ide: Any) -> None:
    ide.outb(8, 0x02)
    ide.command(Command.READ_SECTORS)
    assert not ide.wire.high
    ide.outb(8, 0x00)
    assert ide.wire.high, "it comes when it is let"
    ide.outb(8, 0x02)
    assert not ide.wire.high
    ide.inb(7)
    ide.outb(8, 0x00)
    assert not ide.wire.high, "reading the status took it back meanwhile"


def test_given_a_software_reset_when_it_ends_then_the_command_is_gone(ide: Any) -> None:
    ide.command(Command.READ_SECTORS, count=4)
    ide.outb(8, 0x04)
    assert ide.status == STATUS.BSY
    ide.outb(7, Command.READ_SECTORS)  # what a drive in reset does not hear
    ide.outb(8, 0x00)
    assert ide.status == READY
    assert ide.inb(1) == 1
    assert not ide.wire.high
    assert ide.data_in(2) == b"\xff\xff"


def test_given_two_drives_when_one_is_selected_then_it_alone_answers(make_ide: Any, make_medium: Any) -> None:
    first, second = make_medium(64 * 512).fill(), make_medium(32 * 512).fill()
    second.data[:512] = b"\x22" * 512
    ide = make_ide(Disk(first), Disk(second))
    ide.command(Command.READ_SECTORS, drive=1)
    assert ide.wire.high
    assert ide.data_in(512) == b"\x22" * 512
    ide.outb(6, 0)
    assert not ide.wire.high, "an interrupt is driven by the selected drive"
    ide.command(Command.READ_SECTORS, lba=40)
    assert ide.data_in(512) == sector(40)
    ide.command(Command.READ_SECTORS, lba=40, drive=1)
    assert ide.inb(1) == ERROR.IDNF, "the second is smaller"
    ide.outb(7, Command.EXECUTE_DEVICE_DIAGNOSTIC)
    assert ide.inb(1) == 1
    assert ide.wire.high
    assert ide.inb(6) & 0x10 == 0, "device 0 reports"


def test_given_no_second_drive_when_it_is_selected_then_the_status_is_zero(ide: Any) -> None:
    ide.outb(6, 0x10)
    assert ide.inb(7) == 0
    assert ide.inb(8) == 0
    ide.command(Command.IDENTIFY_DEVICE, drive=1)
    assert ide.inb(7) == 0
    assert not ide.wire.high


def test_given_no_drive_at_all_then_nothing_holds_what_is_written(make_ide: Any) -> None:
    ide = make_ide()
    ide.outb(2, 0x55)
    assert ide.inb(2) == 0
    assert ide.inb(7) == 0


def test_given_any_command_when_data_is_moved_as_asked_then_it_comes_to_an_end(
    make_ide: Any, make_medium: Any
) -> None:
    """Known or not: the drive is ready again in the end, and what it does not know it says so."""
    # RECALIBRATE and SEEK, power commands of ATA-1, and those by name that are no packet device's.
    known = {*range(0x10, 0x20), *range(0x70, 0x80), *range(0x94, 0x9A), *Command}
    known -= {Command.NOP, Command.DEVICE_RESET, Command.PACKET, Command.IDENTIFY_PACKET_DEVICE}
    refuses_this = {Command.READ_MULTIPLE, Command.READ_MULTIPLE_EXT, Command.SET_FEATURES}
    refuses_this |= {Command.WRITE_MULTIPLE, Command.WRITE_MULTIPLE_EXT, Command.WRITE_MULTIPLE_FUA_EXT}
    refuses_this |= {Command.DATA_SET_MANAGEMENT}
    ide = make_ide(Disk(make_medium()))
    for code in range(256):
        ide.outb(8, 4)
        ide.outb(8, 0)
        ide.table([(0x1000, 512)])
        ide.command(code, lba=1)
        for _ in range(2):
            if ide.status & STATUS.DRQ:
                ide.start(to_memory=code in (0x25, 0xC8, 0xC9))
                ide.stop()
                ide.data_in(512, 4)
                ide.data_out(bytes(512), 4)
        assert not ide.status & (STATUS.BSY | STATUS.DRQ), hex(code)
        error = ide.inb(1)
        if code not in known:
            assert error == ERROR.ABRT, hex(code)
        elif code not in refuses_this:
            assert error != ERROR.ABRT, hex(code)
