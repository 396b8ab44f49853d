# SPDX-License-Identifier: GPL-2.0-or-later
"""A CD-ROM drive's packets (MMC-3, SFF-8020i), and how they pass the task file (ATA/ATAPI-6, 8.23)."""

from typing import Any

import pytest
from ata_commands import Command
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.registers import STATUS

CHECK = STATUS.DRDY | STATUS.ERR


def block(number: int) -> bytes:
    return b"".join((4 * number + i).to_bytes(4, "little") * 128 for i in range(4))


def answer(cd: Any, packet: bytes, limit: int = 0xFFFE) -> bytes:
    """All data that a packet gives, burst by burst as the byte count says."""
    cd.packet(packet, limit=limit)
    data = b""
    while cd.status & STATUS.DRQ:
        assert cd.inb(2) == 2, "interrupt reason: data to the host"
        length = cd.inb(4) | cd.inb(5) << 8
        assert 0 < length <= limit
        data += cd.data_in(length + length % 2)[:length]
        cd.work()
    assert cd.inb(2) == 3, "interrupt reason: the end"
    assert cd.wire.high
    cd.inb(7)
    return data


def sense(cd: Any) -> tuple[int, int, int]:
    data = answer(cd, bytes([0x03, 0, 0, 0, 18]))
    assert len(data) == 18
    return data[2], data[12], data[13]


def test_given_a_reset_then_the_signature_says_a_packet_device(cd: Any) -> None:
    assert [cd.inb(register) for register in range(1, 6)] == [1, 1, 1, 0x14, 0xEB]
    assert cd.status == 0
    cd.command(Command.IDENTIFY_DEVICE)
    assert cd.status & STATUS.ERR
    assert (cd.inb(4), cd.inb(5)) == (0x14, 0xEB)


def test_given_the_identification_then_it_is_a_cd_drive_with_packets_of_12_bytes(cd: Any) -> None:
    cd.command(Command.IDENTIFY_PACKET_DEVICE)
    data = cd.data_in(512)
    assert data[:2] == b"\xc0\x85"
    assert sum(data) & 0xFF == 0


def test_given_a_disc_when_its_size_is_asked_then_the_last_block_is_told(cd: Any) -> None:
    assert answer(cd, bytes([0x25])) == (511).to_bytes(4, "big") + (2048).to_bytes(4, "big")


@pytest.mark.parametrize("limit", [2048, 3000, 3001, 0xFFFF, 512, 2])
def test_given_a_byte_count_limit_when_blocks_are_read_then_no_burst_is_longer(cd: Any, limit: int) -> None:
    data = answer(cd, bytes([0x28, 0, 0, 0, 0, 7, 0, 0, 20]), limit)
    assert data == b"".join(map(block, range(7, 27)))


def test_given_a_limit_of_zero_when_data_would_come_then_the_packet_is_aborted(cd: Any) -> None:
    cd.packet(bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1]), limit=0)
    assert cd.status & STATUS.ERR
    assert cd.inb(1) == 4
    cd.packet(bytes([0x00]), limit=0)
    assert cd.status == STATUS.DRDY, "without data it does not matter"


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (bytes([0x28, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1]), (5, 0x21, 0)),  # LBA -1
        (bytes([0xA8, 0, 0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]), (5, 0x21, 0)),
        (bytes([0x28, 0, 0, 0, 2, 0, 0, 0, 1]), (5, 0x21, 0)),  # one past the end
        (bytes([0x12, 1, 0, 0, 36]), (5, 0x24, 0)),
        (bytes([0x43, 0, 5, 0, 0, 0, 0, 0, 99]), (5, 0x24, 0)),
        (bytes([0x5A, 0, 0xC1, 0, 0, 0, 0, 0, 99]), (5, 0x39, 0)),
        (bytes([0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8]), (5, 0x24, 0)),
        (bytes([0xFE]), (5, 0x20, 0)),
    ],
)
def test_given_a_packet_that_cannot_be_done_then_the_sense_data_tell_why(
    cd: Any, packet: bytes, expected: tuple[int, int, int]
) -> None:
    cd.packet(packet)
    assert cd.wire.high
    assert cd.inb(7) == CHECK
    assert cd.inb(1) == expected[0] << 4 | 4
    assert sense(cd) == expected
    assert sense(cd) == (0, 0, 0), "told once"


def test_given_no_disc_when_it_is_used_then_the_drive_is_not_ready(make_ide: Any) -> None:
    cd = make_ide(Cdrom(None))
    for packet in (
        bytes([0x00]),
        bytes([0x25]),
        bytes([0x28] + [0] * 7 + [1]),
        bytes([0x43] + [0] * 7 + [9]),
    ):
        cd.packet(packet)
        assert cd.inb(7) == CHECK
        assert sense(cd) == (2, 0x3A, 1)
    assert answer(cd, bytes([0x12, 0, 0, 0, 36]))[8:16] == b"COREMESH"
    cd.command(0xF8)  # READ NATIVE MAX: a disk's command
    assert cd.inb(7) & STATUS.ERR


def test_given_the_table_of_contents_then_one_data_track_and_the_lead_out_stand_there(cd: Any) -> None:
    toc = answer(cd, bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 99]))
    assert toc == bytes([0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0, 0, 0, 2, 0])
    in_time = answer(cd, bytes([0x43, 2, 0, 0, 0, 0, 0xAA, 0, 99]))
    assert in_time[8:] == bytes([0, 0, 8, 62])  # (512 + 150) / 75 seconds
    assert answer(cd, bytes([0x43, 0, 1, 0, 0, 0, 0, 0, 12]))[:4] == bytes([0, 10, 1, 1])
    assert len(answer(cd, bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 7]))) == 7, "cut to the room that there is"


def test_given_a_tray_when_it_is_opened_and_locked_then_the_medium_comes_and_goes(cd: Any) -> None:
    answer(cd, bytes([0x1E, 0, 0, 0, 1]))
    cd.packet(bytes([0x1B, 0, 0, 0, 2]))
    assert sense(cd) == (5, 0x53, 2), "locked"
    answer(cd, bytes([0x1E, 0, 0, 0, 0]))
    answer(cd, bytes([0x1B, 0, 0, 0, 2]))
    cd.packet(bytes([0x00]))
    assert sense(cd) == (2, 0x3A, 2)
    event = bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8])
    assert answer(cd, event)[4:6] == bytes([3, 1])
    answer(cd, bytes([0x1B, 0, 0, 0, 3]))
    assert answer(cd, event)[4:6] == bytes([2, 2])
    assert answer(cd, event)[4:6] == bytes([0, 2])
    answer(cd, bytes([0x00]))


def test_given_configuration_and_mode_pages_then_they_describe_a_cd(cd: Any) -> None:
    configuration = answer(cd, bytes([0x46, 0, 0, 0, 0, 0, 0, 1, 0]))
    assert configuration[6:8] == b"\x00\x08"
    assert int.from_bytes(configuration[:4], "big") == len(configuration) - 4
    mode = answer(cd, bytes([0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128]))
    assert mode[8:10] == bytes([0x2A, 18])
    assert int.from_bytes(mode[:2], "big") == len(mode) - 2


def test_given_a_scratched_disc_then_the_sense_key_is_medium_error(cd: Any, medium: Any) -> None:
    medium.bad = range(9 * 2048, 9 * 2048 + 1)
    cd.packet(bytes([0x28, 0, 0, 0, 0, 9, 0, 0, 1]))
    assert cd.inb(7) == CHECK
    assert sense(cd) == (3, 0x11, 0)
    cd.table([(0x1000, 2048)])
    cd.packet(bytes([0x28, 0, 0, 0, 0, 9, 0, 0, 1]), dma=True)
    cd.start()
    assert cd.inb(7) == CHECK
    cd.stop()
    assert sense(cd) == (3, 0x11, 0)


def test_given_a_packet_under_way_when_the_device_is_reset_then_it_is_gone(cd: Any) -> None:
    cd.packet(bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 20]))
    cd.data_in(100)
    cd.outb(7, Command.DEVICE_RESET)
    assert cd.status == 0
    assert (cd.inb(4), cd.inb(5)) == (0x14, 0xEB)
    answer(cd, bytes([0x00]))
