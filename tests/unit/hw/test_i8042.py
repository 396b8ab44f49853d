# SPDX-License-Identifier: GPL-2.0-or-later
"""8042: the probe of an operating system, the keyboard behind it, the reset line, A20."""

from typing import Any

import pytest
from coremesh.hw.backend.keys import KEYS
from coremesh.hw.isa.i8042 import Keyboard8042
from coremesh.hw.isa.ps2_keyboard import RELEASE
from coremesh.hw.power import PowerEvent

DATA, COMMAND = 0, 4
A = KEYS["a"]
OBF, SYS, CD, AUX, TIMEOUT = 0x01, 0x04, 0x08, 0x20, 0x40


class Guest:
    def __init__(self, wire: Any, power: list[PowerEvent], chip: Any) -> None:
        self.wire = wire
        self.power = power
        self.device = Keyboard8042(wire.line, power.append)
        self.chip = chip(self.device)

    def command(self, value: int) -> None:
        self.chip.write(COMMAND, value)

    def send(self, value: int) -> None:
        self.chip.write(DATA, value)

    def status(self) -> int:
        return int(self.chip.read(COMMAND))

    def answer(self) -> int:
        assert self.status() & OBF, "the controller has nothing to say"
        return int(self.chip.read(DATA))


@pytest.fixture
def guest(wire: Any, power: list[PowerEvent], guest_access: Any) -> Guest:
    return Guest(wire, power, guest_access)


def test_it_is_empty_and_ready_after_reset(guest: Guest) -> None:
    """Given a controller out of reset, then its output is empty (so flushing ends) and it accepts input."""
    assert guest.status() & 0x03 == 0


def test_self_test_passes(guest: Guest) -> None:
    """When the guest commands the self test, then it reads 0x55 and SYS is set in the status."""
    guest.command(0xAA)
    assert guest.status() & (OBF | SYS | CD) == OBF | SYS | CD
    assert guest.answer() == 0x55
    assert not guest.status() & OBF


def test_linux_probes_the_controller(guest: Guest) -> None:
    """Given Linux's probe: read the command byte twice, disable both ports, write it back; then it holds."""
    guest.command(0x20)
    first = guest.answer()
    guest.command(0x20)
    assert guest.answer() == first
    guest.command(0x60)
    guest.send((first | 0x10) & ~0x03)
    guest.command(0x20)
    assert guest.answer() & 0x13 == 0x10


def test_there_is_no_auxiliary_port(guest: Guest) -> None:
    """When Linux probes for a mouse port by AUX LOOP and AUX TEST, then both answers say at once: none.

    The loop's byte comes back without the AUX bit in the status, the test reports a stuck line.
    """
    guest.command(0xD3)
    guest.send(0x5A)
    assert not guest.status() & AUX
    guest.answer()
    guest.command(0xA9)
    assert guest.answer() not in (0x00, 0xFA, 0xFF)
    guest.command(0xD4)
    guest.send(0xFF)
    assert guest.status() & TIMEOUT and guest.answer() == 0xFE


def test_the_keyboard_interface_is_sound(guest: Guest) -> None:
    """When the guest tests the keyboard's lines, then they are not stuck."""
    guest.command(0xAB)
    assert guest.answer() == 0x00


def test_it_comes_out_of_reset_as_firmware_leaves_it(guest: Guest) -> None:
    """Given a kernel that programs nothing, when a key is pressed, then IRQ 1 comes with set 1's code."""
    assert guest.status() & SYS
    guest.device.press([A, A | RELEASE])
    assert guest.wire.high
    assert [guest.answer(), guest.answer()] == [0x1E, 0x9E]
    assert not guest.wire.high


def test_a_disabled_keyboard_waits(guest: Guest) -> None:
    """Given the keyboard's clock held low, when a key is pressed, then its code comes once it is released."""
    guest.command(0xAD)
    guest.device.press([A])
    assert not guest.status() & OBF
    guest.command(0xAE)
    assert guest.answer() == 0x1E


def test_a_byte_for_the_keyboard_enables_it(guest: Guest) -> None:
    """Given a disabled keyboard, when the guest sends it a command, then the answer comes."""
    guest.command(0xAD)
    guest.send(0xEE)
    assert guest.answer() == 0xEE
    guest.command(0x20)
    assert not guest.answer() & 0x10


def test_without_translation_the_guest_gets_set_2(guest: Guest) -> None:
    """Given the command byte without XLATE, then codes come as the keyboard sends them."""
    guest.command(0x60)
    guest.send(0x01)
    guest.device.press([A, A | RELEASE])
    assert [guest.answer() for _ in range(3)] == [0x1C, 0xF0, 0x1C]


def test_a_translated_identity_is_what_drivers_know(guest: Guest) -> None:
    """When Linux identifies the keyboard behind a translating controller, then it reads AB 41."""
    guest.send(0xF2)
    assert [guest.answer() for _ in range(3)] == [0xFA, 0xAB, 0x41]


def test_the_controllers_answer_comes_before_waiting_keys(guest: Guest) -> None:
    """Given keys that wait, when the guest asks the controller, then its answer is the next byte."""
    guest.device.press([A, A | RELEASE, A, A | RELEASE])
    assert guest.answer() == 0x1E
    guest.command(0x20)
    seen = [guest.answer() for _ in range(4)]
    assert seen == [0x9E, 0x65, 0x1E, 0x9E]


def test_an_answer_interrupts_when_allowed(guest: Guest) -> None:
    """Given the interrupt enabled in the command byte, when a byte waits.

    Then IRQ 1 is high until it is read.
    """
    guest.wire.look = lambda: (guest.device.status & OBF, guest.device._data)
    guest.command(0x60)
    guest.send(0x01)
    guest.send(0xEE)
    assert guest.wire.high
    assert guest.wire.seen == [(OBF, 0xEE)]
    guest.answer()
    assert not guest.wire.high


def test_each_queued_byte_is_an_edge(guest: Guest) -> None:
    """Given two bytes waiting, when the first is read, then the line falls and rises for the second."""
    guest.command(0x60)
    guest.send(0x01)
    guest.command(0xAB)
    guest.command(0x20)
    assert guest.answer() == 0x00
    assert guest.wire.levels == [True, False, True]
    assert guest.answer() & 0x01


def test_without_the_enable_no_interrupt(guest: Guest) -> None:
    """Given KBDINT clear in the command byte, then answers are polled only."""
    guest.command(0x60)
    guest.send(0x40)
    guest.command(0xAB)
    assert not guest.wire.high


@pytest.mark.parametrize("command", [0xFE, 0xF0, 0xFC])
def test_pulsing_output_bit_0_resets(guest: Guest, command: int) -> None:
    """When Linux reboots by 0xFE, or another pulse that includes bit 0.

    Then the machine's owner hears of a reset.
    """
    guest.command(command)
    assert [event.kind for event in guest.power] == ["reset"]


def test_pulsing_nothing_does_nothing(guest: Guest) -> None:
    """When the guest pulses no bit (0xFF) or others than bit 0, then nothing happens."""
    guest.command(0xFF)
    guest.command(0xFD)
    assert guest.power == []


def test_writing_the_output_port_can_reset_and_gate_a20(guest: Guest) -> None:
    """When the guest writes the output port, then A20 follows bit 1; with bit 0 clear it resets."""
    guest.command(0xD1)
    guest.send(0x01)
    guest.command(0xD0)
    assert guest.answer() & 0x03 == 0x01
    guest.command(0xD1)
    guest.send(0x03)
    guest.command(0xD0)
    assert guest.answer() & 0x03 == 0x03
    assert guest.power == []
    guest.command(0xD1)
    guest.send(0x02)
    assert [event.kind for event in guest.power] == ["reset"]


def test_a20_commands(guest: Guest) -> None:
    """When the guest uses the one-byte A20 commands, then the output port shows them."""
    guest.command(0xDD)
    guest.command(0xD0)
    assert not guest.answer() & 0x02
    guest.command(0xDF)
    guest.command(0xD0)
    assert guest.answer() & 0x02


def test_keyboard_enable_and_disable_show_in_the_command_byte(guest: Guest) -> None:
    """When the port is enabled or disabled by command, then bit 4 of the command byte follows."""
    for command, bit in ((0xAE, 0x00), (0xAD, 0x10)):
        guest.command(command)
        guest.command(0x20)
        assert guest.answer() & 0x10 == bit


def test_controller_ram(guest: Guest) -> None:
    """When the guest writes RAM address 5, then it reads it back."""
    guest.command(0x65)
    guest.send(0x99)
    guest.command(0x25)
    assert guest.answer() == 0x99


def test_loop_through_the_output_buffer(guest: Guest) -> None:
    """When the guest asks for a byte as if the keyboard had sent it, then it reads that byte."""
    guest.command(0xD2)
    guest.send(0x1C)
    assert guest.answer() == 0x1C


def test_a_command_cancels_an_awaited_parameter(guest: Guest) -> None:
    """Given a command that waits for its parameter, when another command comes.

    Then the next byte is the keyboard's.
    """
    guest.command(0x60)
    guest.command(0xAE)
    guest.send(0x00)
    assert guest.answer() == 0xFE


def test_a_guest_that_never_reads_fills_a_bounded_queue(guest: Guest) -> None:
    """When a thousand bytes are sent and none is read, then only so many wait, and reading ends."""
    for _ in range(1000):
        guest.send(0xF2)
    reads = 0
    while guest.status() & OBF:
        guest.answer()
        reads += 1
    assert 1 <= reads <= 17
