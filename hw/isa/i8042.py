# SPDX-License-Identifier: GPL-2.0-or-later
"""8042 keyboard controller of a PC/AT with a keyboard: scan codes, the reset line, A20.

Reference: IBM PC/AT Technical Reference, section "Keyboard Controller". Offset 0 is the data port
(0x60), offset 4 the status and command port (0x64), as far apart as on the PC.

It has no auxiliary (mouse) port and answers the probes for one as controllers of that kind do.

No firmware runs before most guests. So the controller comes out of reset as firmware leaves it: self test
passed, keyboard enabled, interrupt on, and scan codes translated to set 1, which small kernels rely on.
"""

from collections import deque
from collections.abc import Iterable

from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.isa.ps2_keyboard import BREAK, Ps2Keyboard, set_1
from coremesh.hw.power import PowerEvent, PowerSink
from coremesh.hw.registers import Bit, Register

QUEUE = 16


class STATUS(Register):
    """Status register (offset 4, read)."""

    offset = 4
    reset = 0x14
    OBF = Bit(0)  # a byte waits at the data port
    IBF = Bit(1)  # the controller is busy: never seen, it answers at once
    SYS = Bit(2)  # self test passed
    CD = Bit(3)  # the last write went to the command port
    KEYLOCK = Bit(4)  # 1: not locked
    AUX = Bit(5)  # the byte comes from the auxiliary port
    TIMEOUT = Bit(6)
    PARITY = Bit(7)


class CTR(Register):
    """Command byte, RAM address 0."""

    reset = 0x65
    KBDINT = Bit(0)  # interrupt when OBF is set
    AUXINT = Bit(1)
    SYS = Bit(2)  # copied to the status
    INHIBIT_OVERRIDE = Bit(3)
    KBDDIS = Bit(4)  # keyboard clock held low
    AUXDIS = Bit(5)
    XLATE = Bit(6)  # scan codes of set 2 are translated to set 1


class OUTPORT(Register):
    """Output port."""

    reset = 0x03
    RESET = Bit(0)  # 0 resets the processors
    A20 = Bit(1)
    OBF_IRQ = Bit(4)
    AUX_IRQ = Bit(5)


class Command:
    """Commands (writes to offset 4)."""

    READ_RAM, WRITE_RAM = 0x20, 0x60  # 32 addresses each; address 0 is the command byte
    AUX_DISABLE, AUX_ENABLE, AUX_TEST = 0xA7, 0xA8, 0xA9
    SELF_TEST, KBD_TEST = 0xAA, 0xAB
    KBD_DISABLE, KBD_ENABLE = 0xAD, 0xAE
    READ_INPUT, READ_OUTPUT, WRITE_OUTPUT = 0xC0, 0xD0, 0xD1
    KBD_LOOP, AUX_LOOP, AUX_SEND = 0xD2, 0xD3, 0xD4
    WITH_PARAMETER = (WRITE_OUTPUT, KBD_LOOP, AUX_LOOP, AUX_SEND)
    DISABLE_A20, ENABLE_A20 = 0xDD, 0xDF
    PULSE = 0xF0  # the low nibble: output port bits that are not pulsed low


class Keyboard8042(Device):
    """The controller. IRQ 1 when a byte for the guest waits and the command byte allows it."""

    REGISTERS = (STATUS, CTR, OUTPORT)
    STATE = ("keyboard", "ram", "_awaits", "_bytes", "_data", "_released")
    status: int
    ctr: int
    outport: int

    def __init__(self, irq: IrqLine, on_power: PowerSink, name: str = "i8042") -> None:
        super().__init__(name)
        self._irq = irq
        self.lines.append(irq)
        self._on_power = on_power
        self.keyboard = Ps2Keyboard()
        self.reset()

    def reset(self) -> None:
        """Power-on, and what firmware does then."""
        super().reset()
        self.keyboard.reset()
        self.ram = bytearray(32)
        self._awaits = 0  # the command whose parameter comes next at the data port
        self._bytes: deque[tuple[int, int]] = deque()  # (byte, its AUX and TIMEOUT bits)
        self._data = 0  # what the data port shows
        self._released = 0  # 80h after the code that says that a key goes up: it becomes part of the next one
        self._irq.set(False)

    def press(self, keys: Iterable[int]) -> None:
        """A person's keys (:mod:`coremesh.hw.isa.ps2_keyboard`). Takes the lock; any thread."""
        with self.lock:
            self.keyboard.press(keys)
            self._fill()

    def counts(self) -> dict[str, int]:
        """And how many movements of keys the guest has not taken yet."""
        return {**super().counts(), "keys_waiting": self.keyboard.keys_left}

    def _answer(self, byte: int, flags: int = 0) -> None:
        """Queue a byte for the guest. One that never reads loses the newest."""
        if len(self._bytes) < QUEUE:
            self._bytes.append((byte, flags))
        self._fill()

    def _fill(self) -> None:
        """Show the next byte unless one is shown."""
        if not self.status & STATUS.OBF:
            self._present()

    def _present(self) -> None:
        """Show the next byte: first the data and the status, then the interrupt."""
        self.status &= ~(STATUS.OBF | STATUS.AUX | STATUS.TIMEOUT)
        self._irq.set(False)
        if not self._bytes:
            self._scan()
        if self._bytes:
            self._data, flags = self._bytes.popleft()
            self.status |= STATUS.OBF | flags
            self._irq.set(bool(self.ctr & CTR.KBDINT))

    def _scan(self) -> None:
        """Take a byte from the keyboard's cable, or two where a prefix is translated away."""
        while not self.ctr & CTR.KBDDIS and self.keyboard.waiting and not self._bytes:
            byte = self.keyboard.take()
            if not self.ctr & CTR.XLATE:
                self._bytes.append((byte, 0))
            elif byte == BREAK:
                self._released = 0x80
            else:
                self._bytes.append((set_1(byte) | self._released, 0))
                self._released = 0

    def read(self, offset: int, size: int) -> int:
        """The status, or the data, which frees the port for the next byte."""
        if offset == 4:
            return self.status
        data = self._data
        if self.status & STATUS.OBF:
            self._present()
        return data

    def write(self, offset: int, size: int, value: int) -> None:
        """A command, or data: the parameter of one, or a byte for the keyboard."""
        if offset == 4:
            self.status |= STATUS.CD
            self._awaits = 0
            self._command(value)
        else:
            self.status &= ~STATUS.CD
            command, self._awaits = self._awaits, 0
            if command:
                self._parameter(command, value)
            else:
                self.ctr &= ~CTR.KBDDIS  # a byte for the keyboard lets its clock run
                self.keyboard.receive(value)
        self._fill()

    def _command(self, command: int) -> None:
        if Command.READ_RAM <= command < Command.READ_RAM + 32:
            self._answer(self.ctr if command == Command.READ_RAM else self.ram[command & 31])
        elif Command.WRITE_RAM <= command < Command.WRITE_RAM + 32 or command in Command.WITH_PARAMETER:
            self._awaits = command
        elif command == Command.SELF_TEST:
            self._bytes.clear()
            self.status = self.status & ~STATUS.OBF | STATUS.SYS
            self.ctr |= CTR.SYS | CTR.KBDDIS
            self._answer(0x55)
        elif command == Command.KBD_TEST:
            self._answer(0x00)  # clock and data lines are fine
        elif command == Command.AUX_TEST:
            self._answer(0x02)  # there is no such port: its clock line is stuck high
        elif command == Command.KBD_DISABLE:
            self.ctr |= CTR.KBDDIS
        elif command == Command.KBD_ENABLE:
            self.ctr &= ~CTR.KBDDIS
        elif command == Command.READ_INPUT:
            self._answer(0x80)  # keyboard not locked
        elif command == Command.READ_OUTPUT:
            pending = OUTPORT.OBF_IRQ if self._irq.level else 0
            self._answer(self.outport | pending)
        elif command == Command.DISABLE_A20:
            self.outport &= ~OUTPORT.A20
        elif command == Command.ENABLE_A20:
            self.outport |= OUTPORT.A20
        elif command >= Command.PULSE and not command & OUTPORT.RESET:
            self._reset_processors(command)

    def _parameter(self, command: int, value: int) -> None:
        if command == Command.WRITE_OUTPUT:
            self.outport = value & (OUTPORT.RESET | OUTPORT.A20)
            if not value & OUTPORT.RESET:
                self._reset_processors(value)
        elif command == Command.KBD_LOOP:
            self._answer(value)
        elif command == Command.AUX_LOOP:
            self._answer(value)  # without AUX in the status: a controller with one port only
        elif command == Command.AUX_SEND:
            self._answer(0xFE, STATUS.TIMEOUT)
        elif command == Command.WRITE_RAM:
            self.ctr = value | CTR.AUXDIS
            self.status = self.status & ~STATUS.SYS | (STATUS.SYS if value & CTR.SYS else 0)
            self._irq.set(bool(self.status & STATUS.OBF and value & CTR.KBDINT))
        else:
            self.ram[command & 31] = value

    def _reset_processors(self, value: int) -> None:
        self.outport |= OUTPORT.RESET
        self._on_power(PowerEvent("reset", value, self.name))
