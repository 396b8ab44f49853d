# SPDX-License-Identifier: GPL-2.0-or-later
"""The IDE function of the PIIX3 (8086:7010): two channels at the PC's old ports, and a bus master for both.

Reference: Intel 82371SB (PIIX3) datasheet, sections 2.3 (function 1) and 2.7 (bus master).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from weakref import WeakMethod

from coremesh.core._native import BusMaster, NativePorts, NativePortWindow
from coremesh.hw.ata.channel import DRIVES, IdeChannel
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.registers import BMICOM, CONTROL
from coremesh.hw.decode import PORT, At
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import Bar, PciFunction
from coremesh.hw.registers import Bit, Register

#: Command block and control block of each channel in compatibility mode, and its ISA interrupt.
PLACES: Final = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
RECEIVED_MASTER_ABORT: Final = 1 << 13  # of the PCI status register
CHANNEL_PORTS = 8  # of the bus master, for each channel
CLASS_CODE = 0x010180  # IDE, with a bus master, in compatibility mode


class IDETIM(Register):
    """Timing: one register of 16 bits for each channel. The times have no meaning here."""

    offset = 0x40
    IDE = Bit(15)  # the channel's ports are decoded


class Piix3Ide(PciFunction):
    """Function 1 of the PIIX3, with up to four drives: device 0 and 1 of the first channel, of the second."""

    def __init__(
        self,
        lines: Sequence[IrqLine],
        memory: BusMaster,
        drives: Sequence[Drive | None],
        ports: NativePorts | None = None,
    ) -> None:
        """``lines`` are the two channels' ISA interrupts; ``ports`` answers the vCPUs without Python."""
        places = [*drives, *[None] * (DRIVES * len(PLACES))]
        # The channels hold what they call, and this function the channels: the reference back is a weak one.
        signal_error = WeakMethod(self._no_ram)
        self.channels = [
            IdeChannel(
                lines[number],
                memory,
                places[DRIVES * number : DRIVES * (number + 1)],
                f"ide{number}",
                partial(_call, signal_error),
            )
            for number in range(len(PLACES))
        ]
        self._windows: list[NativePortWindow] = []
        if ports is not None:
            self._windows = [ports.add(channel.native) for channel in self.channels]
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
        self._use_bus()

    def _no_ram(self) -> None:
        self.signal_error(RECEIVED_MASTER_ABORT)

    def _use_bus(self) -> None:
        for channel in self.channels:
            channel.use_bus(self.bus_master)

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
            self._use_bus()

    def reset(self) -> None:
        """RST#: see :class:`PciFunction`."""
        super().reset()
        self._use_bus()

    def resume(self) -> None:
        """See :class:`PciFunction`."""
        super().resume()
        self._use_bus()

    def moved(self, device: Device, mappings: Sequence[At]) -> None:
        """The native part of a channel answers where the channel does."""
        for channel, window in zip(self.channels, self._windows, strict=False):
            if device is channel:
                window.move([(m.base, m.last, m.offset, m.widths or channel.widths) for m in mappings])


def _call(method: WeakMethod[Callable[[], None]]) -> None:
    if (live := method()) is not None:
        live()
