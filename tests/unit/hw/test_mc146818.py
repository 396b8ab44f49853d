# SPDX-License-Identifier: GPL-2.0-or-later
"""MC146818: the calendar in all its formats, setting it, its three interrupts, what CMOS RAM tells."""

from typing import Any

import pytest
from coremesh.hw.isa.mc146818 import Rtc146818, cmos_configuration

A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
UIP = 0x80
DM, H24, UIE, AIE, PIE, SET = 0x04, 0x02, 0x10, 0x20, 0x40, 0x80
UF, AF, PF, IRQF = 0x10, 0x20, 0x40, 0x80
SECOND = 1_000_000_000
MIB, GIB = 1 << 20, 1 << 30


class Guest:
    def __init__(self, clock: Any, wire: Any, chip: Any) -> None:
        self.clock = clock
        self.wire = wire
        self.device = Rtc146818(clock, wire.line)
        self.chip = chip(self.device)
        # C as seen by another vCPU the moment the line changes
        wire.look = lambda: self.device.rc

    def read(self, index: int) -> int:
        self.chip.write(0, index)
        return int(self.chip.read(1))

    def write(self, index: int, value: int) -> None:
        self.chip.write(0, index)
        self.chip.write(1, value)

    def calendar(self) -> list[int]:
        return [self.read(index) for index in (CENTURY, 9, 8, 7, 4, 2, 0)]

    def set_calendar(self, *values: int) -> None:
        for index, value in zip((CENTURY, 9, 8, 7, 4, 2, 0), values, strict=True):
            self.write(index, value)

    def seconds(self, count: float) -> None:
        self.clock.advance(round(count * SECOND))


@pytest.fixture
def guest(clock: Any, wire: Any, guest_access: Any) -> Guest:
    return Guest(clock, wire, guest_access)


def test_it_starts_with_the_time_of_the_world_in_bcd(guest: Guest) -> None:
    """Given a host whose clock says Monday 2026-11-30 12:00:00 UTC.

    Then the guest reads that, in BCD and 24 hours.
    """
    assert guest.calendar() == [0x20, 0x26, 0x11, 0x30, 0x12, 0x00, 0x00]
    assert guest.read(6) == 2
    assert guest.read(B) == H24
    assert guest.read(D) == 0x80


def test_time_passes(guest: Guest) -> None:
    """When twelve hours, a minute and five seconds pass, then the date and the month have changed."""
    guest.seconds(12 * 3600 + 65)
    assert guest.calendar() == [0x20, 0x26, 0x12, 0x01, 0x00, 0x01, 0x05]


def test_binary_mode(guest: Guest) -> None:
    """Given DM set, then the same moment reads in binary."""
    guest.write(B, H24 | DM)
    assert guest.calendar() == [20, 26, 11, 30, 12, 0, 0]


@pytest.mark.parametrize(
    ("hours", "raw"), [(0, 0x92), (1, 0x81), (11, 0x91), (12, 0x12), (13, 0x01), (23, 0x11)]
)
def test_twelve_hour_mode(guest: Guest, hours: int, raw: int) -> None:
    """Given 12-hour mode at noon, when hours pass, then PM is bit 7 and there is no hour zero."""
    guest.write(B, 0)
    guest.seconds(hours * 3600)
    assert guest.read(4) == raw


def test_setting_the_clock_as_linux_does(guest: Guest) -> None:
    """When SET holds the clock and the divider is reset.

    Then new values stand still; released, they run on.
    """
    guest.write(B, H24 | SET)
    guest.write(A, 0x76)
    guest.set_calendar(0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58)
    guest.seconds(10)
    assert guest.calendar()[-1] == 0x58
    guest.write(B, H24)
    guest.write(A, 0x26)
    guest.seconds(0.49)
    assert guest.read(0) == 0x58
    guest.seconds(0.02)
    assert guest.read(0) == 0x59
    guest.seconds(1)
    assert guest.calendar() == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00]


def test_set_alone_keeps_the_phase_of_the_second(guest: Guest) -> None:
    """Given SET without a divider reset at 0.3 s into a second.

    Then the next update still comes 0.7 s later.
    """
    guest.seconds(0.3)
    guest.write(B, H24 | SET)
    guest.write(0, 0x30)
    guest.write(B, H24)
    guest.seconds(0.69)
    assert guest.read(0) == 0x30
    guest.seconds(0.02)
    assert guest.read(0) == 0x31


def test_writing_the_running_clock_changes_only_that_field(guest: Guest) -> None:
    """When the guest writes the year without SET, then the rest goes on."""
    guest.seconds(5)
    guest.write(9, 0x30)
    assert guest.calendar() == [0x20, 0x30, 0x11, 0x30, 0x12, 0x00, 0x05]


@pytest.mark.parametrize("garbage", [0x00, 0xFF, 0x9A, 0x60])
def test_values_that_no_calendar_has_do_no_harm(guest: Guest, garbage: int) -> None:
    """When every field is set to garbage, then the clock still runs and every field is readable."""
    guest.write(B, H24 | SET)
    guest.set_calendar(*[garbage] * 7)
    guest.write(B, H24)
    guest.seconds(2)
    assert len(guest.calendar()) == 7


def test_uip_announces_an_update(guest: Guest) -> None:
    """Given the start of a second.

    Then UIP is low; from 2228 us before the update it is high; then low again.
    """
    assert not guest.read(A) & UIP
    guest.seconds(0.9977)
    assert not guest.read(A) & UIP
    guest.seconds(0.0002)
    assert guest.read(A) & UIP
    guest.seconds(0.0021)
    assert not guest.read(A) & UIP
    assert guest.read(0) == 1


def test_uip_is_low_while_set(guest: Guest) -> None:
    """Given SET just before an update, then there is no update to announce."""
    guest.seconds(0.999)
    guest.write(B, H24 | SET)
    assert not guest.read(A) & UIP


def test_update_interrupt_once_a_second(guest: Guest) -> None:
    """Given UIE, when a second ends, then IRQ rises with UF and IRQF already set; reading C lowers it."""
    guest.write(B, H24 | UIE)
    guest.seconds(1)
    assert guest.wire.levels == [True]
    assert guest.wire.seen == [UF | IRQF | PF]
    assert guest.read(C) & (UF | IRQF) == UF | IRQF
    assert not guest.wire.high
    assert guest.read(C) == 0
    guest.seconds(3)
    assert guest.wire.rises == 2


def test_alarm_at_a_time_of_day(guest: Guest) -> None:
    """Given an alarm at 12:00:30, when that second comes, then IRQ rises with AF, and not again for a day."""
    for index, value in ((5, 0x12), (3, 0x00), (1, 0x30)):
        guest.write(index, value)
    guest.write(B, H24 | AIE)
    guest.seconds(29.9)
    assert not guest.wire.high
    guest.seconds(0.2)
    assert guest.wire.high
    assert guest.read(C) & AF
    guest.seconds(86_399)
    assert not guest.wire.high
    guest.seconds(1)
    assert guest.wire.high


def test_alarm_with_dont_care_fields(guest: Guest) -> None:
    """Given an alarm of any hour and any minute at second 5, then it comes every minute."""
    for index, value in ((5, 0xC0), (3, 0xFF), (1, 0x05)):
        guest.write(index, value)
    guest.write(B, H24 | AIE)
    rises = 0
    for _ in range(3):
        guest.seconds(60)
        rises += bool(guest.read(C) & AF)
    assert rises == 3


def test_flags_are_set_without_their_enables(guest: Guest) -> None:
    """Given no interrupt enabled, when a second passes, then UF and PF can be polled and IRQF stays clear."""
    guest.read(C)
    guest.seconds(1)
    assert guest.read(C) & (UF | PF | IRQF) == UF | PF
    assert guest.wire.levels == []


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (6, 1024), (13, 8), (15, 2)])
def test_periodic_interrupt_rates(guest: Guest, rate: int, hertz: int) -> None:
    """Given PIE at a rate of table 3, when C is read after each, then a second has that many interrupts."""
    guest.write(A, 0x20 | rate)
    guest.write(B, H24 | PIE)
    guest.read(C)
    guest.wire.levels.clear()
    guest.wire.look = lambda: None
    for _ in range(hertz):
        guest.seconds(1 / hertz)
        guest.read(C)
    assert guest.wire.rises == pytest.approx(hertz, abs=1)


def test_an_unread_periodic_interrupt_costs_nothing(guest: Guest) -> None:
    """Given 8192 Hz and a guest that does not read C.

    Then one interrupt comes and no alarm goes off after it.
    """
    guest.write(A, 0x23)
    guest.write(B, H24 | PIE)
    guest.seconds(1)
    assert guest.wire.rises == 1
    assert guest.clock.expired <= 1


def test_an_interrupt_due_while_the_last_is_acknowledged_is_a_new_edge(guest: Guest) -> None:
    """Given a slow host, when a period ends within the read of C, then the line still falls.

    An edge-triggered input would otherwise never see an interrupt again.
    """
    guest.write(B, H24 | PIE)
    guest.seconds(0.01)
    guest.wire.levels.clear()
    guest.clock.step = 1_000_000
    assert guest.read(C) & PF
    assert guest.wire.levels == [False, True]


def test_setting_the_clock_clears_the_update_enable(guest: Guest) -> None:
    """When SET is written, then UIE is cleared with it."""
    guest.write(B, H24 | SET | UIE)
    assert guest.read(B) == H24 | SET


def test_c_and_d_are_read_only(guest: Guest) -> None:
    """When the guest writes C and D, then nothing changes."""
    guest.write(C, 0xFF)
    guest.write(D, 0x00)
    assert (guest.read(C), guest.read(D)) == (0, 0x80)


def test_reset_keeps_time_and_memory_and_clears_enables(guest: Guest) -> None:
    """Given an interrupt pending and a cell written, when the board is reset.

    Then only enables and flags are gone.
    """
    guest.write(0x40, 0x5A)
    guest.write(B, H24 | UIE)
    guest.seconds(1.5)
    guest.chip.reset()
    assert not guest.wire.high
    assert guest.read(B) == H24
    assert guest.read(0x40) == 0x5A
    assert guest.read(0) == 0x01


def test_the_nmi_mask_is_not_part_of_the_index(guest: Guest) -> None:
    """When the index is written with bit 7 set.

    Then the same cell is chosen; the index port reads as ones.
    """
    guest.write(0x40, 0x77)
    guest.chip.write(0, 0xC0)
    assert guest.chip.read(1) == 0x77
    assert guest.chip.read(0) == 0xFF


@pytest.mark.parametrize(
    ("ram", "low", "above_1m", "above_16m", "above_4g"),
    [
        (64 * MIB, 64 * MIB, 63 * 1024, 48 * 16, 0),
        (8 * MIB, 8 * MIB, 7 * 1024, 0, 0),
        (6 * GIB, 3 * GIB, 0xFFFF, (3 * GIB - 16 * MIB) >> 16, 3 * GIB >> 16),
    ],
)
def test_cmos_tells_the_memory_size(ram: int, low: int, above_1m: int, above_16m: int, above_4g: int) -> None:
    """Given a machine, then its memory sizes are where firmware leaves them, under a right checksum."""
    cells = cmos_configuration(ram, low, 4)
    assert cells[0x15] | cells[0x16] << 8 == 640
    assert cells[0x17] | cells[0x18] << 8 == cells[0x30] | cells[0x31] << 8 == above_1m
    assert cells[0x34] | cells[0x35] << 8 == above_16m
    assert cells[0x5B] | cells[0x5C] << 8 | cells[0x5D] << 16 == above_4g
    assert cells[0x5F] == 3
    assert sum(cells.get(i, 0) for i in range(0x10, 0x2E)) == cells[0x2E] << 8 | cells[0x2F]
