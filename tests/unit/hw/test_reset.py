# SPDX-License-Identifier: GPL-2.0-or-later
"""Reset control (0xCF9) and system control port A (0x92)."""

from typing import Any

from coremesh.hw.isa.reset import ResetControl, SystemControlA
from coremesh.hw.power import PowerEvent


def test_the_acpi_reset_value_resets(power: list[PowerEvent], guest_access: Any) -> None:
    """When the value of the FADT (6) is written to the reset register, then one reset is heard."""
    guest_access(ResetControl(power.append)).write(0, 6)
    assert power == [PowerEvent("reset", 6, "reset")]


def test_only_a_rising_rcpu_resets(power: list[PowerEvent], guest_access: Any) -> None:
    """When RCPU is written while set, then nothing; after it was cleared, its next rise resets again."""
    chip = guest_access(ResetControl(power.append))
    chip.write(0, 2)
    assert power == []
    chip.write(0, 6)
    chip.write(0, 6)
    assert len(power) == 1
    chip.write(0, 2)
    chip.write(0, 0x0E)
    assert len(power) == 2


def test_reserved_bits_read_as_zero(power: list[PowerEvent], guest_access: Any) -> None:
    """When all ones are written, then only SRST, RCPU and FULL read back."""
    chip = guest_access(ResetControl(power.append))
    chip.write(0, 0xFF)
    assert chip.read(0) == 0x0E


def test_port_92_resets_on_a_rising_bit_0(power: list[PowerEvent], guest_access: Any) -> None:
    """When bit 0 of port A rises, then the processors are reset; holding it does not repeat that."""
    chip = guest_access(SystemControlA(power.append))
    chip.write(0, 0x03)
    chip.write(0, 0x03)
    assert power == [PowerEvent("reset", 3, "port92")]


def test_port_92_remembers_a20(power: list[PowerEvent], guest_access: Any) -> None:
    """Given A20 open after reset, when the guest closes and opens it.

    Then it reads back and nothing resets.
    """
    chip = guest_access(SystemControlA(power.append))
    assert chip.read(0) == 0x02
    for value in (0x00, 0x02):
        chip.write(0, value)
        assert chip.read(0) == value
    assert power == []
