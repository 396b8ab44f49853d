# SPDX-License-Identifier: GPL-2.0-or-later
"""An ATA disk: 28-bit and 48-bit addresses, PIO, multiword DMA, TRIM.

Reference: ATA/ATAPI-6 (T13/1410D), sections 6 and 8; DATA SET MANAGEMENT: ATA8-ACS (T13/1699D), section 7.9.
"""

import errno
from functools import partial

from coremesh.hw.ata.drive import Drive, FromMedium, Job, Transfer, read_bytes
from coremesh.hw.ata.identify import identify_disk
from coremesh.hw.ata.registers import ERROR, SECTOR, STATUS, Command
from coremesh.hw.ata.task_file import COUNT, HEAD
from coremesh.hw.backend.block import BlockBackend

HEADS, PER_TRACK = 16, 63
MAX_MULTIPLE = 16
"""Sectors in one burst of READ MULTIPLE and WRITE MULTIPLE."""
_PIECE = 1 << 20  # bytes read at once where a command wants no data
_TRIM = 0x01  # the feature of DATA SET MANAGEMENT
_ACTIVE = 0xFF  # CHECK POWER MODE

_READS = (
    Command.READ_SECTORS, Command.READ_SECTORS_NO_RETRY, Command.READ_SECTORS_EXT, Command.READ_MULTIPLE,
    Command.READ_MULTIPLE_EXT,
)  # fmt: skip
_WRITES = (
    Command.WRITE_SECTORS, Command.WRITE_SECTORS_NO_RETRY, Command.WRITE_SECTORS_EXT, Command.WRITE_MULTIPLE,
    Command.WRITE_MULTIPLE_EXT, Command.WRITE_MULTIPLE_FUA_EXT,
)  # fmt: skip
_MULTIPLE = frozenset(
    {
        Command.READ_MULTIPLE, Command.READ_MULTIPLE_EXT, Command.WRITE_MULTIPLE, Command.WRITE_MULTIPLE_EXT,
        Command.WRITE_MULTIPLE_FUA_EXT,
    }
)  # fmt: skip
_DMA_READS = (Command.READ_DMA, Command.READ_DMA_NO_RETRY, Command.READ_DMA_EXT)
_DMA_WRITES = (
    Command.WRITE_DMA, Command.WRITE_DMA_NO_RETRY, Command.WRITE_DMA_EXT, Command.WRITE_DMA_FUA_EXT,
)  # fmt: skip
_VERIFIES = (Command.READ_VERIFY, Command.READ_VERIFY_NO_RETRY, Command.READ_VERIFY_EXT)
_FUA = frozenset({Command.WRITE_DMA_FUA_EXT, Command.WRITE_MULTIPLE_FUA_EXT})
# Codes of power commands from ATA-1, which some drivers still send.
_POWER = (
    Command.STANDBY_IMMEDIATE, Command.IDLE_IMMEDIATE, Command.STANDBY, Command.IDLE, Command.SLEEP,
    0x94, 0x95, 0x96, 0x97, 0x99,
)  # fmt: skip


class ToMedium(Transfer):
    """Sectors that are written as the bus master brings them; what is left of a sector at the end is not."""

    def __init__(self, medium: BlockBackend, offset: int, length: int, *, through: bool) -> None:
        super().__init__(length, to_memory=False)
        self._medium = medium
        self._offset = offset
        self._through = through
        self._rest = b""

    def give(self, data: bytes) -> None:
        """See :class:`Transfer`."""
        data = self._rest + data
        whole = len(data) // SECTOR * SECTOR
        self._rest = data[whole:]
        if whole:
            self._medium.write(self._offset, [data[:whole]])
            self._offset += whole

    def end(self) -> None:
        """See :class:`Transfer`."""
        if self._through:
            self._medium.flush()


class TrimRanges(Transfer):
    """The range list of a TRIM: when all of it is there, the ranges are discarded."""

    def __init__(self, medium: BlockBackend, length: int) -> None:
        super().__init__(length, to_memory=False)
        self._medium = medium
        self._list = b""

    def give(self, data: bytes) -> None:
        """See :class:`Transfer`."""
        self._list += data

    def end(self) -> None:
        """Discard. OSError, before any range is discarded, if one is beyond the end of the disk."""
        last = self._medium.size // SECTOR
        ranges = []
        for at in range(0, len(self._list), 8):
            entry = int.from_bytes(self._list[at : at + 8], "little")
            lba, sectors = entry & (1 << 48) - 1, entry >> 48
            if lba + sectors > last:
                raise OSError(errno.EINVAL, "a range beyond the end of the disk")
            if sectors:
                ranges.append((lba * SECTOR, sectors * SECTOR))
        for offset, length in ranges:
            self._medium.discard(offset, length)


class Disk(Drive):
    """A fixed disk of ``medium.size`` bytes, rounded down to sectors of 512."""

    SIGNATURE = (0x01, 0x01, 0x00, 0x00)
    READY = STATUS.DRDY | STATUS.DSC
    STATE = (
        *Drive.STATE, "_lba", "_left", "_block", "multiple", "write_cache", "per_track", "heads",
    )  # fmt: skip

    def __init__(self, medium: BlockBackend, serial: str = "1") -> None:
        self._medium = medium
        self._serial = serial
        self.last = medium.size // SECTOR  # one past the last sector
        self.can_trim = medium.can_discard and not medium.read_only
        super().__init__()
        self.commands = {
            Command.IDENTIFY_DEVICE: self._identify,
            Command.PACKET: self.abort,
            Command.NOP: self.abort,
            Command.SET_FEATURES: self.set_features,
            Command.SET_MULTIPLE_MODE: self._set_multiple,
            Command.INITIALIZE_DEVICE_PARAMETERS: self._set_geometry,
            Command.CHECK_POWER_MODE: self._check_power,
            0x98: self._check_power,
            Command.FLUSH_CACHE: self._begin_flush,
            Command.FLUSH_CACHE_EXT: self._begin_flush,
            Command.READ_NATIVE_MAX: self._native_max,
            Command.READ_NATIVE_MAX_EXT: self._native_max,
            Command.DATA_SET_MANAGEMENT: self._begin_trim,
            **dict.fromkeys(_READS, self._begin_read),
            **dict.fromkeys(_WRITES, self._begin_write),
            **dict.fromkeys(_DMA_READS, self._begin_dma),
            **dict.fromkeys(_DMA_WRITES, partial(self._begin_dma, is_write=True)),
            **dict.fromkeys(_VERIFIES, self._begin_verify),
            **dict.fromkeys(_POWER, self.complete),
            # RECALIBRATE and SEEK: the heads of this disk are where they are wanted.
            **dict.fromkeys(range(0x10, 0x20), self.complete),
            **dict.fromkeys(range(0x70, 0x80), self.complete),
        }

    def hard_reset(self) -> None:
        """See :class:`Drive`."""
        self.multiple = 0
        self.write_cache = True
        self.per_track, self.heads = PER_TRACK, HEADS
        super().hard_reset()

    def soft_reset(self) -> None:
        """See :class:`Drive`."""
        self._lba = self._left = self._block = 0
        super().soft_reset()

    # --- commands

    def _identify(self) -> None:
        self._left = 0
        self.offer(identify_disk(self, self._serial))

    def set_features(self) -> None:
        """The write cache, read look-ahead, and what every drive has."""
        match self.task_file.features:
            case 0x02 | 0x82 as feature:
                self.write_cache = feature == 0x02
                if self.write_cache:
                    self.complete()
                else:
                    self.work()  # what is in the cache is written first
            case 0xAA | 0x55 | 0x66 | 0xCC:  # read look-ahead on and off; what a soft reset reverts
                self.complete()
            case _:
                super().set_features()

    def _set_multiple(self) -> None:
        count = self.task_file.last[COUNT]
        if count > MAX_MULTIPLE or count & (count - 1):
            self.abort()
            return
        self.multiple = count
        self.complete()

    def _set_geometry(self) -> None:
        sectors = self.task_file.last[COUNT]
        if not sectors:
            self.abort()
            return
        self.per_track = sectors
        self.heads = (self.task_file.last[HEAD] & 0x0F) + 1
        self.complete()

    def _check_power(self) -> None:
        self.task_file.last[COUNT] = _ACTIVE
        self.complete()

    def _native_max(self) -> None:
        last = self.last - 1 if self.is_wide else min(self.last, (1 << 28) - 1) - 1
        self.task_file.put_address(last, wide=self.is_wide)
        self.complete()

    def _begin(self, *, is_write: bool = False) -> bool:
        """Take address and count; False, and the command is over, for sectors that this disk has not."""
        self._lba = self.task_file.address(wide=self.is_wide, heads=self.heads, per_track=self.per_track)
        self._left = self.task_file.sectors(wide=self.is_wide)
        if is_write and self._medium.read_only:
            self.abort()
            return False
        if self._lba < 0 or self._lba + self._left > self.last:
            self.abort(ERROR.IDNF)
            return False
        self._block = self.multiple if self.command in _MULTIPLE else 1
        if not self._block:  # READ MULTIPLE before SET MULTIPLE MODE
            self.abort()
            return False
        return True

    def _begin_read(self) -> None:
        if self._begin():
            self.work()

    def _begin_write(self) -> None:
        if self._begin(is_write=True):
            self.demand(min(self._block, self._left) * SECTOR, interrupt=False)

    def _begin_verify(self) -> None:
        if self._begin():
            self.work()

    def _begin_dma(self, *, is_write: bool = False) -> None:
        if self._begin(is_write=is_write):
            self.await_dma()

    def _begin_flush(self) -> None:
        self._left = 0
        self.work()

    def _begin_trim(self) -> None:
        self._left = self.task_file.sectors(wide=True)
        # One block of ranges, as the identification says.
        if self.task_file.features != _TRIM or self._left > 1 or not self.can_trim:
            self.abort()
            return
        self._lba = 0
        self.await_dma()

    # --- the medium

    @property
    def _through(self) -> bool:
        """Whether what is written must be on the medium before the command is over."""
        return self.command in _FUA or not self.write_cache

    def job(self) -> Job:
        """See :class:`Drive`."""
        medium, offset = self._medium, self._lba * SECTOR
        length = min(self._block, self._left) * SECTOR
        if self.command in _READS:
            return partial(read_bytes, medium, offset, length)
        if self.command in _WRITES:
            return partial(_write, medium, offset, self.buffer, through=self._through)
        if self.command in _VERIFIES:
            return partial(_verify, medium, offset, self._left * SECTOR)
        return partial(_flush, medium)

    def worked(self, data: bytes) -> None:
        """See :class:`Drive`."""
        if self.command in _READS:
            self._advance()
            self.offer(data)
        elif self.command in _WRITES:
            self._advance()
            if self._left:
                self.demand(min(self._block, self._left) * SECTOR, interrupt=True)
            else:
                self.complete()
        else:
            self.complete()

    def _advance(self) -> None:
        done = min(self._block, self._left)
        self._lba += done
        self._left -= done

    def failed(self, error: OSError) -> None:
        """See :class:`Drive`."""
        self._fail(is_write=self.command not in _READS and self.command not in _VERIFIES)

    def _fail(self, *, is_write: bool) -> None:
        self.task_file.put_address(self._lba, wide=self.is_wide)
        if is_write:
            self.abort()
            self.status |= STATUS.DF
        else:
            self.abort(ERROR.UNC)

    def emptied(self) -> None:
        """See :class:`Drive`."""
        if self._left:
            self.work()
        else:
            self.complete(interrupt=False)

    def filled(self) -> None:
        """See :class:`Drive`."""
        self.work()

    # --- the bus master

    def transfer(self) -> Transfer:
        """See :class:`Drive`."""
        offset, length = self._lba * SECTOR, self._left * SECTOR
        if self.command == Command.DATA_SET_MANAGEMENT:
            return TrimRanges(self._medium, length)
        if self.command in _DMA_WRITES:
            return ToMedium(self._medium, offset, length, through=self._through)
        return FromMedium(self._medium, offset, length)

    def transferred(self, moved: int, *, complete: bool) -> None:
        """See :class:`Drive`."""
        self._lba += moved // SECTOR
        self._left -= moved // SECTOR
        self.complete(interrupt=complete)

    def transfer_failed(self, moved: int) -> None:
        """See :class:`Drive`."""
        self._lba += moved // SECTOR
        if self.command == Command.DATA_SET_MANAGEMENT:
            self.abort()
        else:
            self._fail(is_write=self.command in _DMA_WRITES)


def _write(medium: BlockBackend, offset: int, data: bytes, *, through: bool) -> bytes:
    medium.write(offset, [data])
    if through:
        medium.flush()
    return b""


def _verify(medium: BlockBackend, offset: int, length: int) -> bytes:
    for at in range(offset, offset + length, _PIECE):
        read_bytes(medium, at, min(_PIECE, offset + length - at))
    return b""


def _flush(medium: BlockBackend) -> bytes:
    if not medium.read_only:
        medium.flush()
    return b""
