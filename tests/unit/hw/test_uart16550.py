# SPDX-License-Identifier: GPL-2.0-or-later
"""16550A: what drivers probe, every interrupt source and its acknowledge, loopback, pacing."""

from typing import Any

import pytest
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.isa.uart16550 import Uart16550A

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
ERBFI, ETBEI, ELSI, EDSSI = 1, 2, 4, 8
NONE, MODEM, THRE, RDA, LINE, TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
FIFO = 0xC0
OUT2, LOOP, DLAB = 0x08, 0x10, 0x80
DR, OE, THR_EMPTY = 0x01, 0x02, 0x60


class Guest:
    """A port at 115200 baud, 8N1, interrupts let out by OUT2."""

    def __init__(self, clock: Any, wire: Any, chip: Any) -> None:
        self.clock = clock
        self.wire = wire
        self.console = ConsolePort()
        self.device = Uart16550A(clock, wire.line, self.console)
        self.chip = chip(self.device)
        self.write(LCR, DLAB)
        self.write(DATA, 1)
        self.write(IER, 0)
        self.write(LCR, 0x03)
        self.write(MCR, OUT2)

    def write(self, offset: int, value: int) -> None:
        self.chip.write(offset, value)

    def read(self, offset: int) -> int:
        return int(self.chip.read(offset))

    def sent(self) -> bytes:
        return self.console.read(0, 0)[0]

    def type(self, data: bytes) -> None:
        self.console.feed(data)

    def drain(self) -> bytes:
        data = bytearray()
        while self.read(LSR) & DR:
            data.append(self.read(DATA))
        return bytes(data)


@pytest.fixture
def guest(clock: Any, wire: Any, guest_access: Any) -> Guest:
    return Guest(clock, wire, guest_access)


def test_what_is_written_to_thr_appears_on_the_console(guest: Guest) -> None:
    """When the guest polls THRE and writes bytes, then the person reads them in order."""
    for byte in b"hello\r\n":
        assert guest.read(LSR) & THR_EMPTY == THR_EMPTY
        guest.write(DATA, byte)
    assert guest.sent() == b"hello\r\n"


def test_linux_finds_a_16550a(guest: Guest) -> None:
    """Given the probe of the 8250 driver: IER, scratch, loopback, FIFO bits, no EFR, no 16750.

    Then it is a 16550A.
    """
    guest.write(IER, 0)
    assert guest.read(IER) == 0
    guest.write(IER, 0xFF)
    assert guest.read(IER) == 0x0F
    guest.write(IER, 0)
    for value in (0x55, 0xAA):
        guest.write(SCR, value)
        assert guest.read(SCR) == value
    guest.write(MCR, LOOP | 0x0A)
    assert guest.read(MSR) & 0xF0 == 0x90
    guest.write(MCR, OUT2)
    guest.write(FCR, 1)
    assert guest.read(IIR) >> 6 == 3
    guest.write(LCR, DLAB)
    assert guest.read(IIR) != 0  # no enhanced feature register
    guest.write(FCR, 0x21)
    assert guest.read(IIR) >> 5 == 6  # no 64-byte FIFO
    guest.write(LCR, 0x03)
    guest.write(FCR, 0x21)
    assert guest.read(IIR) >> 5 == 6


def test_fifo_size_in_loopback_is_16(guest: Guest) -> None:
    """When 256 bytes are sent in loopback, then 16 are received before the overrun."""
    guest.write(FCR, 0x07)
    guest.write(MCR, LOOP)
    for value in range(256):
        guest.write(DATA, value)
    assert guest.read(LSR) & OE
    assert guest.drain() == bytes(range(16))
    assert guest.sent() == b""


def test_linux_thre_test_passes(guest: Guest) -> None:
    """Given serial8250's THRE test, when ETBEI goes from 0 to 1 twice, then IIR says THRE each time."""
    for _ in range(2):
        guest.write(IER, ETBEI)
        assert guest.read(IIR) == THRE
        guest.write(IER, 0)
        assert guest.read(IIR) == NONE


def test_reading_iir_acknowledges_thre_once(guest: Guest) -> None:
    """Given a THRE interrupt, when IIR is read.

    Then the line falls and THRE is not reported again until the next.
    """
    guest.write(IER, ETBEI)
    assert guest.wire.high
    assert guest.read(IIR) == THRE
    assert not guest.wire.high
    assert guest.read(IIR) == NONE
    guest.write(DATA, 65)
    assert guest.wire.high
    assert guest.read(IIR) == THRE


def test_a_burst_into_the_fifo_is_one_interrupt(guest: Guest) -> None:
    """Given a driver that fills the FIFO in its handler, then the 16 bytes raise the line once."""
    guest.write(FCR, 1)
    guest.write(IER, ETBEI)
    guest.read(IIR)
    guest.wire.levels.clear()
    for byte in b"0123456789abcdef":
        guest.write(DATA, byte)
    assert guest.wire.levels == [True]


def test_a_byte_sent_later_is_a_new_edge_even_unacknowledged(guest: Guest) -> None:
    """Given a THRE interrupt that nobody read from IIR, when a byte is sent a while later.

    Then there is a new edge.
    """
    guest.write(IER, ETBEI)
    guest.clock.advance_us(1000)
    guest.write(DATA, 65)
    assert guest.wire.levels == [True, False, True]


def test_writes_without_etbei_leave_the_line_alone(guest: Guest) -> None:
    """Given a polling console driver, then sending never touches the line."""
    for byte in b"polled":
        guest.write(DATA, byte)
    assert guest.wire.levels == []


def test_received_data_interrupts_at_the_trigger_level(guest: Guest) -> None:
    """Given a trigger level of 4.

    When three bytes have come, nothing; with the fourth it is received data.
    """
    guest.write(FCR, 0x41)
    guest.write(IER, ERBFI)
    guest.type(b"abc")
    assert guest.read(IIR) == FIFO | NONE
    guest.clock.advance_us(300)
    guest.type(b"d")
    assert guest.wire.high
    assert guest.read(IIR) == FIFO | RDA
    assert guest.drain() == b"abcd"
    assert not guest.wire.high
    assert guest.read(IIR) == FIFO | NONE


def test_a_few_characters_left_alone_time_out(guest: Guest) -> None:
    """Given a trigger level of 14 and one key pressed, when four characters' time passes, then it interrupts.

    Reading the character acknowledges it.
    """
    guest.write(FCR, 0xC1)
    guest.write(IER, ERBFI)
    guest.type(b"l")
    guest.clock.advance_us(340)
    assert not guest.wire.high
    guest.clock.advance_us(10)
    assert guest.wire.high
    assert guest.read(IIR) == FIFO | TIMEOUT
    assert guest.read(DATA) == ord("l")
    assert not guest.wire.high


def test_a_driver_that_reads_one_trigger_level_is_called_for_the_rest(guest: Guest) -> None:
    """Given 16 bytes and a handler that takes 14 and leaves.

    Then the line falls and the rest time out: a new edge.
    """
    guest.write(FCR, 0xC1)
    guest.write(IER, ERBFI)
    guest.type(b"0123456789abcdef")
    assert guest.read(IIR) == FIFO | RDA
    for _ in range(14):
        guest.read(DATA)
    assert guest.wire.levels == [True, False]
    guest.clock.advance_us(400)
    assert guest.wire.levels == [True, False, True]
    assert guest.read(IIR) == FIFO | TIMEOUT


def test_reading_a_character_starts_the_time_out_again(guest: Guest) -> None:
    """Given two characters that have timed out, when one is read.

    Then the other is left four characters more.
    """
    guest.write(FCR, 0xC1)
    guest.write(IER, ERBFI)
    guest.type(b"ls")
    guest.clock.advance_us(400)
    guest.read(DATA)
    assert not guest.wire.high
    guest.clock.advance_us(340)
    assert not guest.wire.high
    guest.clock.advance_us(10)
    assert guest.wire.high


def test_a_time_out_is_not_forgotten_behind_another_source(guest: Guest) -> None:
    """Given a THRE interrupt pending when a key is pressed, when it is acknowledged.

    Then the time-out still comes.
    """
    guest.write(FCR, 0xC1)
    guest.write(IER, ERBFI | ETBEI)
    guest.type(b"l")
    assert guest.read(IIR) == FIFO | THRE
    assert not guest.wire.high
    guest.clock.advance_us(400)
    assert guest.wire.high


def test_without_fifos_one_byte_is_there_at_a_time(guest: Guest) -> None:
    """Given FIFOs off, when two bytes are typed.

    Then the second comes a character time after the first is read.
    """
    guest.write(IER, ERBFI)
    guest.type(b"ab")
    assert guest.read(IIR) == RDA
    assert guest.read(DATA) == ord("a")
    assert not guest.read(LSR) & DR
    guest.clock.advance_us(87)
    assert guest.read(DATA) == ord("b")
    assert guest.read(LSR) & (DR | OE) == 0


def test_data_and_status_are_there_before_the_interrupt(guest: Guest) -> None:
    """When the line rises for a received byte, then LSR and IIR already tell of it."""
    guest.write(FCR, 1)
    guest.write(IER, ERBFI)
    guest.wire.look = lambda: (guest.device.lsr & DR, guest.device._pending())
    guest.type(b"x")
    assert guest.wire.seen == [(DR, RDA)]


def test_a_paste_never_stalls_however_slow_the_host(clock: Any, guest_access: Any, make_wire: Any) -> None:
    """Given hosts of any slowness, looking at the clock rarely, when a guest reads by interrupt alone.

    Then every interrupt comes and the whole paste arrives.
    """
    # The steps of some 15 us let the line fall free within the read of the last of 16 characters.
    for step in (*range(0, 1_500_000, 21_000), *range(8_000, 24_000, 100)):
        guest = Guest(clock, make_wire(), guest_access)
        guest.write(FCR, 0x81)
        guest.write(IER, ERBFI)
        clock.step = step
        guest.type(bytes(range(40)))
        received = bytearray()
        for _ in range(80):
            if guest.wire.high:
                received += guest.drain()
            clock.advance_us(100)
        clock.step = 0
        assert bytes(received) == bytes(range(40)), step


def test_pasted_text_is_paced_and_complete(guest: Guest) -> None:
    """Given a paste of 10,000 bytes, when the guest reads as fast as it can.

    Then all arrive at about 11,520 a second.
    """
    text = bytes(i & 0x7F for i in range(10_000))
    guest.write(FCR, 0x81)
    guest.write(IER, ERBFI)
    guest.type(text)
    received, start = bytearray(), guest.clock.time
    while len(received) < len(text):
        received += guest.drain()
        guest.clock.advance_us(200)
    assert bytes(received) == text
    assert (guest.clock.time - start) / 1e9 == pytest.approx(10_000 / 11_520, rel=0.1)


def test_a_guest_that_does_not_read_loses_nothing(guest: Guest) -> None:
    """Given a paste into a guest that sleeps.

    Then 16 bytes wait in the FIFO, the rest with the person, no overrun.
    """
    guest.write(FCR, 1)
    guest.type(b"x" * 100)
    guest.clock.advance_us(1_000_000)
    assert guest.console.input_left == 84
    assert not guest.read(LSR) & OE


def test_a_new_rate_ends_the_wait_of_the_old_one(guest: Guest) -> None:
    """Given a port at its slowest, its next characters a minute away, when it is set to 115200 baud.

    Then they come at that rate.
    """
    guest.write(FCR, 1)
    guest.write(LCR, DLAB | 0x03)
    guest.write(DATA, 0xFF)
    guest.write(IER, 0xFF)
    guest.write(LCR, 0x03)
    guest.type(b"x" * 32)
    assert len(guest.drain()) == 16
    guest.clock.advance_us(10_000)
    assert guest.drain() == b""
    guest.write(LCR, DLAB | 0x03)
    guest.write(DATA, 1)
    guest.write(IER, 0)
    guest.write(LCR, 0x03)
    assert len(guest.drain()) == 16


def test_line_status_outranks_data_and_is_acknowledged_by_lsr(guest: Guest) -> None:
    """Given an overrun in loopback with all sources enabled, then IIR says line status until LSR is read."""
    guest.write(MCR, LOOP)
    guest.write(IER, ERBFI | ETBEI | ELSI)
    guest.write(DATA, 1)
    guest.write(DATA, 2)
    assert guest.read(IIR) == LINE
    assert guest.read(LSR) & OE
    assert guest.read(IIR) == RDA
    assert guest.read(DATA) == 2
    assert guest.read(IIR) == THRE


def test_modem_status_interrupts_on_a_change_and_msr_acknowledges(guest: Guest) -> None:
    """Given EDSSI, when loopback changes the modem lines, then IIR says modem status until MSR is read."""
    guest.write(IER, EDSSI)
    assert guest.read(MSR) == 0xB0
    guest.write(MCR, LOOP)
    assert guest.read(IIR) == MODEM
    assert guest.read(MSR) == 0x0B
    assert guest.read(IIR) == NONE
    assert guest.read(MSR) == 0x00


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0F, 0xF0)]
)
def test_loopback_connects_modem_outputs_to_inputs(guest: Guest, mcr: int, msr: int) -> None:
    """Given loopback, then DTR is DSR, RTS is CTS, OUT1 is RI and OUT2 is DCD."""
    guest.write(MCR, LOOP | mcr)
    assert guest.read(MSR) & 0xF0 == msr


def test_the_trailing_edge_of_ri_is_remembered(guest: Guest) -> None:
    """Given RI in loopback, when it goes away, then TERI is set; when it came, it was not."""
    guest.write(MCR, LOOP | 0x04)
    assert not guest.read(MSR) & 0x04
    guest.write(MCR, LOOP)
    assert guest.read(MSR) & 0x04


def test_out2_lets_the_interrupt_out(guest: Guest) -> None:
    """Given a pending interrupt, when OUT2 is cleared, then the line falls; IIR still tells of it."""
    guest.write(IER, ETBEI)
    guest.write(MCR, 0)
    assert not guest.wire.high
    guest.write(MCR, OUT2)
    assert guest.wire.high


def test_the_divisor_hides_behind_dlab(guest: Guest) -> None:
    """Given DLAB, then offsets 0 and 1 are the divisor, and IER and the data are as before after it."""
    guest.write(IER, ERBFI)
    guest.write(LCR, DLAB | 0x03)
    guest.write(DATA, 0x34)
    guest.write(IER, 0x12)
    assert (guest.read(DATA), guest.read(IER)) == (0x34, 0x12)
    guest.write(LCR, 0x03)
    assert guest.read(IER) == ERBFI
    assert guest.sent() == b""


def test_a_guest_that_never_programs_the_line_still_talks_in_octets(guest: Guest) -> None:
    """Given the line control of a reset chip (5 bits), when bytes go both ways.

    Then all eight bits arrive.
    """
    guest.chip.reset()
    guest.type(b"\xc1")
    assert guest.read(DATA) == 0xC1
    guest.write(DATA, 0xC2)
    assert guest.sent() == b"\xc2"


def test_clearing_the_receiver_fifo(guest: Guest) -> None:
    """Given bytes in the FIFO, when the guest resets the receiver, then they are gone and DR is clear."""
    guest.write(FCR, 1)
    guest.type(b"abc")
    guest.write(FCR, 3)
    assert not guest.read(LSR) & DR


def test_fcr_bits_need_the_enable(guest: Guest) -> None:
    """When the trigger is written without FIFO enable, then FIFOs stay off."""
    guest.write(FCR, 0xC0)
    assert guest.read(IIR) == NONE


def test_reset_is_as_power_on(guest: Guest) -> None:
    """Given a programmed port with data, when the board is reset, then enables, modes and data are gone."""
    guest.write(FCR, 1)
    guest.write(IER, ERBFI | ETBEI)
    guest.type(b"x")
    guest.chip.reset()
    assert not guest.wire.high
    assert [guest.read(offset) for offset in (IER, IIR, LCR, MCR, LSR)] == [0, NONE, 0, 0, 0x60]
