# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk and a CD-ROM drive have in common: phases, the data buffer, the interrupt request.

A drive is a state machine without threads and locks: the channel calls it with its lock held, and learns from
``phase`` what is to be done. Two things are done without the lock, by objects that take what they need with
them: a :data:`Job` on the medium, and the medium's end of a DMA transfer, a :class:`Transfer`.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar

from coremesh.hw.ata.registers import ERROR, STATUS, Command
from coremesh.hw.ata.task_file import COUNT, TaskFile
from coremesh.hw.backend.block import BlockBackend
from coremesh.hw.state import Stateful


class Phase(IntEnum):
    """What a drive waits for."""

    IDLE = 0  # a command
    DATA_IN = 1  # the host to read the buffer at the data port
    DATA_OUT = 2  # the host to write it
    WORK = 3  # the medium
    DMA = 4  # the bus master


Job = Callable[[], bytes]
"""Work on the medium; what it returns goes to :meth:`Drive.worked`. It may raise OSError."""


def read_bytes(medium: BlockBackend, offset: int, length: int) -> bytes:
    """``length`` bytes of the medium. Raises OSError."""
    data = bytearray(length)
    medium.read(offset, [data])
    return bytes(data)


class Transfer:
    """The drive's end of one DMA transfer of ``length`` bytes. It is used without the channel's lock."""

    def __init__(self, length: int, *, to_memory: bool) -> None:
        self.length = length
        self.to_memory = to_memory

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes for the guest's memory. May raise OSError."""
        raise NotImplementedError

    def give(self, data: bytes) -> None:
        """The next bytes from the guest's memory. May raise OSError."""
        raise NotImplementedError

    def end(self) -> None:
        """All that will be given was given. May raise OSError."""


class FromMemory(Transfer):
    """An answer that the drive has in its buffer."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data), to_memory=True)
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """See :class:`Transfer`."""
        data = self._data[self._at : self._at + length]
        self._at += len(data)
        return data


class FromMedium(Transfer):
    """Bytes of the medium, read as the bus master takes them."""

    def __init__(self, medium: BlockBackend, offset: int, length: int) -> None:
        super().__init__(length, to_memory=True)
        self._medium = medium
        self._offset = offset

    def take(self, length: int) -> bytes:
        """See :class:`Transfer`."""
        data = read_bytes(self._medium, self._offset, length)
        self._offset += length
        return data


class Drive(Stateful):
    """Base of drives. ``commands`` are the codes that this kind of drive knows: all others are aborted."""

    SIGNATURE: ClassVar[tuple[int, int, int, int]]
    READY: ClassVar[int]
    """The status after a reset."""
    IS_PACKET_DEVICE: ClassVar[bool] = False

    STATE: ClassVar[tuple[str, ...]] = (
        "task_file", "status", "error", "intrq", "phase", "command",
        "buffer", "position", "burst", "transfer_mode",
    )  # fmt: skip

    def __init__(self) -> None:
        self.task_file = TaskFile()
        self.commands: dict[int, Callable[[], None]] = {}
        self.hard_reset()

    # --- resets

    def hard_reset(self) -> None:
        """The RESET- pin: what software set goes, too."""
        self.transfer_mode = 0
        self.soft_reset()

    def soft_reset(self) -> None:
        """SRST, DEVICE RESET, or the diagnostic: any command ends, and the registers say what this is."""
        self.intrq = False
        self.phase = int(Phase.IDLE)
        self.command = 0
        self.buffer = b""
        self.position = self.burst = 0
        self.status = self.READY
        self.error = 0x01  # the diagnostic code: passed
        self.task_file.sign(self.SIGNATURE)

    # --- the channel's side; its lock is held

    def execute(self, command: int) -> None:
        """The host wrote the command register."""
        self.command = command
        self.intrq = False
        self.error = 0
        self.status = STATUS.DRDY | STATUS.DSC
        self.phase = Phase.IDLE
        self.commands.get(command, self.abort)()

    def job(self) -> Job:
        """In phase WORK: what is to be done on the medium."""
        raise NotImplementedError

    def worked(self, data: bytes) -> None:
        """The job has been done."""
        raise NotImplementedError

    def failed(self, error: OSError) -> None:
        """The job failed."""
        raise NotImplementedError

    def transfer(self) -> Transfer:
        """In phase DMA: the drive's end of the transfer."""
        raise NotImplementedError

    def transferred(self, moved: int, *, complete: bool) -> None:
        """The bus master has moved ``moved`` bytes; ``complete`` if that was all of them.

        Otherwise the memory that the guest gave it was too small or no RAM, and the host hears nothing: it
        learns that from the bus master's status.
        """
        raise NotImplementedError

    def transfer_failed(self, moved: int) -> None:
        """The medium failed after ``moved`` bytes."""
        raise NotImplementedError

    def emptied(self) -> None:
        """The host has read a burst at the data port."""
        raise NotImplementedError

    def filled(self) -> None:
        """The host has written a burst at the data port."""
        raise NotImplementedError

    def read_data(self, size: int) -> int:
        """The data port is read. Without data it gives all ones, as an undriven bus does."""
        if self.phase != Phase.DATA_IN:
            return (1 << 8 * size) - 1
        end = min(self.position + size, self.burst)
        value = int.from_bytes(self.buffer[self.position : end], "little")
        self.position = end
        if end == self.burst:
            self.emptied()
        return value

    def write_data(self, size: int, value: int) -> None:
        """The data port is written. What no command asked for is lost."""
        if self.phase != Phase.DATA_OUT:
            return
        # A burst has some KiB at most: to append costs little, and the buffer stays plain data to be saved.
        self.buffer += value.to_bytes(size, "little")[: self.burst - self.position]
        self.position = len(self.buffer)
        if self.position == self.burst:
            self.filled()

    # --- what commands end in

    def offer(self, data: bytes) -> None:
        """Data for the host to read at the data port; all of it is one burst."""
        self.buffer = data
        self.position, self.burst = 0, len(data)
        self.phase = Phase.DATA_IN
        self.status = STATUS.DRDY | STATUS.DSC | STATUS.DRQ
        self.intrq = True

    def demand(self, length: int, *, interrupt: bool) -> None:
        """The host is to write ``length`` bytes at the data port."""
        self.buffer = b""
        self.position, self.burst = 0, length
        self.phase = Phase.DATA_OUT
        self.status = STATUS.DRDY | STATUS.DSC | STATUS.DRQ
        self.intrq = interrupt

    def work(self) -> None:
        """The medium's turn: busy until the job is done."""
        self.phase = Phase.WORK
        self.status = STATUS.BSY | STATUS.DSC

    def await_dma(self) -> None:
        """The bus master's turn: DMARQ is asserted."""
        self.phase = Phase.DMA
        self.status = STATUS.DRDY | STATUS.DSC | STATUS.DRQ

    def complete(self, *, interrupt: bool = True) -> None:
        """The command is over, without error."""
        self.phase = Phase.IDLE
        self.status = STATUS.DRDY | STATUS.DSC
        self.intrq = interrupt

    def abort(self, error: int = ERROR.ABRT) -> None:
        """The command is over, with an error."""
        self.phase = Phase.IDLE
        self.error = error
        self.status = STATUS.DRDY | STATUS.DSC | STATUS.ERR
        self.intrq = True

    # --- commands of both kinds

    def set_features(self) -> None:
        """SET FEATURES (ATA/ATAPI-6, section 8.46): the transfer mode; a disk has more."""
        if self.task_file.features != 0x03:
            self.abort()
            return
        mode = self.task_file.last[COUNT]
        # PIO default and flow control modes, multiword DMA, Ultra DMA: as far as the identification has them.
        if mode <= 0x01 or 0x08 <= mode <= 0x0C:
            self.transfer_mode = 0
        elif 0x20 <= mode <= 0x22 or 0x40 <= mode <= 0x45:
            self.transfer_mode = mode
        else:
            self.abort()
            return
        self.complete()

    @property
    def is_wide(self) -> bool:
        """Whether the command takes 48-bit addresses."""
        return self.command in _WIDE


_WIDE = frozenset(
    {
        Command.READ_SECTORS_EXT, Command.READ_DMA_EXT, Command.READ_NATIVE_MAX_EXT,
        Command.READ_MULTIPLE_EXT, Command.WRITE_SECTORS_EXT, Command.WRITE_DMA_EXT,
        Command.WRITE_MULTIPLE_EXT,
        Command.WRITE_DMA_FUA_EXT, Command.WRITE_MULTIPLE_FUA_EXT, Command.READ_VERIFY_EXT,
        Command.FLUSH_CACHE_EXT, Command.DATA_SET_MANAGEMENT,
    }
)  # fmt: skip
