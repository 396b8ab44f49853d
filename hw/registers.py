# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers declared as a datasheet prints them: a name, where it is, what it holds after reset, its bits.

A declaration is a class and never an object::

    class LCR(Register):
        '''Line control register.'''

        offset, reset, writable = 3, 0x00, 0xFF
        WLS = Bits(1, 0)  # word length select
        DLAB = Bit(7)  # divisor latch access

The value itself is a plain ``int`` in the device (``self.lcr``), so a test of one bit is one machine-friendly
expression, ``self.lcr & LCR.DLAB``: devices are called for every port access of every vCPU.
"""

from typing import ClassVar, Final


class Bit(int):
    """One bit, as its mask. ``Bit(5)`` is the integer 0x20."""

    def __new__(cls, position: int) -> "Bit":
        """The mask of the bit at ``position``, 0 being the lowest."""
        return super().__new__(cls, 1 << position)


class Bits:
    """A field of several bits, named by its highest and its lowest bit as datasheets do."""

    __slots__ = ("low", "mask", "top")

    def __init__(self, high: int, low: int) -> None:
        self.low: Final = low
        self.top: Final = (1 << (high - low + 1)) - 1  # the field's largest value
        self.mask: Final = self.top << low

    def of(self, value: int) -> int:
        """The field's value within a register's ``value``."""
        return (value >> self.low) & self.top

    def put(self, value: int, field: int) -> int:
        """A register's ``value`` with this field replaced by ``field``."""
        return (value & ~self.mask) | ((field & self.top) << self.low)


class Register:
    """Base of every declaration. ``writable`` are the bits that a write by the guest changes."""

    offset: ClassVar[int] = 0
    reset: ClassVar[int] = 0
    writable: ClassVar[int] = 0xFF

    @classmethod
    def fields(cls) -> dict[str, "Bit | Bits"]:
        """The declared bits by their datasheet names."""
        return {name: bits for name, bits in vars(cls).items() if isinstance(bits, Bit | Bits)}

    @classmethod
    def decode(cls, value: int) -> dict[str, int]:
        """``value`` taken apart for a person: the field names and what each holds."""
        return {
            name: bits.of(value) if isinstance(bits, Bits) else int(bool(value & bits))
            for name, bits in cls.fields().items()
        }

    @classmethod
    def merge(cls, old: int, new: int) -> int:
        """What the register holds after the guest wrote ``new`` over ``old``: read-only bits keep theirs."""
        return (old & ~cls.writable) | (new & cls.writable)
