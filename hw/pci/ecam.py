# SPDX-License-Identifier: GPL-2.0-or-later
"""ECAM: configuration space as memory, 4 KiB a function, announced by the ACPI table MCFG.

Only bus 0 is there: 1 MiB. Its functions are conventional ones, whose configuration space has 256 bytes. What
follows them is answered by no function: it reads as ones, as do functions that are not there.

Source: PCI Express Base Specification 3.0, section 7.2.2; PCI Firmware Specification 3.0, section 4.1.
"""

from coremesh.hw.device import Device
from coremesh.hw.pci.config_space import SPACE_BYTES
from coremesh.hw.pci.host import PciHost
from coremesh.hw.registers import Bits

REGISTER = Bits(11, 0)
FUNCTION = Bits(14, 12)
DEVICE = Bits(19, 15)


class Ecam(Device):
    """A second way to the configuration space of ``host``'s bus; offset 0 is function 0 of device 0.

    It has the lock of the host bridge: both ways exclude each other, and neither has state of its own.
    """

    widths = (1, 2, 4)

    def __init__(self, host: PciHost, name: str = "ecam") -> None:
        super().__init__(name)
        self.lock = host.lock
        self._host = host

    def read(self, offset: int, size: int) -> int:
        """Aligned, within the window."""
        at = REGISTER.of(offset)
        function = self._host.functions.get((DEVICE.of(offset), FUNCTION.of(offset)))
        return function.read(at, size) if function and at < SPACE_BYTES else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The same, writing."""
        at = REGISTER.of(offset)
        function = self._host.functions.get((DEVICE.of(offset), FUNCTION.of(offset)))
        if function and at < SPACE_BYTES:
            function.write(at, size, value)
