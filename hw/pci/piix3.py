# SPDX-License-Identifier: GPL-2.0-or-later
"""82371SB (PIIX3) south bridge: the PCI-to-ISA bridge, function 0 of its slot, and its interrupt steering.

Reference: Intel 82371FB/82371SB datasheet, sections 2.2 and 4.1: PIRQRC[A:D].

PIRQA# to PIRQD# are active low and shared. Each goes to an input of the I/O APIC, and, where the guest
steers it so, to an input of the 8259A pair. Lines that are steered to one input are ORed.
"""

import threading
from collections.abc import Callable, Sequence

from coremesh.hw.irq import SharedLine
from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import PciFunction
from coremesh.hw.registers import Bit, Bits, Register

PIRQS = 4
ISA_IRQS = 16
_STEERABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})


class PIRQRC(Register):
    """PIRQx route control: four registers, one a line."""

    offset = 0x60
    reset = 0x80
    writable = 0x8F
    IRQ = Bits(3, 0)
    DISABLE = Bit(7)


class Piix3IsaBridge(PciFunction):
    """Function 0. ``lines`` are PIRQA# to PIRQD#; a device takes a branch of one.

    ``apic_pins`` and ``isa_pins`` are the interrupt controllers' inputs: 4 of the I/O APIC, 16 of the pair.
    """

    STATE = (*PciFunction.STATE, "_pulled", "_driven")

    def __init__(
        self, apic_pins: Sequence[Callable[[bool], None]], isa_pins: Sequence[Callable[[bool], None]]
    ) -> None:
        super().__init__(
            "piix3",
            vendor=0x8086,
            device=0x7000,
            class_code=0x060100,  # bridge, ISA
            multifunction=True,
            command=int(COMMAND.SERR),
        )
        self.config.declare(0x04, bytes.fromhex("0700 0002"))  # its cycles are always enabled; medium DEVSEL
        self.config.declare(PIRQRC.offset, bytes([PIRQRC.reset] * PIRQS), bytes([PIRQRC.writable] * PIRQS))
        self.config.declare(0x4C, bytes.fromhex("4d"), bytes.fromhex("7f"))  # I/O recovery timer
        self.config.declare(0x4E, bytes.fromhex("0300"), bytes.fromhex("ffff"))  # X-bus chip select
        self.config.declare(0x69, bytes.fromhex("02"), bytes.fromhex("fe"))  # top of memory
        self._isa_pins = tuple(isa_pins)
        self._steering = threading.Lock()  # guards the two lists; held while the 8259A pair is told
        self._pulled = [False] * PIRQS
        self._driven = [False] * ISA_IRQS
        self.lines = tuple(
            SharedLine(apic_pins[number], self._input(number), active=False) for number in range(PIRQS)
        )

    def _input(self, number: int) -> Callable[[bool], None]:
        def changed(level: bool) -> None:
            with self._steering:
                self._pulled[number] = not level
                self._steer()

        return changed

    def written(self, at: int, size: int) -> None:
        """A line that is steered elsewhere leaves its old input and pulls the new one."""
        if at < PIRQRC.offset + PIRQS and at + size > PIRQRC.offset:
            with self._steering:
                self._steer()

    def reset(self) -> None:
        """No line is steered."""
        super().reset()
        with self._steering:
            self._steer()

    def _steer(self) -> None:
        wanted = [False] * ISA_IRQS
        for number, pulled in enumerate(self._pulled):
            route = self.config.data[PIRQRC.offset + number]
            irq = PIRQRC.IRQ.of(route)
            if pulled and not route & PIRQRC.DISABLE and irq in _STEERABLE:
                wanted[irq] = True
        for irq, level in enumerate(wanted):
            if level is not self._driven[irq]:
                self._driven[irq] = level
                self._isa_pins[irq](level)
