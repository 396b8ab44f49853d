# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI configuration mechanism #1 and the host bridge of the 82441FX (i440FX PMC) on an otherwise empty bus.

Reference: PCI Local Bus Specification 2.1, section 3.7.4.1; Intel 82441FX datasheet, section 3.
Offsets: 0 CONFADD (0xCF8), 4 CONFDATA (0xCFC).
"""

from coremesh.hw.device import Device
from coremesh.hw.registers import Bit, Bits, Register
from coremesh.hw.state import Stateful

Function = tuple[int, int, int]  # bus, device, function


class CONFADD(Register):
    """Configuration address. Only a 32-bit access reaches it."""

    writable = 0x80FF_FFFC
    REGISTER = Bits(7, 2)
    FUNCTION = Bits(10, 8)
    DEVICE = Bits(15, 11)
    BUS = Bits(23, 16)
    CONE = Bit(31)  # CONFDATA reaches configuration space


class ConfigSpace(Stateful):
    """256 bytes of one function: what it is, and which bits a write changes."""

    STATE = ("data",)

    def __init__(self, contents: dict[int, bytes], writable: dict[int, bytes]) -> None:
        self._initial = bytes(self._laid_out(contents))
        self._writable = bytes(self._laid_out(writable))
        self.data = bytearray(self._initial)

    @staticmethod
    def _laid_out(parts: dict[int, bytes]) -> bytearray:
        space = bytearray(256)
        for at, part in parts.items():
            space[at : at + len(part)] = part
        return space

    def reset(self) -> None:
        """As after RST#."""
        self.data[:] = self._initial

    def read(self, at: int, size: int) -> int:
        """Little-endian, ``at + size <= 256``."""
        return int.from_bytes(self.data[at : at + size], "little")

    def write(self, at: int, size: int, value: int) -> None:
        """Only writable bits change."""
        for i, byte in enumerate(value.to_bytes(size, "little"), at):
            self.data[i] = self.data[i] & ~self._writable[i] | byte & self._writable[i]


def i440fx_host_bridge() -> ConfigSpace:
    """Device 0 of bus 0: the PCI and memory controller."""
    return ConfigSpace(
        {
            0x00: bytes.fromhex("8680 3712 0600 8002"),  # VID 8086, DID 1237, PCICMD, PCISTS
            0x08: bytes.fromhex("02 000006"),  # RID, CLASSC: bridge, host
        },
        {
            0x04: bytes.fromhex("4201"),  # PCICMD: MAE is fixed at one, SERRE and PERRE can be set
            0x0D: bytes.fromhex("f8"),  # MLT
            0x50: bytes.fromhex("ffff"),  # PMCCFG
            0x59: b"\xff" * 7,  # PAM0-6: attributes of 0xC0000-0xFFFFF
            0x60: b"\xff" * 8,  # DRB0-7
            0x72: b"\x7f",  # SMRAM
        },
    )


class PciHost(Device):
    """Bus 0 with the functions of ``functions``; everything else reads as all ones."""

    REGISTERS = (CONFADD,)
    STATE = ("_spaces",)
    widths = (1, 2, 4)
    confadd: int

    def __init__(self, functions: dict[Function, ConfigSpace], name: str = "pci") -> None:
        super().__init__(name)
        self._functions = functions
        self._spaces = [functions[function] for function in sorted(functions)]
        self.reset()

    def reset(self) -> None:
        """RST# to all functions."""
        super().reset()
        for space in self._functions.values():
            space.reset()

    def _target(self, offset: int) -> tuple[ConfigSpace | None, int]:
        address = self.confadd
        if not address & CONFADD.CONE:
            return None, 0
        function = (CONFADD.BUS.of(address), CONFADD.DEVICE.of(address), CONFADD.FUNCTION.of(address))
        return self._functions.get(function), (address & 0xFC) + offset - 4

    def read(self, offset: int, size: int) -> int:
        """CONFADD as a whole, or configuration space; a narrow access to CONFADD is none."""
        if offset < 4:
            return self.confadd if size == 4 else (1 << 8 * size) - 1
        space, at = self._target(offset)
        return space.read(at, size) if space else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The same, writing."""
        if offset < 4:
            if size == 4:
                self.confadd = value & CONFADD.writable
            return
        space, at = self._target(offset)
        if space:
            space.write(at, size, value)
