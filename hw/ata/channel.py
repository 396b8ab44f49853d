# SPDX-License-Identifier: GPL-2.0-or-later
"""One channel of an IDE controller: two drives, their task files, the interrupt, half of a bus master.

Reference: ATA/ATAPI-6, section 9 (protocols); Intel 82371SB (PIIX3) datasheet, section 2.7; Programming
Interface for Bus Master IDE Controller, revision 1.0.

Offsets: 0-7 command block, 8 device control (written) and alternate status (read), 16-23 bus master.

**Order.** The channel's own thread does the work on the medium and the DMA without the lock. It takes the
lock to say so, and changes, in this order: the data in RAM or in the buffer (before the lock), the bus
master's status, the drive's status, and last the interrupt line. So at the moment when the line rises, every
register that any vCPU can read has its final value.

**Stopping** a transfer, by the bus master's start bit or by a reset, waits for the piece that is being moved:
afterwards nothing of it touches the guest's memory any more.
"""

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from coremesh.hw.ata.drive import Drive, Phase
from coremesh.hw.ata.prd import Outcome, move
from coremesh.hw.ata.registers import BMICOM, BMIDTP, BMISTA, CONTROL, DEVICE, STATUS, Command
from coremesh.hw.ata.task_file import HEAD
from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.memory import GuestMemory

logger = logging.getLogger(__name__)

DATA: Final = 0
RECEIVED_MASTER_ABORT: Final = 1 << 13
DRIVES: Final = 2


class IdeChannel(Device):
    """A channel with up to two ``drives``, device 0 first; None where there is none."""

    REGISTERS = (CONTROL, BMICOM, BMISTA, BMIDTP)
    STATE = ("_selected", "_drives")
    widths = (1, 2, 4)
    control: int
    bmicom: int
    bmista: int
    bmidtp: int

    def __init__(
        self,
        clock: Clock,
        irq: IrqLine,
        memory: GuestMemory,
        drives: Sequence[Drive | None],
        name: str,
    ) -> None:
        """``memory`` is where the bus master goes."""
        super().__init__(name)
        self._now = clock.now
        self._irq = irq
        self.lines.append(irq)
        self._memory = memory
        self._places: tuple[Drive | None, ...] = (*drives, None, None)[:DRIVES]
        self._drives = [drive for drive in self._places if drive is not None]
        # The worker: an alarm that is due at once. While it moves data it does not hold the lock.
        self._worker = clock.alarm(name, self.lock, self._work)
        self.alarms.append(self._worker)
        self._idle = threading.Condition(self.lock)
        self._moving = False
        #: Whether the bus master may use the bus: the command register of the function that this is part of.
        self.may_master: Callable[[], bool] = lambda: True
        #: Told the bits of the PCI status register when the bus master found no RAM.
        self.on_bus_error: Callable[[int], None] = lambda status: None
        # Counted under the lock.
        self.commands = self.bytes_moved = self.busy_ns = 0
        self.reset()

    def reset(self) -> None:
        """RESET-: to the drives as well."""
        self._settle()
        super().reset()
        self._selected = 0
        for drive in self._drives:
            drive.hard_reset()
        self._update()

    def resume(self) -> None:
        """A drive may have been saved in the middle of its work."""
        self._go_on()

    def counts(self) -> dict[str, int]:
        """Also commands, bytes that the bus master or the medium moved, and the time that took, ns."""
        own = {"commands": self.commands, "bytes_moved": self.bytes_moved, "busy_ns": self.busy_ns}
        return {**super().counts(), **own}

    def recheck(self) -> None:
        """What :attr:`may_master` says has changed. Takes the lock; any thread but the worker's."""
        with self.lock:
            self._settle()
            self._go_on()

    # --- accesses

    @property
    def _drive(self) -> Drive | None:
        """The selected drive."""
        return self._places[self._selected]

    def read(self, offset: int, size: int) -> int:
        """See the offsets above."""
        if offset >= BMICOM.offset:
            return self._read_bus_master(offset, size)
        drive = self._drive
        if offset == DATA:
            value = drive.read_data(size) if drive else (1 << 8 * size) - 1
            self._go_on()
            return value
        if size > 1:  # the command block has single bytes behind its data port
            return (1 << 8 * size) - 1
        if offset == STATUS.offset and drive:
            drive.intrq = False
            self._update()
        return self._read_task_file(offset)

    def _read_task_file(self, offset: int) -> int:
        drive = self._drive
        if drive is None:
            # Device 0 answers for a device 1 that is not there: with a status of zero (section 9.16.1).
            master = self._places[0]
            if master is None or offset in (STATUS.offset, CONTROL.offset, 1):
                return 0
            drive = master
        if offset in (STATUS.offset, CONTROL.offset):
            return STATUS.BSY if self.control & CONTROL.SRST else drive.status
        if offset == 1:
            return drive.error
        if offset == HEAD:
            return DEVICE.OBSOLETE | drive.task_file.last[HEAD]
        return drive.task_file.read(offset, previous=bool(self.control & CONTROL.HOB))

    def write(self, offset: int, size: int, value: int) -> None:
        """See the offsets above."""
        if offset >= BMICOM.offset:
            self._write_bus_master(offset, size, value)
        elif offset == DATA:
            if self._drive:
                self._drive.write_data(size, value)
        elif offset == CONTROL.offset:
            self._write_control(value)
        elif size == 1:
            self.control &= ~CONTROL.HOB
            self._write_task_file(offset, value)
        self._go_on()

    def _write_control(self, value: int) -> None:
        before, self.control = self.control, value & CONTROL.writable
        if value & CONTROL.SRST and not before & CONTROL.SRST:
            self._settle()
        if before & CONTROL.SRST and not value & CONTROL.SRST:
            self._selected = 0
            for drive in self._drives:
                drive.task_file.last[HEAD] = 0
                drive.soft_reset()

    def _write_task_file(self, offset: int, value: int) -> None:
        if self.control & CONTROL.SRST:
            return
        drive = self._drive
        if offset == STATUS.offset:
            self._execute(drive, value)
            return
        # A drive that is at work does not look at its registers (section 9.2).
        if any(d.status & (STATUS.BSY | STATUS.DRQ) for d in self._drives):
            return
        for d in self._drives:
            d.task_file.write(offset, value)
        if offset == HEAD:
            self._selected = int(bool(value & DEVICE.DEV))

    def _execute(self, drive: Drive | None, command: int) -> None:
        if command == Command.EXECUTE_DEVICE_DIAGNOSTIC:
            if not any(d.status & (STATUS.BSY | STATUS.DRQ) for d in self._drives):
                self._diagnose()
            return
        if drive is None:
            return
        if command == Command.DEVICE_RESET and drive.IS_PACKET_DEVICE:
            # The one command that a drive takes at any time.
            self._settle()
            drive.soft_reset()
            return
        if not any(d.status & (STATUS.BSY | STATUS.DRQ) for d in self._drives):
            self.commands += 1
            drive.execute(command)

    def _diagnose(self) -> None:
        """Both devices test themselves; device 0 reports (section 8.11)."""
        self._selected = 0
        for drive in self._drives:
            drive.task_file.last[HEAD] = 0
            drive.soft_reset()
        if master := self._places[0]:
            master.intrq = True

    # --- the bus master

    def _read_bus_master(self, offset: int, size: int) -> int:
        value = (
            self.bmicom
            | self.bmista << 8 * (BMISTA.offset - BMICOM.offset)
            | self.bmidtp << 8 * (BMIDTP.offset - BMICOM.offset)
        )
        return value >> 8 * (offset - BMICOM.offset) & (1 << 8 * size) - 1

    def _write_bus_master(self, offset: int, size: int, value: int) -> None:
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            if at == BMICOM.offset:
                self._write_command(byte)
            elif at == BMISTA.offset:
                kept = self.bmista & ~(byte & BMISTA.CLEARED) & ~BMISTA.writable
                self.bmista = kept | byte & BMISTA.writable
            elif at >= BMIDTP.offset:
                shift = 8 * (at - BMIDTP.offset)
                self.bmidtp = (self.bmidtp & ~(0xFF << shift) | byte << shift) & BMIDTP.writable

    def _write_command(self, value: int) -> None:
        started = self.bmicom & BMICOM.SSBM
        self.bmicom = value & BMICOM.writable
        if value & BMICOM.SSBM and not started:
            self.bmista |= BMISTA.BMIDEA
        elif started and not value & BMICOM.SSBM:
            self._settle()
            self.bmista &= ~BMISTA.BMIDEA

    # --- work

    def _settle(self) -> None:
        """Wait, with the lock given away, until nothing is being moved."""
        while self._moving:
            self._idle.wait()

    def _ready(self) -> Drive | None:
        """The drive for which the worker can do something."""
        if self.control & CONTROL.SRST:
            return None
        for drive in self._drives:
            if drive.phase == Phase.WORK:
                return drive
            # A bus master that is not allowed to use the bus waits, and so does the drive.
            if drive.phase == Phase.DMA and self.bmista & BMISTA.BMIDEA and self.may_master():
                return drive
        return None

    def _go_on(self) -> None:
        """After every access: wake the worker if it has something to do, and drive the line."""
        if not self._moving and self._ready() is not None:
            self._worker.arm(self._now())
        self._update()

    def _work(self) -> None:
        """On the worker's thread, the lock held at both ends."""
        while not self._moving and (drive := self._ready()) is not None:
            begin = self._now()
            self._moving = True
            try:
                if drive.phase == Phase.WORK:
                    self._work_on_medium(drive)
                else:
                    self._work_on_dma(drive)
            finally:
                self._moving = False
                self.busy_ns += self._now() - begin
                self._idle.notify_all()
            self._update()

    def _work_on_medium(self, drive: Drive) -> None:
        job = drive.job()
        failure: OSError | None = None
        data = b""
        self.lock.release()
        try:
            data = job()
        except OSError as error:
            failure = error
        except Exception as error:  # a mistake of ours: to the guest it is a drive that fails
            logger.exception("%s: a command's work failed", self.name)
            failure = OSError(errno.EIO, str(error))
            self.faults += 1
        finally:
            self.lock.acquire()
        if failure is not None:
            drive.failed(failure)
        else:
            self.bytes_moved += len(data)
            drive.worked(data)

    def _work_on_dma(self, drive: Drive) -> None:
        transfer, table = drive.transfer(), self.bmidtp
        self.lock.release()
        try:
            outcome = move(transfer, self._memory, table)
        except Exception as error:  # as above
            logger.exception("%s: a transfer failed", self.name)
            outcome = Outcome(medium_error=OSError(errno.EIO, str(error)))
            self.faults += 1
        finally:
            self.lock.acquire()
        self.bytes_moved += outcome.moved
        self._report(drive, outcome)

    def _report(self, drive: Drive, outcome: Outcome) -> None:
        """Bus master first, drive second; the line follows in :meth:`_update`."""
        if outcome.bus_error:
            self.bmista |= BMISTA.ERROR
            self.on_bus_error(RECEIVED_MASTER_ABORT)
        if not outcome.complete or outcome.table_ended:
            # Active stays set where the table has more than the drive took: only software ends that.
            self.bmista &= ~BMISTA.BMIDEA
        if outcome.medium_error is not None:
            drive.transfer_failed(outcome.moved)
        else:
            drive.transferred(outcome.moved, complete=outcome.complete)

    def _update(self) -> None:
        """The interrupt line, last of all: everything else has its final value by now."""
        drive = self._drive
        level = bool(drive and drive.intrq and not self.control & (CONTROL.NIEN | CONTROL.SRST))
        if level and not self._irq.level:
            self.bmista |= BMISTA.IDEINTS
        self._irq.set(level)
