# SPDX-License-Identifier: GPL-2.0-or-later
"""8259A programmable interrupt controllers: the PC's pair, with the edge/level registers of the PIIX.

Reference: Intel 8259A datasheet; edge/level control (ELCR): Intel 82371SB (PIIX3) datasheet.

Offsets: 0-1 the master (IRQ 0-7), 2-3 the slave (IRQ 8-15, on the master's IR2), 4-5 their edge/level
registers. The pair is one device with one lock, because the cascade is combinational.
"""

from collections.abc import Callable
from functools import partial

from coremesh.hw.device import Device
from coremesh.hw.registers import Bit, Bits, Register
from coremesh.hw.state import Stateful

CASCADE = 2
SPURIOUS = 7


class ICW1(Register):
    """Initialization command word 1: starts the sequence."""

    IC4 = Bit(0)  # ICW4 follows
    SNGL = Bit(1)  # single: no ICW3
    LTIM = Bit(3)  # level triggered; the PIIX ignores it in favour of ELCR
    START = Bit(4)


class ICW2(Register):
    """Vector base: the upper five bits of the vector."""

    T = Bits(7, 3)


class ICW4(Register):
    """Modes."""

    UPM = Bit(0)  # 8086 mode
    AEOI = Bit(1)  # automatic end of interrupt
    MS = Bit(2)
    BUF = Bit(3)
    SFNM = Bit(4)  # special fully nested mode


class OCW2(Register):
    """End of interrupt and rotation."""

    L = Bits(2, 0)
    COMMAND = Bits(7, 5)


class OCW3(Register):
    """Which register reads see, poll, special mask mode."""

    RIS = Bit(0)
    RR = Bit(1)
    P = Bit(2)
    SELECT = Bit(3)  # marks an OCW3
    SMM = Bit(5)
    ESMM = Bit(6)


class Chip8259A(Stateful):
    """One 8259A. ``output`` is the INT pin as it should be now. No lock: the pair has it."""

    STATE = (
        "lines",
        "elcr",
        "irr",
        "isr",
        "imr",
        "base",
        "lowest",
        "icw4",
        "special_mask",
        "rotate_on_aeoi",
        "poll",
        "read_isr",
        "_expected",
        "_icw1",
    )

    def __init__(self, edge_only: int) -> None:
        self._edge_only = edge_only  # inputs that the PIIX wires as edges for ever
        self.lines = 0
        self.elcr = 0
        self.reset()

    def reset(self) -> None:
        """Nothing requested, IR0 first. All is masked, as firmware leaves it until ICW1 opens the mask."""
        self.irr = self.isr = 0
        self.imr = 0xFF
        self.base = 0
        self.lowest = 7  # the input with the lowest priority; the one after it has the highest
        self.icw4 = 0
        self.special_mask = self.rotate_on_aeoi = self.poll = self.read_isr = False
        self._expected = 0  # the ICW that the next write to A0=1 is: 2, 3 or 4; 0 in operation
        self._icw1 = 0
        self.elcr = 0

    def set_line(self, number: int, level: bool) -> None:
        """An IR input changes.

        An edge is latched; a request whose line falls again before INTA is withdrawn.
        """
        bit = 1 << number
        if level:
            if not self.lines & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            self.irr &= ~bit

    def _rank(self, bits: int) -> int:
        """Priority of the first of ``bits``: 0 is the highest, 8 when there is none."""
        turned = (bits << 8 | bits) >> (self.lowest + 1) & 0xFF
        return (turned & -turned).bit_length() - 1 if turned else 8

    def pending(self) -> int | None:
        """The input that INTA would serve, None when the INT pin is low."""
        request = self.irr & ~self.imr
        if not request:
            return None
        rank = self._rank(request)
        serving = self.isr
        if self.special_mask:
            serving &= ~self.imr  # masked levels in service no longer hold back lower ones
        limit = self._rank(serving)
        number = (rank + self.lowest + 1) & 7
        if rank < limit:
            return number
        if rank == limit and self.icw4 & ICW4.SFNM and number == CASCADE:
            return number  # the slave may interrupt again while it is served
        return None

    def take(self, number: int) -> None:
        """INTA: the request becomes a service. A level request stays as long as its line is high."""
        bit = 1 << number
        if not (self.elcr & bit and self.lines & bit):
            self.irr &= ~bit
        if self.icw4 & ICW4.AEOI:
            if self.rotate_on_aeoi:
                self.lowest = number
        else:
            self.isr |= bit

    def read(self, data: bool) -> int:
        """A0=1: the mask. A0=0: IRR or ISR. After a poll command either gives the poll byte, once."""
        if self.poll:
            self.poll = False
            number = self.pending()
            if number is None:
                return 0
            self.take(number)
            return 0x80 | number
        if data:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write_command(self, value: int) -> None:
        """A0=0: ICW1, OCW2 or OCW3."""
        if value & ICW1.START:
            elcr = self.elcr
            self.reset()
            # The edge sense circuit is reset: an input must go low and high again; a level input requests
            # as it is.
            self.elcr = elcr
            self.irr = self.lines & elcr
            self.imr = 0
            self._icw1 = value
            self._expected = 2
        elif value & OCW3.SELECT:
            if value & OCW3.ESMM:
                self.special_mask = bool(value & OCW3.SMM)
            if value & OCW3.P:
                self.poll = True
            elif value & OCW3.RR:
                self.read_isr = bool(value & OCW3.RIS)
        else:
            self._end_or_rotate(OCW2.COMMAND.of(value), OCW2.L.of(value))

    def _end_or_rotate(self, command: int, level: int) -> None:
        if command in (1, 5):  # non-specific EOI, with rotation for 5
            serving = self.isr & ~self.imr if self.special_mask else self.isr
            rank = self._rank(serving)
            if rank < 8:
                level = (rank + self.lowest + 1) & 7
                self.isr &= ~(1 << level)
                if command == 5:
                    self.lowest = level
        elif command in (3, 7):  # specific EOI, with rotation for 7
            self.isr &= ~(1 << level)
            if command == 7:
                self.lowest = level
        elif command == 6:  # set priority
            self.lowest = level
        elif command in (0, 4):  # rotate in automatic EOI mode: clear, set
            self.rotate_on_aeoi = command == 4

    def write_data(self, value: int) -> None:
        """A0=1: the awaited ICW, else OCW1, the mask."""
        if self._expected == 2:
            self.base = value & ICW2.T.mask
            self._expected = 4 if self._icw1 & ICW1.SNGL else 3
            self._skip_icw4()
        elif self._expected == 3:
            self._expected = 4  # the cascade is wired: master IR2, slave id 2
            self._skip_icw4()
        elif self._expected == 4:
            self.icw4 = value
            self._expected = 0
        else:
            self.imr = value

    def _skip_icw4(self) -> None:
        if self._expected == 4 and not self._icw1 & ICW1.IC4:
            self._expected = 0

    def write_elcr(self, value: int) -> None:
        """Choose level (1) or edge (0) by input."""
        changed = self.elcr
        self.elcr = value & ~self._edge_only
        self.irr |= self.lines & self.elcr & ~changed


class Pic8259A(Device):
    """The master and slave pair.

    Its INTR goes to ``intr`` with the lock held, in the order of the changes.
    """

    STATE = ("intr", "master", "slave")

    def __init__(self, *intr: Callable[[bool], None], name: str = "pic") -> None:
        super().__init__(name)
        self._intr_inputs = intr
        self.intr = False
        self.master = Chip8259A(edge_only=0b0000_0111)  # timer, keyboard, cascade
        self.slave = Chip8259A(edge_only=0b0010_0001)  # RTC, coprocessor

    def irq(self, number: int) -> Callable[[bool], None]:
        """Input ``number`` (0-15 without 2): a function of the line's level."""
        return partial(self._set_irq, number)

    def _set_irq(self, number: int, level: bool) -> None:
        self.acquire()
        try:
            (self.slave if number & 8 else self.master).set_line(number & 7, level)
            self._settle()
        finally:
            self.lock.release()

    def _settle(self) -> None:
        """Let the slave's INT reach the master and the master's INT leave the pair."""
        cascade = self.slave.pending() is not None
        if cascade != bool(self.master.lines & 1 << CASCADE):
            self.master.set_line(CASCADE, cascade)
        intr = self.master.pending() is not None
        if intr is not self.intr:
            self.intr = intr
            for pin in self._intr_inputs:
                pin(intr)

    def acknowledge(self) -> int:
        """The INTA cycle: the vector. With no request left it is the spurious IR7. Any vCPU thread."""
        self.acquire()
        try:
            vector = self._interrupt_acknowledge()
            self._settle()
            return vector
        finally:
            self.lock.release()

    def _interrupt_acknowledge(self) -> int:
        number = self.master.pending()
        if number is None:
            return self.master.base + SPURIOUS
        self.master.take(number)
        if number != CASCADE:
            return self.master.base + number
        below = self.slave.pending()
        if below is None:
            return self.slave.base + SPURIOUS  # the master has IR2 in service and is owed an EOI
        self.slave.take(below)
        # The slave drops INT between two interrupts: the next request is a new edge for the master.
        self.master.set_line(CASCADE, False)
        return self.slave.base + below

    def read(self, offset: int, size: int) -> int:
        """See the module's offsets."""
        if offset >= 4:
            return (self.slave if offset & 1 else self.master).elcr
        value = (self.slave if offset & 2 else self.master).read(bool(offset & 1))
        self._settle()  # a poll is an acknowledge
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """See the module's offsets."""
        if offset >= 4:
            (self.slave if offset & 1 else self.master).write_elcr(value)
        else:
            chip = self.slave if offset & 2 else self.master
            if offset & 1:
                chip.write_data(value)
            else:
                chip.write_command(value)
        self._settle()

    def reset(self) -> None:
        """Both chips."""
        self.master.reset()
        self.slave.reset()
        self._settle()

    def show(self) -> dict[str, dict[str, int]]:
        """The three registers of each chip."""
        with self.lock:
            return {
                name: {
                    "IRR": chip.irr,
                    "ISR": chip.isr,
                    "IMR": chip.imr,
                    "ELCR": chip.elcr,
                    "ICW2": chip.base,
                }
                for name, chip in (("master", self.master), ("slave", self.slave))
            }
