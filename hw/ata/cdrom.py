# SPDX-License-Identifier: GPL-2.0-or-later
"""An ATAPI CD-ROM drive: MMC commands in packets of 12 bytes.

Reference: ATA/ATAPI-6, section 8.23 (PACKET); SFF-8020i; MMC-3 (T10/1363D). The packets stand in
:mod:`coremesh.hw.ata.mmc`; here is how they and their data pass the task file.
"""

from functools import partial

from coremesh.hw.ata.drive import Drive, FromMedium, FromMemory, Job, Phase, Transfer, read_bytes
from coremesh.hw.ata.identify import identify_packet_device
from coremesh.hw.ata.mmc import BLOCK, Answer, Player, Sense
from coremesh.hw.ata.registers import ERROR, REASON, STATUS, Command
from coremesh.hw.ata.task_file import COUNT, HIGH, MID
from coremesh.hw.backend.block import BlockBackend

PACKET_BYTES = 12
_PIECE_BLOCKS = 16  # read from the medium at once, for the data port
_DMA = 0x01  # the feature of PACKET


class Cdrom(Drive):
    """A drive with ``medium`` in its tray, or with none."""

    SIGNATURE = (0x01, 0x01, 0x14, 0xEB)
    READY = 0x00
    IS_PACKET_DEVICE = True
    STATE = (*Drive.STATE, "player", "_lba", "_blocks", "_limit", "_dma", "_in_packet", "_chunk_end")

    def __init__(self, medium: BlockBackend | None, serial: str = "1") -> None:
        self._medium = medium
        self._serial = serial
        self.player = Player(0 if medium is None else medium.size // BLOCK)
        super().__init__()
        self.commands = {
            Command.PACKET: self._begin_packet,
            Command.IDENTIFY_PACKET_DEVICE: self._identify,
            # A packet device answers these with its signature (section 9.12), by which drivers know it.
            Command.IDENTIFY_DEVICE: self._refuse_as_packet_device,
            Command.READ_SECTORS: self._refuse_as_packet_device,
            Command.SET_FEATURES: self.set_features,
            Command.CHECK_POWER_MODE: self._check_power,
            **dict.fromkeys(
                (
                    Command.STANDBY_IMMEDIATE,
                    Command.IDLE_IMMEDIATE,
                    Command.STANDBY,
                    Command.IDLE,
                    Command.SLEEP,
                ),
                self.complete,
            ),
        }

    def hard_reset(self) -> None:
        """See :class:`Drive`."""
        self.player.reset()
        super().hard_reset()

    def soft_reset(self) -> None:
        """See :class:`Drive`."""
        self._lba = self._blocks = self._limit = self._chunk_end = 0
        self._dma = self._in_packet = False
        super().soft_reset()

    # --- commands

    def _identify(self) -> None:
        self._in_packet = False
        self._blocks = 0
        self._chunk_end = 512
        self.offer(identify_packet_device(self.transfer_mode, self._serial))

    def _refuse_as_packet_device(self) -> None:
        self.task_file.sign(self.SIGNATURE)
        self.abort()

    def _check_power(self) -> None:
        self.task_file.last[COUNT] = 0xFF
        self.complete()

    def _begin_packet(self) -> None:
        self._dma = bool(self.task_file.features & _DMA)
        self._limit = self.task_file.last[HIGH] << 8 | self.task_file.last[MID]
        self._blocks = 0
        self.task_file.last[COUNT] = REASON.COD
        self.demand(PACKET_BYTES, interrupt=False)

    def filled(self) -> None:
        """The packet is there."""
        answer = self.player.packet(self.buffer)
        if isinstance(answer, Sense):
            self._check()
        elif not answer:
            self._finish()
        elif not self._dma and not self._limit & ~1:
            # No data can pass in bursts of no bytes (section 8.23.5: the limit may not be zero).
            self._end()
            self.abort()
        else:
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        self.buffer = answer.data
        self._lba, self._blocks = answer.lba, answer.blocks
        self._in_packet = True
        if self._dma:
            self.await_dma()
        elif self._blocks:
            self.work()
        else:
            self._burst(0)

    def _burst(self, at: int) -> None:
        """Let the host read the buffer from ``at``, as much as it said it takes."""
        limit = self._limit & ~1
        length = min(len(self.buffer) - at, limit)
        self.task_file.last[COUNT] = REASON.IO
        self.task_file.last[MID], self.task_file.last[HIGH] = length & 0xFF, length >> 8
        self.position, self._chunk_end = at, at + length
        self.burst = self._chunk_end
        self.phase = Phase.DATA_IN
        self.status = STATUS.DRDY | STATUS.DRQ
        self.intrq = True

    def emptied(self) -> None:
        """See :class:`Drive`."""
        if not self._in_packet:
            self.complete(interrupt=False)
        elif self._chunk_end < len(self.buffer):
            self._burst(self._chunk_end)
        elif self._blocks:
            self.work()
        else:
            self._finish()

    def _end(self) -> None:
        self._in_packet = False
        self._blocks = 0
        self.task_file.last[COUNT] = REASON.COD | REASON.IO

    def _finish(self) -> None:
        self._end()
        self.complete()
        self.status = STATUS.DRDY

    def _check(self) -> None:
        """CHECK CONDITION: the sense data tells more."""
        self._end()
        key = self.player.sense.key
        self.abort(ERROR.SENSE.put(ERROR.ABRT, key))
        self.status = STATUS.DRDY | STATUS.ERR

    # --- the medium

    def _require_medium(self) -> BlockBackend:
        if self._medium is None:
            raise OSError("no medium")
        return self._medium

    def job(self) -> Job:
        """See :class:`Drive`."""
        blocks = min(self._blocks, _PIECE_BLOCKS)
        return partial(read_bytes, self._require_medium(), self._lba * BLOCK, blocks * BLOCK)

    def worked(self, data: bytes) -> None:
        """See :class:`Drive`."""
        done = min(self._blocks, _PIECE_BLOCKS)
        self._lba += done
        self._blocks -= done
        self.buffer = data
        self._burst(0)

    def failed(self, error: OSError) -> None:
        """See :class:`Drive`."""
        self.player.sense.unreadable()
        self._check()

    def transfer(self) -> Transfer:
        """See :class:`Drive`."""
        if self._blocks:
            return FromMedium(self._require_medium(), self._lba * BLOCK, self._blocks * BLOCK)
        return FromMemory(self.buffer)

    def transferred(self, moved: int, *, complete: bool) -> None:
        """See :class:`Drive`."""
        self._finish()
        self.intrq = complete

    def transfer_failed(self, moved: int) -> None:
        """See :class:`Drive`."""
        self.player.sense.unreadable()
        self._check()
