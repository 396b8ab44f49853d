# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame of the devices: lines that several devices share, DMA, devices that move, the board as data."""

import threading
from typing import Any

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw.board.board import Board, Chip, ports
from coremesh.hw.board.pc import PC
from coremesh.hw.decode import MMIO, PORT, At, DecodeTable
from coremesh.hw.device import Device
from coremesh.hw.irq import SharedLine
from coremesh.hw.memory import BusMasterError, GuestMemory, Segment


def test_a_shared_line_is_active_while_one_device_asserts_it() -> None:
    """Given two devices on a PCI interrupt, which is active low, then it is low while one or both assert."""
    levels: list[bool] = []
    line = SharedLine(levels.append, active=False)
    first, second = line.branch(), line.branch()
    first.set(True)
    second.set(True)
    first.set(False)
    assert levels == [False] and line.asserted == 1
    second.set(False)
    assert levels == [False, True] and line.asserted == 0


def test_devices_that_pull_a_line_at_once_leave_it_as_they_do() -> None:
    """Given four devices that assert and release from threads of their own, then no change is lost."""
    levels: list[bool] = []
    line = SharedLine(levels.append)

    def pull() -> None:
        branch = line.branch()
        for _ in range(2000):
            branch.set(True)
            branch.set(False)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert line.asserted == 0
    # Each rise is followed by a fall: an input that is told twice the same has missed a change.
    assert levels[::2] == [True] * (len(levels) // 2) and levels[1::2] == [False] * (len(levels) // 2)


class Ram:
    """64 KiB at 1 MiB, as a host answers: an IndexError for all else."""

    def __init__(self) -> None:
        self.data = bytearray(range(256)) * 256

    def _check(self, gpa: int, length: int) -> int:
        if not gpa >= 0x10_0000 or gpa + length > 0x11_0000:
            raise IndexError("not a range of guest RAM")
        return gpa - 0x10_0000

    def ram_read(self, gpa: int, length: int) -> bytes:
        at = self._check(gpa, length)
        return bytes(self.data[at : at + length])

    def ram_write(self, gpa: int, data: bytes) -> None:
        at = self._check(gpa, len(data))
        self.data[at : at + len(data)] = data


def test_dma_gathers_and_scatters() -> None:
    """Given a scatter list, when a bus master reads and writes by it, then the pieces are in its order."""
    ram = Ram()
    memory = GuestMemory(ram)
    assert memory.gather([Segment(0x10_0002, 2), Segment(0x10_0000, 1)]) == b"\x02\x03\x00"
    assert memory.scatter([Segment(0x10_0010, 2), Segment(0x10_0020, 8)], b"abcde") == 5
    assert ram.data[0x10:0x12] == b"ab" and ram.data[0x20:0x24] == b"cde\x23"


@pytest.mark.parametrize("gpa", [0, 0xFFFFF, 0x10_FFFF, 1 << 40, 1 << 64, -1])
def test_dma_outside_ram_is_a_typed_failure(gpa: int) -> None:
    """Given a list whose second piece is not RAM, then the error says which, and how far it came."""
    memory = GuestMemory(Ram())
    pieces = [Segment(0x10_0000, 4), Segment(gpa, 8)]
    with pytest.raises(BusMasterError) as read:
        memory.gather(pieces)
    with pytest.raises(BusMasterError) as written:
        memory.scatter(pieces, bytes(12))
    assert read.value.segment == written.value.segment == (gpa, 8)
    assert read.value.done == written.value.done == 4


class Latch(Device):
    def read(self, offset: int, size: int) -> int:
        return 0x40 + offset


def test_a_device_that_moves_answers_at_its_new_place_only(pc: Any) -> None:
    """Given a PCI function whose BAR is written, then the old addresses are empty."""
    latch = Latch("latch")
    pc.node.move(latch, [At(PORT, 0xC000, 4, latch), At(MMIO, 0xD000_0000, 0x100, latch)])
    assert pc.inb(0xC001) == 0x41 and pc.node.access(MMIO, 0xD000_0002, 1, False, 0) == 0x42
    pc.node.move(latch, [At(PORT, 0xC100, 4, latch)])
    assert pc.inb(0xC101) == 0x41
    assert pc.inb(0xC001) == 0xFF and pc.node.access(MMIO, 0xD000_0002, 1, False, 0) == 0xFF
    assert (PORT, 0x1000, 0xFFFF) in pc.node.claims(), "where it may come to answer was claimed before"


def test_a_move_onto_another_device_changes_nothing(pc: Any) -> None:
    """When a device is moved to where the serial port answers, then that is refused, and both stay."""
    latch = Latch("latch")
    pc.node.move(latch, [At(PORT, 0xC000, 4, latch)])
    with pytest.raises(ConfigurationError, match="uart"):
        pc.node.move(latch, [At(PORT, 0x3F8, 4, latch)])
    assert pc.inb(0xC000) == 0x40 and pc.inb(0x3FD) == 0x60


def test_a_device_moves_while_vcpus_access_it(pc: Any) -> None:
    """Given a device that moves between two places, when a vCPU reads both all the time.

    Then it sees the device or the empty bus, never an error, and the chips beside it as ever.
    """
    latch = Latch("latch")
    done = threading.Event()
    odd: list[int] = []

    def read() -> None:
        while not done.is_set():
            for port, answers in ((0xC000, (0x40, 0xFF)), (0xC100, (0x40, 0xFF)), (0x3FD, (0x60,))):
                value = pc.inb(port)
                if value not in answers:
                    odd.append(value)

    reader = threading.Thread(target=read)
    reader.start()
    for round_ in range(300):
        pc.node.move(latch, [At(PORT, 0xC100 if round_ % 2 else 0xC000, 1, latch)])
    done.set()
    reader.join()
    assert odd == []


def test_a_table_once_made_stays_as_it_is() -> None:
    """Given a table, when a device moves, then a vCPU that has looked at the old table still finds it."""
    latch = Latch("latch")
    table = DecodeTable([At(PORT, 0x100, 1, latch)])
    moved = table.moved(latch, [])
    assert (0x100, 1) in table.ports and (0x100, 1) not in moved.ports


def test_each_place_of_the_board_has_its_device() -> None:
    """When a place stays empty, or a device has none, then the board says which."""
    board = Board((Chip("latch", (ports(0x100, 4),)), Chip("other", (ports(0x200, 1),))))
    with pytest.raises(ConfigurationError, match="other"):
        board.mappings([Latch("latch")])
    with pytest.raises(ConfigurationError, match="third"):
        board.mappings([Latch("latch"), Latch("other"), Latch("third")])


def test_what_the_guest_is_told_is_what_is_decoded(pc: Any) -> None:
    """Given the board, then each port that ACPI names for a chip reaches that chip."""
    for chip in PC.chips:
        if chip.acpi:
            for place in chip.described:
                reached = [m for m in pc.node.map() if m[1] == "port" and m[2] <= place.base <= m[3]]
                assert [m[0] for m in reached] == [chip.name]
