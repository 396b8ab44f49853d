# SPDX-License-Identifier: GPL-2.0-or-later
"""A drive's copy of the command block: what a command's address, count and features are."""

from coremesh.hw.ata.registers import DEVICE
from coremesh.hw.state import Stateful

FEATURES, COUNT, LOW, MID, HIGH, HEAD = range(1, 7)
"""The registers by their offsets; an error and a reason are read where features and count are written."""


class TaskFile(Stateful):
    """Registers 1 to 5 are two bytes deep: a write moves the byte before it one down (ATA/ATAPI-6, 6.20).

    48-bit commands take both bytes, 28-bit commands the last one.
    """

    STATE = ("last", "previous")

    def __init__(self) -> None:
        self.last = bytearray(7)
        self.previous = bytearray(7)

    def write(self, register: int, value: int) -> None:
        """The host writes a register."""
        self.previous[register] = self.last[register]
        self.last[register] = value

    def read(self, register: int, *, previous: bool) -> int:
        """The host reads a register: the last byte, or with CONTROL.HOB the one before."""
        return (self.previous if previous and register != HEAD else self.last)[register]

    def sign(self, signature: tuple[int, int, int, int]) -> None:
        """COUNT, LOW, MID, HIGH after a reset: they tell what kind of device this is (section 9.12)."""
        self.last[:] = bytes([0, 0, *signature, self.last[HEAD] & DEVICE.DEV])
        self.previous[:] = bytes(7)

    @property
    def features(self) -> int:
        """The low byte of the features."""
        return self.last[FEATURES]

    def sectors(self, *, wide: bool) -> int:
        """The count of a command; zero stands for one more than the largest."""
        if wide:
            return (self.previous[COUNT] << 8 | self.last[COUNT]) or 1 << 16
        return self.last[COUNT] or 1 << 8

    def address(self, *, wide: bool, heads: int, per_track: int) -> int:
        """The first sector of a command; -1 for a cylinder, head and sector that no disk has."""
        low = self.last[HIGH] << 16 | self.last[MID] << 8 | self.last[LOW]
        if wide:
            return (self.previous[HIGH] << 16 | self.previous[MID] << 8 | self.previous[LOW]) << 24 | low
        head = DEVICE.HEAD.of(self.last[HEAD])
        if self.last[HEAD] & DEVICE.LBA:
            return head << 24 | low
        sector, cylinder = self.last[LOW], low >> 8
        if not 1 <= sector <= per_track or head >= heads:
            return -1
        return (cylinder * heads + head) * per_track + sector - 1

    def put_address(self, lba: int, *, wide: bool) -> None:
        """Show the host the address ``lba``, as a command that failed there does."""
        for register, shift in ((LOW, 0), (MID, 8), (HIGH, 16)):
            self.last[register] = lba >> shift & 0xFF
            if wide:
                self.previous[register] = lba >> shift + 24 & 0xFF
        if not wide:
            self.last[HEAD] = DEVICE.HEAD.put(self.last[HEAD], lba >> 24)
