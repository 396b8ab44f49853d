# SPDX-License-Identifier: GPL-2.0-or-later
"""Two of the PC's ways to reset: the PIIX reset control register (0xCF9) and control port A (0x92).

The third is the keyboard controller (i8042.py). ACPI's reset register is the first of these two.
References: Intel 82371SB (PIIX3) datasheet, RCR; IBM PS/2 Hardware Interface Technical
Reference, system control port A.
"""

from coremesh.hw.device import Device
from coremesh.hw.power import PowerEvent, PowerSink
from coremesh.hw.registers import Bit, Register


class RCR(Register):
    """Reset control register."""

    writable = 0x0E
    SRST = Bit(1)  # system reset: 1 hard (the whole board), 0 soft (the processors)
    RCPU = Bit(2)  # 0 -> 1 starts the reset that SRST has chosen
    FULL = Bit(3)  # later chips: power cycle as well


class ResetControl(Device):
    """Port 0xCF9."""

    REGISTERS = (RCR,)
    rcr: int

    def __init__(self, on_power: PowerSink, name: str = "reset") -> None:
        super().__init__(name)
        self._on_power = on_power
        self.reset()

    def read(self, offset: int, size: int) -> int:
        """The register; RCPU reads as written."""
        return self.rcr

    def write(self, offset: int, size: int, value: int) -> None:
        """A rising RCPU resets."""
        rises = value & ~self.rcr & RCR.RCPU
        self.rcr = RCR.merge(self.rcr, value)
        if rises:
            self._on_power(PowerEvent("reset", value, self.name))


class PORTA(Register):
    """System control port A."""

    reset = 0x02
    writable = 0xFF
    FAST_RESET = Bit(0)  # 0 -> 1 resets the processors
    A20 = Bit(1)  # address line 20 is enabled


class SystemControlA(Device):
    """Port 0x92. Address line 20 is never masked in this machine; the bit is remembered and that is all."""

    REGISTERS = (PORTA,)
    porta: int

    def __init__(self, on_power: PowerSink, name: str = "port92") -> None:
        super().__init__(name)
        self._on_power = on_power
        self.reset()

    def read(self, offset: int, size: int) -> int:
        """The register as written."""
        return self.porta

    def write(self, offset: int, size: int, value: int) -> None:
        """A rising FAST_RESET resets."""
        rises = value & ~self.porta & PORTA.FAST_RESET
        self.porta = value
        if rises:
            self._on_power(PowerEvent("reset", value, self.name))
