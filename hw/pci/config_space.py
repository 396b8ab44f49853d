# SPDX-License-Identifier: GPL-2.0-or-later
"""The 256 bytes of configuration space of one PCI function: what is there, and what a write changes.

Source: PCI Local Bus Specification 2.1, chapter 6; 3.0 for capabilities.
"""

from collections.abc import Mapping

from coremesh.hw.registers import Bit, Bits, Register
from coremesh.hw.state import Stateful

SPACE_BYTES = 256
CAPABILITIES_BASE = 0x40
"""Where the registers that the specification does not lay out begin."""


class COMMAND(Register):
    """Command register: what the function may do on the bus."""

    offset = 0x04
    writable = 0x0547
    IO = Bit(0)  # answers I/O accesses
    MEMORY = Bit(1)  # answers memory accesses
    BUS_MASTER = Bit(2)  # may start accesses of its own: DMA and messages
    PARITY = Bit(6)
    SERR = Bit(8)
    INTX_DISABLE = Bit(10)


class STATUS(Register):
    """Status register. Error bits are cleared by a one."""

    offset = 0x06
    writable = 0
    INTERRUPT = Bit(3)
    CAPABILITIES = Bit(4)
    ERRORS = Bits(15, 11)


class CLASS(Register):
    """Revision (bits 7 to 0) and class code."""

    offset = 0x08


class HEADER_TYPE(Register):
    """Layout of the rest of the header; bit 7 says that the device has several functions."""

    offset = 0x0E
    MULTIFUNCTION = Bit(7)


class BAR(Register):
    """Base address registers: six words from here."""

    offset = 0x10
    COUNT = 6
    IO = Bit(0)
    WIDE = Bit(2)  # of memory: the next register holds the upper half
    PREFETCHABLE = Bit(3)


SUBSYSTEM = 0x2C
CAPABILITY_POINTER = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D


class ConfigSpace(Stateful):
    """The bytes, which of their bits a write changes, and which a written one clears.

    The three dictionaries give bytes by their offset. No lock of its own: the host bridge's.
    """

    STATE = ("data",)

    def __init__(
        self,
        contents: Mapping[int, bytes],
        writable: Mapping[int, bytes],
        clearable: Mapping[int, bytes] | None = None,
    ) -> None:
        self._initial = bytearray(SPACE_BYTES)
        self._writable = bytearray(SPACE_BYTES)
        self._clearable = bytearray(SPACE_BYTES)
        self.data = bytearray(SPACE_BYTES)
        self._next_capability = CAPABILITIES_BASE
        for space, parts in (
            (self._initial, contents), (self._writable, writable), (self._clearable, clearable or {})
        ):  # fmt: skip
            for at, part in parts.items():
                space[at : at + len(part)] = part
        self.reset()

    def declare(self, at: int, contents: bytes, writable: bytes = b"") -> None:
        """Lay further registers, before the machine runs."""
        self._initial[at : at + len(contents)] = contents
        self._writable[at : at + len(writable)] = writable
        self.reset()

    def add_capability(self, identity: int, body: bytes, writable: bytes = b"") -> int:
        """Put a capability first into the list and return its offset; ``body`` follows its two header bytes.

        ``writable`` are the bits of ``body`` that a write changes.
        """
        at = self._next_capability
        self._next_capability = (at + 2 + len(body) + 3) & ~3
        if self._next_capability > SPACE_BYTES:
            raise ValueError("the capabilities of a PCI function outgrow its configuration space")
        self.declare(at, bytes((identity, self._initial[CAPABILITY_POINTER])) + body, b"\0\0" + writable)
        self.declare(CAPABILITY_POINTER, bytes((at,)))
        self.declare(STATUS.offset, bytes((self._initial[STATUS.offset] | STATUS.CAPABILITIES,)))
        return at

    def reset(self) -> None:
        """As after RST#."""
        self.data[:] = self._initial

    def read(self, at: int, size: int) -> int:
        """Little-endian, ``at + size <= 256``."""
        return int.from_bytes(self.data[at : at + size], "little")

    def write(self, at: int, size: int, value: int) -> None:
        """Only writable bits change; ones clear the clearable."""
        for i, byte in enumerate(value.to_bytes(size, "little"), at):
            kept = self.data[i] & ~self._writable[i] | byte & self._writable[i]
            self.data[i] = kept & ~(byte & self._clearable[i])

    def put(self, at: int, size: int, value: int) -> None:
        """The function itself sets a register."""
        self.data[at : at + size] = value.to_bytes(size, "little")
