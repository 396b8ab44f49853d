# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI fixed hardware: the timer's rate and width, power-off, the SCI."""

from typing import Any

import pytest
from coremesh.hw.isa.acpi_pm import PM_TIMER_HZ, AcpiPm
from coremesh.hw.power import PowerEvent

STS, EN, CNT, TMR = 0, 2, 4, 8
TMR_BIT, PWRBTN, RTC = 0x0001, 0x0100, 0x0400
SLP_EN = 1 << 13


class Guest:
    def __init__(self, clock: Any, wire: Any, power: list[PowerEvent], chip: Any, bits: int = 24) -> None:
        self.clock = clock
        self.wire = wire
        self.power = power
        self.device = AcpiPm(clock, wire.line, power.append, timer_bits=bits)
        self.chip = chip(self.device)

    def read(self, offset: int, size: int = 2) -> int:
        return int(self.chip.read(offset, size))

    def write(self, offset: int, value: int, size: int = 2) -> None:
        self.chip.write(offset, value, size)


@pytest.fixture
def guest(clock: Any, wire: Any, power: list[PowerEvent], guest_access: Any) -> Guest:
    return Guest(clock, wire, power, guest_access)


def test_acpi_mode_is_always_on(guest: Guest) -> None:
    """Given no SMI command port, then SCI_EN reads one and writing zero does not change it."""
    guest.write(CNT, 0)
    assert guest.read(CNT) == 0x0001


def test_the_timer_counts_3579545_a_second(guest: Guest) -> None:
    """When 1 s passes, then the timer has advanced by its frequency, modulo 24 bits."""
    before = guest.read(TMR, 4)
    guest.clock.advance(1_000_000_000)
    assert (guest.read(TMR, 4) - before) % (1 << 24) == PM_TIMER_HZ


@pytest.mark.parametrize("bits", [24, 32])
def test_the_timer_has_the_width_it_is_built_with(
    clock: Any, wire: Any, power: list[PowerEvent], guest_access: Any, bits: int
) -> None:
    """Given 24 or 32 bits, when years pass, then the value never exceeds the width and wraps."""
    guest = Guest(clock, wire, power, guest_access, bits)
    values = []
    for _ in range(50):
        clock.advance(37_000_000_000)
        values.append(guest.read(TMR, 4))
    assert max(values) < 1 << bits
    assert sorted(values) != values


def test_narrow_reads_of_the_timer_are_its_bytes(guest: Guest) -> None:
    """When the timer is read in bytes and words while it stands still, then they make up the whole."""
    whole = guest.read(TMR, 4)
    assert guest.read(TMR, 2) | guest.read(TMR + 2, 2) << 16 == whole
    assert sum(guest.read(TMR + i, 1) << 8 * i for i in range(4)) == whole


def test_s5_switches_off(guest: Guest) -> None:
    """When Linux writes SLP_TYP 5, then the same with SLP_EN, then one power-off is heard."""
    guest.write(CNT, 5 << 10)
    assert guest.power == []
    guest.write(CNT, 5 << 10 | SLP_EN)
    assert [(event.kind, event.value) for event in guest.power] == [("power-off", 5)]
    assert guest.read(CNT) == 5 << 10 | 1


def test_s5_by_bytes(guest: Guest) -> None:
    """When only the high byte of the control register is written, then that switches off as well."""
    guest.write(CNT + 1, (5 << 10 | SLP_EN) >> 8, 1)
    assert [event.kind for event in guest.power] == ["power-off"]


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_other_sleep_types_are_ignored(guest: Guest, sleep_type: int) -> None:
    """Given a DSDT that offers S5 only, when another type is entered, then the machine stays on."""
    guest.write(CNT, sleep_type << 10 | SLP_EN)
    assert guest.power == []


def test_the_power_button_raises_the_sci(guest: Guest) -> None:
    """Given PWRBTN enabled, when the person presses it, then the status is set before the SCI rises.

    Writing one to the status bit lowers it again.
    """
    guest.wire.look = lambda: guest.device.pm1_sts
    guest.write(EN, PWRBTN)
    guest.device.press_power_button()
    assert guest.wire.seen == [PWRBTN]
    guest.write(STS, PWRBTN)
    assert guest.read(STS) & PWRBTN == 0
    assert not guest.wire.high


def test_an_event_that_is_not_enabled_waits(guest: Guest) -> None:
    """Given PWRBTN disabled, when it is pressed, then only the status shows it; enabling raises the SCI."""
    guest.device.press_power_button()
    assert not guest.wire.high
    assert guest.read(STS) & PWRBTN
    guest.write(EN, PWRBTN)
    assert guest.wire.high


def test_status_bits_are_cleared_one_by_one(guest: Guest) -> None:
    """Given two events, when one is cleared, then the other stays; writing zeros clears nothing."""
    guest.clock.advance(3_000_000_000)
    guest.device.press_power_button()
    assert guest.read(STS) & (TMR_BIT | PWRBTN) == TMR_BIT | PWRBTN
    guest.write(STS, 0)
    guest.write(STS, TMR_BIT)
    assert guest.read(STS) & (TMR_BIT | PWRBTN) == PWRBTN


def test_writing_the_enables_does_not_clear_the_status(guest: Guest) -> None:
    """When a word is written to PM1_EN, then PM1_STS keeps its bits; a double word writes both."""
    guest.device.press_power_button()
    guest.write(EN, 0xFFFF)
    assert guest.read(STS) & PWRBTN
    assert guest.read(EN) == 0x0721
    guest.write(STS, 0x0001_0100, 4)
    assert not guest.read(STS) & PWRBTN
    assert guest.read(EN) == 0x0001


def test_the_timer_interrupt_comes_with_its_highest_bit(guest: Guest) -> None:
    """Given TMR_EN, then the SCI rises each time bit 23 changes: every 2.34 s."""
    guest.write(STS, TMR_BIT)
    guest.write(EN, TMR_BIT)
    rises = 0
    for _ in range(10):
        guest.clock.advance(2_343_500_000)
        rises += guest.wire.high
        guest.write(STS, TMR_BIT)
    assert rises == 10


def test_without_the_timer_interrupt_nothing_wakes(guest: Guest) -> None:
    """Given TMR disabled, when a minute passes, then no alarm goes off."""
    guest.clock.advance(60_000_000_000)
    assert guest.clock.expired == 0


def test_reset_clears_events(guest: Guest) -> None:
    """Given a pending SCI, when the board is reset, then the line is low and the enables are clear."""
    guest.write(EN, PWRBTN)
    guest.device.press_power_button()
    guest.chip.reset()
    assert not guest.wire.high
    assert (guest.read(STS), guest.read(EN), guest.read(CNT)) == (0, 0, 1)
