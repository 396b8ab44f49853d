# SPDX-License-Identifier: GPL-2.0-or-later
"""82093AA I/O Advanced Programmable Interrupt Controller: 24 pins, each turned into an interrupt message.

Reference: Intel 82093AA I/O APIC datasheet, section 3; the EOI register is that of the
later versions (0x20 and up; later south bridges). Messages have the MSI format
(SDM vol. 3A, 11.11).

Memory-mapped, 32-bit accesses only: an index at offset 0x00 chooses the register seen through the window at
0x10.
"""

from collections.abc import Callable
from functools import partial

from coremesh.hw.device import Device
from coremesh.hw.irq import InterruptFabric
from coremesh.hw.registers import Bit, Bits, Register

PINS = 24
MSI_BASE = 0xFEE00000
FIXED, LOWEST_PRIORITY, EXTINT = 0, 1, 7  # delivery modes


class IOREGSEL(Register):
    """Index of the register behind IOWIN."""

    offset = 0x00


class IOWIN(Register):
    """Data window."""

    offset = 0x10
    writable = 0xFFFFFFFF


class EOIR(Register):
    """End of interrupt: clears the remote IRR of every level-triggered pin with the vector written."""

    offset = 0x40


class IOAPICID(Register):
    """Index 0: identification."""

    offset = 0x00
    writable = 0x0F000000
    ID = Bits(27, 24)


class IOAPICVER(Register):
    """Index 1: version and number of redirection entries less one; read only."""

    offset = 0x01
    reset = (PINS - 1) << 16 | 0x20
    writable = 0
    VERSION = Bits(7, 0)
    MAX_REDIRECTION_ENTRY = Bits(23, 16)


class IOAPICARB(Register):
    """Index 2: arbitration id on the serial APIC bus; follows the id; read only."""

    offset = 0x02
    writable = 0
    ID = Bits(27, 24)


class IOREDTBL(Register):
    """Index 0x10 + 2 * pin (low half) and 0x11 + 2 * pin (high half): a redirection table entry, 64 bits."""

    offset = 0x10
    reset = 1 << 16
    writable = 0xFF00_0000_0001_AFFF
    INTVEC = Bits(7, 0)
    DELMOD = Bits(10, 8)  # 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT
    DESTMOD = Bit(11)  # 1: logical destination
    DELIVS = Bit(12)  # read only: a message is on its way; here it never waits
    INTPOL = Bit(13)  # 1: active low
    REMOTE_IRR = Bit(14)  # read only: a local APIC has the level interrupt and owes an EOI
    TRIGGER = Bit(15)  # 1: level
    MASK = Bit(16)
    DEST = Bits(63, 56)


class IoApic82093AA(Device):
    """``pin(n)`` gives the input to connect a line to. ``eoi`` takes the broadcasts of the local APICs."""

    REGISTERS = (IOREGSEL, IOAPICID, IOAPICVER, IOAPICARB)
    STATE = ("levels", "ioredtbl", "delivered")
    widths = (4,)
    ioregsel: int
    ioapicid: int
    ioapicver: int
    ioapicarb: int

    def __init__(self, fabric: InterruptFabric, name: str = "ioapic", identity: int = 0) -> None:
        super().__init__(name)
        self._fabric = fabric
        self._identity = identity
        # PCI interrupt lines (pins 16 and up) are open drain with a pull-up: nothing connected is high.
        self.levels = [pin >= 16 for pin in range(PINS)]
        self.reset()

    def reset(self) -> None:
        """All pins masked. The lines keep the levels that their devices drive."""
        super().reset()
        self.ioapicid = self.ioapicarb = IOAPICID.ID.put(0, self._identity)
        self.ioredtbl = [IOREDTBL.reset] * PINS
        self.delivered = [0] * PINS  # messages sent, by pin; for a person

    def pin(self, number: int) -> Callable[[bool], None]:
        """Input ``number``: a function of the line's level, for any thread that does not hold this lock."""
        return partial(self._set_pin, number)

    def _set_pin(self, number: int, level: bool) -> None:
        self.acquire()
        try:
            if self.levels[number] is level:
                return
            self.levels[number] = level
            entry = self.ioredtbl[number]
            if level is not bool(entry & IOREDTBL.INTPOL):
                # Edges on a masked pin are ignored, neither delivered nor held (datasheet, 3.2.4, bit 16).
                self._request(number, entry)
        finally:
            self.lock.release()

    def _request(self, number: int, entry: int) -> None:
        """The pin is active, or has just become so: send, unless masked or still unacknowledged."""
        if entry & IOREDTBL.MASK:
            return
        if self._holds_level(entry):
            if entry & IOREDTBL.REMOTE_IRR:
                return
            self.ioredtbl[number] = entry | IOREDTBL.REMOTE_IRR
        self._send(number, entry)

    @staticmethod
    def _holds_level(entry: int) -> bool:
        """Only fixed and lowest-priority interrupts have an EOI.

        The others are edges whatever TRIGGER says.
        """
        return bool(entry & IOREDTBL.TRIGGER) and IOREDTBL.DELMOD.of(entry) in (FIXED, LOWEST_PRIORITY)

    def _active(self, number: int, entry: int) -> bool:
        return self.levels[number] is not bool(entry & IOREDTBL.INTPOL)

    def _send(self, number: int, entry: int) -> None:
        mode = IOREDTBL.DELMOD.of(entry)
        address = MSI_BASE | IOREDTBL.DEST.of(entry) << 12
        if entry & IOREDTBL.DESTMOD:
            address |= 1 << 2
        if mode == LOWEST_PRIORITY:
            address |= 1 << 3  # redirection hint: one processor of the set
        data = IOREDTBL.INTVEC.of(entry) | mode << 8 | 1 << 14  # bit 14: assert
        if self._holds_level(entry):
            data |= 1 << 15
        self.delivered[number] += 1
        self._fabric.msi(address, data)

    def eoi(self, vector: int) -> None:
        """A local APIC ended a level interrupt.

        Any vCPU thread. A line that is still active interrupts anew.
        """
        self.acquire()
        try:
            self._end(vector)
        finally:
            self.lock.release()

    def _end(self, vector: int) -> None:
        remote_irr = int(IOREDTBL.REMOTE_IRR)
        for number, entry in enumerate(self.ioredtbl):
            if entry & remote_irr and entry & 0xFF == vector:
                entry &= ~remote_irr
                self.ioredtbl[number] = entry
                if self._active(number, entry):
                    self._request(number, entry)

    def read(self, offset: int, size: int) -> int:
        """The index or the register it chooses; what does not exist reads as zero."""
        if offset == IOREGSEL.offset:
            return self.ioregsel
        if offset != IOWIN.offset:
            return 0
        index = self.ioregsel
        if index == IOAPICID.offset:
            return self.ioapicid
        if index == IOAPICVER.offset:
            return self.ioapicver
        if index == IOAPICARB.offset:
            return self.ioapicarb
        number, high = divmod(index - IOREDTBL.offset, 2)
        if 0 <= number < PINS:
            return self.ioredtbl[number] >> 32 * high & 0xFFFFFFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, write it, or end an interrupt."""
        if offset == IOREGSEL.offset:
            self.ioregsel = value & 0xFF
        elif offset == IOWIN.offset:
            self._write_window(self.ioregsel, value)
        elif offset == EOIR.offset:
            self._end(value & 0xFF)

    def _write_window(self, index: int, value: int) -> None:
        if index == IOAPICID.offset:
            self.ioapicid = self.ioapicarb = value & IOAPICID.writable
            return
        number, high = divmod(index - IOREDTBL.offset, 2)
        if not 0 <= number < PINS:
            return
        old = self.ioredtbl[number]
        entry = old & 0xFFFFFFFF | value << 32 if high else old & ~0xFFFFFFFF | value
        entry = IOREDTBL.merge(old, entry)
        if not self._holds_level(entry):
            entry &= (
                ~IOREDTBL.REMOTE_IRR
            )  # no EOI will come for an edge; Linux counts on this to clear a stuck pin
        self.ioredtbl[number] = entry
        if self._holds_level(entry) and self._active(number, entry):
            self._request(number, entry)

    def show(self) -> dict[str, dict[str, int]]:
        """The registers, and the redirection entries in use with their lines and how often each was sent."""
        shown = super().show()
        with self.lock:
            for pin, entry in enumerate(self.ioredtbl):
                if not entry & IOREDTBL.MASK or self.delivered[pin]:
                    counts = {"line": int(self.levels[pin]), "sent": self.delivered[pin]}
                    shown[f"IOREDTBL{pin}"] = {"value": entry, **IOREDTBL.decode(entry), **counts}
        return shown
