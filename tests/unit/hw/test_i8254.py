# SPDX-License-Identifier: GPL-2.0-or-later
"""8254: the six modes, latching and reading back, the gate and the speaker port."""

from typing import Any

import pytest
from coremesh.hw.isa.i8254 import COALESCED_TICKS, PIT_HZ, Pit8254, to_ns, to_ticks

C0, C1, C2, CONTROL, PORT_B = range(5)
LATCH, LOW_BYTE, HIGH_BYTE, BOTH = range(4)
NULL, OUT = 0x40, 0x80


class Guest:
    def __init__(self, clock: Any, wire: Any, chip: Any) -> None:
        clock.time = to_ns(1_000_000)
        self.clock = clock
        self.wire = wire
        self.device = Pit8254(clock, wire.line)
        self.chip = chip(self.device)

    def control(self, counter: int, access: int, mode: int, bcd: int = 0) -> None:
        self.chip.write(CONTROL, counter << 6 | access << 4 | mode << 1 | bcd)

    def program(self, counter: int, mode: int, count: int, bcd: int = 0) -> None:
        self.control(counter, BOTH, mode, bcd)
        self.load(counter, count)

    def load(self, counter: int, count: int) -> None:
        self.chip.write(counter, count & 0xFF)
        self.chip.write(counter, count >> 8)

    def count(self, counter: int) -> int:
        self.control(counter, LATCH, 0)
        return int(self.chip.read(counter)) | int(self.chip.read(counter)) << 8

    def status(self, counter: int) -> int:
        self.chip.write(CONTROL, 0xE0 | 2 << counter)
        return int(self.chip.read(counter))

    def out(self, counter: int) -> bool:
        return bool(self.status(counter) & OUT)

    def ticks(self, count: int) -> None:
        self.clock.advance(to_ns(to_ticks(self.clock.time) + count) - self.clock.time)

    def waveform(self, counter: int, length: int) -> str:
        levels = ""
        for _ in range(length):
            levels += "-" if self.out(counter) else "_"
            self.ticks(1)
        return levels

    def gate(self, level: bool) -> None:
        self.chip.write(PORT_B, int(level))


@pytest.fixture
def guest(clock: Any, wire: Any, guest_access: Any) -> Guest:
    return Guest(clock, wire, guest_access)


def test_mode_0_interrupts_once_at_the_terminal_count(guest: Guest) -> None:
    """When mode 0 is loaded with 1000.

    Then OUT goes low at the control word and rises after 1000 clocks, once.
    """
    guest.program(C0, 0, 1000)
    assert not guest.out(C0)
    guest.ticks(999)
    assert not guest.wire.high
    guest.ticks(1)
    assert guest.wire.high
    guest.ticks(200_000)
    assert guest.wire.rises == 1


def test_mode_0_counts_on_through_zero(guest: Guest) -> None:
    """Given a terminal count reached, then the counter wraps and goes on."""
    guest.program(C0, 0, 10)
    guest.ticks(12)
    assert guest.count(C0) == 0xFFFE


def test_mode_0_stops_between_the_two_bytes_of_a_new_count(guest: Guest) -> None:
    """When the low byte of a new count is written.

    Then OUT is low and nothing comes until the high byte is there.
    """
    guest.program(C0, 0, 10)
    guest.chip.write(C0, 5)
    guest.ticks(1000)
    assert not guest.out(C0)
    assert guest.wire.rises == 0
    guest.chip.write(C0, 0)
    guest.ticks(5)
    assert guest.wire.rises == 1


def test_mode_2_is_a_rate_generator_without_drift(guest: Guest) -> None:
    """When counter 0 divides by 1193 in mode 2, then it interrupts 1000 times in 1,193,000 clocks."""
    guest.program(C0, 2, 1193)
    rises = guest.wire.rises
    guest.ticks(1_193_000)
    assert guest.wire.rises - rises == 1000


def test_mode_2_is_low_for_the_last_clock_of_a_period(guest: Guest) -> None:
    """Given a count of 4 on counter 2 with its gate open, then OUT is high for 3 clocks and low for 1."""
    guest.gate(True)
    guest.program(C2, 2, 4)
    assert guest.waveform(C2, 12) == "---_---_---_"


@pytest.mark.parametrize(("count", "wave"), [(4, "--__--__"), (5, "---__---__")])
def test_mode_3_is_a_square_wave(guest: Guest, count: int, wave: str) -> None:
    """Given mode 3, then an even count is half high, half low; an odd one is high for one clock longer."""
    guest.gate(True)
    guest.program(C2, 3, count)
    assert guest.waveform(C2, len(wave)) == wave


def test_mode_3_counts_by_two(guest: Guest) -> None:
    """Given a count of 8 in mode 3, then it reads 8, 6, 4, 2 in each half."""
    guest.gate(True)
    guest.program(C2, 3, 8)
    values = []
    for _ in range(8):
        values.append(guest.count(C2))
        guest.ticks(1)
    assert values == [8, 6, 4, 2] * 2


def test_mode_3_interrupts_once_a_period(guest: Guest) -> None:
    """When counter 0 runs in mode 3 at 18.2 Hz (count 0 is 65536), then ten periods are ten interrupts."""
    guest.program(C0, 3, 0)
    rises = guest.wire.rises
    guest.ticks(655_360)
    assert guest.wire.rises - rises == 10


def test_mode_4_strobes_once_for_each_count_written(guest: Guest) -> None:
    """Given Linux's one-shot timer (mode 4), when a count is written.

    Then one interrupt follows the strobe.
    """
    guest.program(C0, 4, 500)
    rises = guest.wire.rises
    guest.ticks(500)
    assert not guest.out(C0)
    guest.ticks(1)
    assert guest.out(C0)
    assert guest.wire.rises - rises == 1
    guest.ticks(100_000)
    assert guest.wire.rises - rises == 1
    guest.load(C0, 300)
    guest.ticks(301)
    assert guest.wire.rises - rises == 2


def test_mode_1_is_a_one_shot_that_the_gate_triggers(guest: Guest) -> None:
    """Given mode 1 on counter 2, when its gate rises.

    Then OUT is low for the count; another rise starts it again.
    """
    guest.program(C2, 1, 4)
    assert guest.waveform(C2, 3) == "---"
    guest.gate(True)
    assert guest.waveform(C2, 3) == "___"
    guest.gate(False)
    guest.gate(True)
    assert guest.waveform(C2, 6) == "____--"


def test_mode_5_strobes_after_a_trigger(guest: Guest) -> None:
    """Given mode 5 on counter 2, when its gate rises.

    Then OUT strobes low for one clock at the end of the count.
    """
    guest.program(C2, 5, 3)
    guest.ticks(10)
    guest.gate(True)
    assert guest.waveform(C2, 6) == "---_--"


def test_a_new_count_takes_over_at_the_end_of_the_period(guest: Guest) -> None:
    """Given mode 2 dividing by 6, when 3 is written in the middle of a period.

    Then that period ends as it began.
    """
    guest.gate(True)
    guest.program(C2, 2, 6)
    guest.ticks(2)
    guest.load(C2, 3)
    assert guest.status(C2) & NULL
    assert guest.waveform(C2, 10) == "---_--_--_"
    assert not guest.status(C2) & NULL


def test_a_new_count_takes_over_at_the_half_period_of_a_square_wave(guest: Guest) -> None:
    """Given mode 3 dividing by 8, when 4 is written in the high half.

    Then the low half is already that of 4.
    """
    guest.gate(True)
    guest.program(C2, 3, 8)
    guest.ticks(1)
    guest.load(C2, 4)
    assert guest.waveform(C2, 11) == "---__--__--"


def test_interrupts_follow_a_new_square_wave_count(guest: Guest) -> None:
    """Given counter 0 in mode 3, when its count changes in the high half.

    Then the next rise ends the new low half.
    """
    guest.program(C0, 3, 10_000)
    rises = guest.wire.rises
    guest.ticks(1000)
    guest.load(C0, 2000)
    guest.ticks(4999)
    assert guest.wire.rises == rises
    guest.ticks(1)
    assert guest.wire.rises == rises + 1
    guest.ticks(2000)
    assert guest.wire.rises == rises + 2


def test_the_gate_holds_and_releases_a_count(guest: Guest) -> None:
    """Given mode 0 on counter 2, when its gate is closed for a while.

    Then the count stands still for that long.
    """
    guest.gate(True)
    guest.program(C2, 0, 100)
    guest.ticks(40)
    guest.gate(False)
    guest.ticks(1000)
    assert guest.count(C2) == 60
    guest.gate(True)
    guest.ticks(59)
    assert not guest.out(C2)
    guest.ticks(1)
    assert guest.out(C2)


def test_the_gate_restarts_a_rate_generator(guest: Guest) -> None:
    """Given mode 2, when the gate goes low, then OUT is high; when it rises, then a whole period begins."""
    guest.gate(True)
    guest.program(C2, 2, 4)
    guest.ticks(3)
    guest.gate(False)
    assert guest.out(C2)
    guest.ticks(5)
    guest.gate(True)
    assert guest.waveform(C2, 5) == "---_-"


def test_a_latched_count_stands_still_until_it_is_read(guest: Guest) -> None:
    """When the count is latched.

    Then both bytes are of that moment, and a second latch before the read is ignored.
    """
    guest.gate(True)
    guest.program(C2, 0, 0x1234)
    guest.control(C2, LATCH, 0)
    guest.ticks(0x100)
    guest.control(C2, LATCH, 0)
    assert (guest.chip.read(C2), guest.chip.read(C2)) == (0x34, 0x12)
    assert guest.count(C2) == 0x1134


def test_without_a_latch_the_two_bytes_alternate(guest: Guest) -> None:
    """When the guest reads twice without latching.

    Then it gets the low and the high byte of the running count.
    """
    guest.gate(True)
    guest.program(C2, 0, 0x1234)
    assert (guest.chip.read(C2), guest.chip.read(C2)) == (0x34, 0x12)


@pytest.mark.parametrize(("access", "loaded", "read"), [(LOW_BYTE, 0x34, 0x34), (HIGH_BYTE, 0x3400, 0x34)])
def test_single_byte_access(guest: Guest, access: int, loaded: int, read: int) -> None:
    """Given access to one byte only, then one write loads the count and one read gives that byte."""
    guest.gate(True)
    guest.control(C2, access, 0)
    guest.chip.write(C2, 0x34)
    assert guest.chip.read(C2) == read
    guest.ticks(loaded)
    assert guest.out(C2)


def test_read_back_latches_status_before_count(guest: Guest) -> None:
    """When status and count are latched together.

    Then the status is read first, with mode, access and OUT.
    """
    guest.gate(True)
    guest.program(C2, 2, 1000)
    guest.chip.write(CONTROL, 0xC0 | 2 << C2)
    assert guest.chip.read(C2) == OUT | BOTH << 4 | 2 << 1
    assert (guest.chip.read(C2), guest.chip.read(C2)) == (1000 & 0xFF, 1000 >> 8)


def test_null_count_says_that_a_count_is_awaited(guest: Guest) -> None:
    """Given only a control word, then null count is set; once the count is there it is clear."""
    guest.control(C0, BOTH, 2)
    assert guest.status(C0) & NULL
    guest.load(C0, 1000)
    assert not guest.status(C0) & NULL


def test_bcd_counts_in_decimal(guest: Guest) -> None:
    """Given BCD, when 0x1000 is loaded and one clock passes, then the count reads 0x0999; 0 means 10000."""
    guest.gate(True)
    guest.program(C2, 0, 0x1000, bcd=1)
    guest.ticks(1)
    assert guest.count(C2) == 0x0999
    guest.program(C2, 0, 0, bcd=1)
    guest.ticks(1)
    assert guest.count(C2) == 0x9999


def test_speaker_port_shows_gate_data_and_out(guest: Guest) -> None:
    """Given Linux's TSC calibration: gate on, speaker off, mode 0; then bit 5 of port B rises at the end."""
    guest.chip.write(PORT_B, 0x01)
    guest.program(C2, 0, PIT_HZ // 100)
    assert guest.chip.read(PORT_B) & 0x2F == 0x01
    guest.ticks(PIT_HZ // 100)
    assert guest.chip.read(PORT_B) & 0x2F == 0x21


def test_refresh_bit_toggles_every_15_microseconds(guest: Guest) -> None:
    """When the guest watches bit 4 of port B.

    Then it changes about every 15 us, which old delay loops count.
    """
    changes, last = 0, guest.chip.read(PORT_B) & 0x10
    for _ in range(1000):
        guest.clock.advance_us(1)
        now = guest.chip.read(PORT_B) & 0x10
        changes, last = changes + (now != last), now
    assert 64 <= changes <= 68


def test_a_tiny_count_does_not_flood_the_host(guest: Guest) -> None:
    """Given a guest that asks for 600,000 interrupts a second.

    Then at most 10,000 alarms go off in a second.
    """
    guest.program(C0, 2, 2)
    guest.clock.expired = 0
    guest.ticks(PIT_HZ // 10)
    assert 900 <= guest.clock.expired <= PIT_HZ // 10 // COALESCED_TICKS + 1


def test_without_an_armed_counter_nothing_wakes(guest: Guest) -> None:
    """Given counters 1 and 2 running and counter 0 not, then no alarm goes off."""
    guest.gate(True)
    guest.program(C1, 2, 18)
    guest.program(C2, 3, 1000)
    guest.ticks(1_000_000)
    assert guest.clock.expired == 0


def test_the_control_word_cannot_be_read(guest: Guest) -> None:
    """When the guest reads the control port, then it reads all ones."""
    assert guest.chip.read(CONTROL) == 0xFF


def test_reset_stops_everything(guest: Guest) -> None:
    """Given a running timer, when the board is reset.

    Then no interrupt comes any more and the gate is closed.
    """
    guest.program(C0, 2, 1000)
    guest.gate(True)
    guest.chip.reset()
    rises = guest.wire.rises
    guest.ticks(100_000)
    assert guest.wire.rises == rises
    assert guest.chip.read(PORT_B) & 0x0F == 0
