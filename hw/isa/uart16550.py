# SPDX-License-Identifier: GPL-2.0-or-later
"""16550A universal asynchronous receiver/transmitter with FIFOs.

Reference: National Semiconductor PC16550D datasheet, section 8. Offsets 0-7.

Transmission takes no time: THR and the shift register are empty again when the write ends, and the THRE
interrupt comes at once. Reception is paced: what a person pastes arrives no faster than the divisor says,
and only when there is room, so that a guest loses nothing. The pipe carries octets whatever the word length
says: early code often prints before it programs LCR, and means eight bits.
"""

from collections import deque

from coremesh.hw.backend.console import ConsoleLine
from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.registers import Bit, Bits, Register

FIFO_BYTES = 16
CLOCK_HZ = 1_843_200


class RBR(Register):
    """Receiver buffer (read) and transmitter holding register (write), DLAB = 0."""

    offset = 0


class IER(Register):
    """Interrupt enable, DLAB = 0."""

    offset = 1
    writable = 0x0F
    ERBFI = Bit(0)  # received data available, and the time-out
    ETBEI = Bit(1)  # transmitter holding register empty
    ELSI = Bit(2)  # receiver line status
    EDSSI = Bit(3)  # modem status


class IIR(Register):
    """Interrupt identification (read)."""

    offset = 2
    NONE = 0x01
    MODEM_STATUS = 0x00
    THR_EMPTY = 0x02
    DATA_AVAILABLE = 0x04
    LINE_STATUS = 0x06
    TIMEOUT = 0x0C
    FIFOS = Bits(7, 6)


class FCR(Register):
    """FIFO control (write)."""

    offset = 2
    writable = 0xC9
    FIFO_ENABLE = Bit(0)
    RCVR_RESET = Bit(1)
    XMIT_RESET = Bit(2)
    DMA_MODE = Bit(3)
    TRIGGER = Bits(7, 6)
    LEVELS = (1, 4, 8, 14)


class LCR(Register):
    """Line control."""

    offset = 3
    WLS = Bits(1, 0)  # 5 + WLS bits
    STB = Bit(2)
    PEN = Bit(3)
    EPS = Bit(4)
    STICK = Bit(5)
    BREAK = Bit(6)
    DLAB = Bit(7)  # offsets 0 and 1 are the divisor


class MCR(Register):
    """Modem control."""

    offset = 4
    writable = 0x1F
    DTR = Bit(0)
    RTS = Bit(1)
    OUT1 = Bit(2)
    OUT2 = Bit(3)  # on a PC: lets the interrupt out
    LOOP = Bit(4)


class LSR(Register):
    """Line status."""

    offset = 5
    reset = 0x60
    DR = Bit(0)
    OE = Bit(1)
    PE = Bit(2)
    FE = Bit(3)
    BI = Bit(4)
    THRE = Bit(5)
    TEMT = Bit(6)
    ERRORS = Bits(4, 1)


class MSR(Register):
    """Modem status. The lower half tells what changed since the last read."""

    offset = 6
    DCTS = Bit(0)
    DDSR = Bit(1)
    TERI = Bit(2)  # trailing edge of RI
    DDCD = Bit(3)
    CTS = Bit(4)
    DSR = Bit(5)
    RI = Bit(6)
    DCD = Bit(7)


class SCR(Register):
    """Scratch: holds what is written, for whatever purpose."""

    offset = 7


OCTETS = tuple(bytes([value]) for value in range(256))
CONNECTED = MSR.CTS | MSR.DSR | MSR.DCD  # a terminal is at the other end


class Uart16550A(Device):
    """One port, its other end a :class:`ConsoleLine`."""

    REGISTERS = (IER, FCR, LCR, MCR, LSR, MSR, SCR)
    STATE = ("divisor", "_received", "_thre_pending", "_line_free", "_timeout_at", "_shifted_at")
    ier: int
    fcr: int
    lcr: int
    mcr: int
    lsr: int
    msr: int
    scr: int

    def __init__(self, clock: Clock, irq: IrqLine, console: ConsoleLine, name: str = "uart") -> None:
        super().__init__(name)
        self._now = clock.now
        self._irq = irq
        self.lines.append(irq)
        self._console = console
        self._transmit = console.transmit
        self._alarm = clock.alarm(name, self.lock, self._expire)
        self.alarms.append(self._alarm)
        self._line_free = 0  # when the next character can arrive
        self._timeout_at = 0  # when the receiver FIFO will have been left alone for four characters
        self._shifted_at = 0  # when the last character sent would have left a real shift register
        self.divisor = 1
        # By offset.
        self._reads = (
            self._read_data,
            self._read_ier,
            self._read_iir,
            self._read_lcr,
            self._read_mcr,
            self._read_lsr,
            self._read_msr,
            self._read_scr,
        )
        self._writes = (
            self._write_data,
            self._write_ier,
            self._write_fcr,
            self._write_lcr,
            self._write_mcr,
            self._ignore,
            self._ignore,
            self._write_scr,
        )
        self.reset()
        console.attach(self._typed)

    def reset(self) -> None:
        """Master reset (datasheet, table I)."""
        super().reset()
        self.msr = CONNECTED
        self._received: deque[int] = deque()
        self._thre_pending = False
        self._update_irq()

    def resume(self) -> None:
        """The receiver goes on with what the person has typed meanwhile."""
        self._receive()
        self._await()

    # --- interrupt

    def _pending(self) -> int:
        """The identification of the source with the highest priority (datasheet, table IV)."""
        ier = self.ier
        if ier & IER.ELSI and self.lsr & LSR.ERRORS.mask:
            return IIR.LINE_STATUS
        if ier & IER.ERBFI and self._received:
            source = self._receiver_source()
            if source != IIR.NONE:
                return source
        if ier & IER.ETBEI and self._thre_pending:
            return IIR.THR_EMPTY
        if ier & IER.EDSSI and self.msr & 0x0F:
            return IIR.MODEM_STATUS
        return IIR.NONE

    def _receiver_source(self) -> int:
        if not self.fcr & FCR.FIFO_ENABLE or len(self._received) >= FCR.LEVELS[self.fcr >> 6]:
            return IIR.DATA_AVAILABLE
        return IIR.TIMEOUT if self._now() >= self._timeout_at else IIR.NONE

    def _update_irq(self) -> None:
        mcr = self.mcr
        # OUT2 gates the interrupt on a PC; in loopback the OUT2 pin is inactive (datasheet, 8.7).
        self._irq.set(mcr & (MCR.OUT2 | MCR.LOOP) == MCR.OUT2 and self._pending() != IIR.NONE)

    # --- the line

    def _typed(self) -> None:
        """The person has typed. Any thread, no lock held."""
        with self.lock:
            self._receive()

    def _expire(self) -> None:
        """A character has arrived, or the receiver has been left alone for too long."""
        self._receive()
        self._update_irq()
        self._await()

    def _receive(self) -> None:
        """Fill the receiver with what has arrived by now."""
        if self.mcr & MCR.LOOP or not self._console.input_left:
            return
        now = self._now()
        if now >= self._line_free:
            data = self._console.take(self._room())
            if data:
                self._line_free = now + len(data) * self._character_ns()
                self._accept(data)
        self._await()

    def _accept(self, data: bytes) -> None:
        self._received.extend(data)
        self.lsr |= LSR.DR
        self._touch_fifo()
        self._update_irq()

    def _room(self) -> int:
        return (FIFO_BYTES if self.fcr & FCR.FIFO_ENABLE else 1) - len(self._received)

    def _touch_fifo(self) -> None:
        """A character came or went: the time-out starts again (datasheet, 8.10, FIFO interrupt mode)."""
        self._timeout_at = self._now() + 4 * self._character_ns()

    def _await(self) -> None:
        """Wake when the next character arrives or the receiver times out, if either may interrupt.

        Without room for a character the next read of RBR looks again. A deadline that has just passed is
        kept: to look at the clock here again would lose what falls between two looks.
        """
        deadlines = []
        if self._console.input_left and not self.mcr & MCR.LOOP and self._room():
            deadlines.append(self._line_free)
        if self._received and self.ier & IER.ERBFI and self._receiver_source() == IIR.NONE:
            deadlines.append(self._timeout_at)
        if deadlines:
            self._alarm.arm(min(deadlines))
        else:
            self._alarm.cancel()

    def _character_ns(self) -> int:
        bits = 1 + 5 + LCR.WLS.of(self.lcr) + bool(self.lcr & LCR.PEN) + 1 + bool(self.lcr & LCR.STB)
        return bits * 16 * (self.divisor or 1) * 1_000_000_000 // CLOCK_HZ

    def _loop_back(self, byte: int) -> None:
        """In loopback the transmitter feeds the receiver, which can overrun."""
        if self._room() > 0:
            self._accept(bytes([byte]))
        else:
            if not self.fcr & FCR.FIFO_ENABLE:
                self._received[0] = byte  # without FIFOs the old character is lost, with them the new one
            self.lsr |= LSR.OE
            self._update_irq()

    def _transmitted(self) -> None:
        """THR took a byte and is empty again: writing acknowledged the interrupt, emptiness raises the next.

        A burst into the FIFO is one interrupt, as it is when the shift register takes a character's time.
        """
        now = self._now()
        if now >= self._shifted_at:
            self._thre_pending = False
            self._update_irq()
        self._shifted_at = now + self._character_ns()
        self._thre_pending = True
        self._update_irq()

    # --- registers

    def read(self, offset: int, size: int) -> int:
        """See the register classes; RBR, IIR, LSR and MSR change by being read."""
        return self._reads[offset]()

    def write(self, offset: int, size: int, value: int) -> None:
        """See the register classes; LSR and MSR are read only."""
        self._writes[offset](value)

    def _read_data(self) -> int:
        return self.divisor & 0xFF if self.lcr & LCR.DLAB else self._read_rbr()

    def _read_ier(self) -> int:
        return self.divisor >> 8 if self.lcr & LCR.DLAB else self.ier

    def _read_rbr(self) -> int:
        if not self._received:
            return 0
        byte = self._received.popleft()
        if self._received:
            self._touch_fifo()
        else:
            self.lsr &= ~LSR.DR
        self._update_irq()
        self._receive()
        self._await()
        return byte

    def _read_iir(self) -> int:
        source = self._pending()
        if source == IIR.THR_EMPTY:
            self._thre_pending = False  # this read is its acknowledge
            self._update_irq()
        return source | (IIR.FIFOS.mask if self.fcr & FCR.FIFO_ENABLE else 0)

    def _read_msr(self) -> int:
        value = self.msr
        self.msr = value & 0xF0
        self._update_irq()
        return value

    def _read_lcr(self) -> int:
        return self.lcr

    def _read_mcr(self) -> int:
        return self.mcr

    def _read_lsr(self) -> int:
        value = self.lsr
        if value & LSR.ERRORS.mask:
            self.lsr = value & ~LSR.ERRORS.mask
            self._update_irq()
        return value

    def _read_scr(self) -> int:
        return self.scr

    def _write_data(self, value: int) -> None:
        if self.lcr & LCR.DLAB:
            self._set_divisor(self.divisor & 0xFF00 | value)
            return
        if self.mcr & MCR.LOOP:
            self._loop_back(value)
        else:
            self._transmit(OCTETS[value])
        if self.ier & IER.ETBEI:
            self._transmitted()
        else:
            self._thre_pending = False

    def _set_divisor(self, divisor: int) -> None:
        self.divisor = divisor
        self._line_free = self._shifted_at = 0  # what was timed at the old rate has passed

    def _write_lcr(self, value: int) -> None:
        self.lcr = value
        self._receive()  # perhaps at another rate

    def _write_scr(self, value: int) -> None:
        self.scr = value

    def _ignore(self, value: int) -> None:
        pass

    def _write_ier(self, value: int) -> None:
        if self.lcr & LCR.DLAB:
            self._set_divisor(self.divisor & 0x00FF | value << 8)
            return
        if value & ~self.ier & IER.ETBEI:
            self._thre_pending = True  # enabling it while THR is empty interrupts: drivers test that
        self.ier = value & IER.writable
        self._update_irq()
        self._await()

    def _write_fcr(self, value: int) -> None:
        switched = (value ^ self.fcr) & FCR.FIFO_ENABLE
        if switched or value & FCR.RCVR_RESET:
            self._received.clear()
            self.lsr &= ~LSR.DR
        if switched or value & FCR.XMIT_RESET:
            self._thre_pending = True
        # The other bits are programmed only together with FIFO_ENABLE (datasheet, 8.4).
        self.fcr = value & FCR.writable if value & FCR.FIFO_ENABLE else 0
        self._receive()
        self._update_irq()

    def _write_mcr(self, value: int) -> None:
        self.mcr = value & MCR.writable
        if value & MCR.LOOP:
            lines = MSR.CTS * bool(value & MCR.RTS) | MSR.DSR * bool(value & MCR.DTR)
            lines |= MSR.RI * bool(value & MCR.OUT1) | MSR.DCD * bool(value & MCR.OUT2)
        else:
            lines = CONNECTED
        self._set_modem_lines(lines)
        self._receive()
        self._update_irq()

    def _set_modem_lines(self, lines: int) -> None:
        changed = (self.msr ^ lines) & 0xF0
        delta = changed >> 4 & ~MSR.TERI
        if changed & MSR.RI and not lines & MSR.RI:
            delta |= MSR.TERI
        self.msr = lines | self.msr & 0x0F | delta
