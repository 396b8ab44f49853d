# SPDX-License-Identifier: GPL-2.0-or-later
"""Declared registers."""

from coremesh.hw.registers import Bit, Bits, Register


class CONTROL(Register):
    """A register as a datasheet would print it."""

    reset = 0x12
    writable = 0xF8
    ENABLE = Bit(7)
    MODE = Bits(5, 4)
    LOW = Bits(2, 0)


def test_a_bit_is_its_mask() -> None:
    """Given Bit(7), then it is the integer 0x80 and tests one bit of a value."""
    assert CONTROL.ENABLE == 0x80
    assert 0xC0 & CONTROL.ENABLE


def test_a_field_is_taken_out_and_put_in() -> None:
    """Given a field of bits 5 and 4, then it can be read and replaced without touching its neighbours."""
    assert CONTROL.MODE.of(0xBF) == 3
    assert CONTROL.MODE.put(0xFF, 1) == 0xDF
    assert CONTROL.MODE.put(0x00, 7) == 0x30


def test_a_write_changes_writable_bits_only() -> None:
    """When the guest writes over 0x05, then bits 0-2 stay."""
    assert CONTROL.merge(0x05, 0xFA) == 0xFD


def test_a_value_is_decoded_for_a_person() -> None:
    """Given a value, then its fields have their datasheet names."""
    assert CONTROL.decode(0xA3) == {"ENABLE": 1, "MODE": 2, "LOW": 3}
