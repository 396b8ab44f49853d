# SPDX-License-Identifier: GPL-2.0-or-later
"""The IDE function of the PIIX3 (8086:7010): two channels at the PC's old ports, and a bus master for both.

Reference: Intel 82371SB (PIIX3) datasheet, sections 2.3 (function 1) and 2.7 (bus master).
"""

from collections.abc import Sequence
from typing import Final

from coremesh.hw.ata.channel import DRIVES, IdeChannel
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.registers import BMICOM, CONTROL
from coremesh.hw.clock import Clock
from coremesh.hw.decode import PORT, At
from coremesh.hw.irq import IrqLine
from coremesh.hw.memory import GuestMemory
from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import Bar, PciFunction
from coremesh.hw.registers import Bit, Register

#: Command block and control block of each channel in compatibility mode, and its ISA interrupt.
PLACES: Final = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
CHANNEL_PORTS = 8  # of the bus master, for each channel
CLASS_CODE = 0x010180  # IDE, with a bus master, in compatibility mode


class IDETIM(Register):
    """Timing: one register of 16 bits for each channel. The times have no meaning here."""

    offset = 0x40
    IDE = Bit(15)  # the channel's ports are decoded


class Piix3Ide(PciFunction):
    """Function 1 of the PIIX3, with up to four drives: device 0 and 1 of the first channel, of the second."""

    def __init__(
        self, clock: Clock, lines: Sequence[IrqLine], memory: GuestMemory, drives: Sequence[Drive | None]
    ) -> None:
        """``lines`` are the two channels' ISA interrupts."""
        places = [*drives, *[None] * (DRIVES * len(PLACES))]
        self.channels = [
            IdeChannel(
                clock, lines[number], memory, places[DRIVES * number : DRIVES * (number + 1)], f"ide{number}"
            )
            for number in range(len(PLACES))
        ]
        super().__init__(
            "piix3-ide",
            vendor=0x8086,
            device=0x7010,
            class_code=CLASS_CODE,
            bars=[Bar(4, PORT, CHANNEL_PORTS * len(PLACES), self.channels[0], BMICOM.offset)],
            fixed=[at for number in range(len(PLACES)) for at in self._old_ports(number)],
            command=int(COMMAND.IO | COMMAND.BUS_MASTER),
        )
        self.config.declare(0x06, (0x0280).to_bytes(2, "little"))  # medium DEVSEL, fast back-to-back
        self.config.declare(IDETIM.offset, bytes(5), b"\xff" * 5)  # and the slave's
        for channel in self.channels:
            channel.may_master = lambda: self.bus_master
            channel.on_bus_error = self.signal_error

    def _old_ports(self, number: int) -> list[At]:
        command, control, _ = PLACES[number]
        channel = self.channels[number]
        return [
            At(PORT, command, 8, channel, 0, (1,)),
            # The data port alone is wider than a byte; the ISA bus splits other accesses.
            At(PORT, command, 2, channel, 0, (2,)),
            At(PORT, command, 4, channel, 0, (4,)),
            At(PORT, control, 1, channel, CONTROL.offset, (1,)),
        ]

    def mappings(self) -> list[At]:
        """The old ports of the channels that are enabled, and the bus master's ports for both."""
        found = []
        for at in super().mappings():
            if at.offset == BMICOM.offset:
                found += [
                    At(PORT, at.base + CHANNEL_PORTS * number, CHANNEL_PORTS, channel, BMICOM.offset)
                    for number, channel in enumerate(self.channels)
                ]
            elif any(at.device is c and self._is_enabled(n) for n, c in enumerate(self.channels)):
                found.append(at)
        return found

    def _is_enabled(self, number: int) -> bool:
        return bool(self.config.read(IDETIM.offset + 2 * number, 2) & IDETIM.IDE)

    def written(self, at: int, size: int) -> None:
        """The channels may be decoded or not, and use the bus or not, from now on."""
        if IDETIM.offset <= at < IDETIM.offset + 4:
            self.remap()
        if at <= COMMAND.offset < at + size:
            for channel in self.channels:
                channel.recheck()
