# SPDX-License-Identifier: GPL-2.0-or-later
"""82093AA: what a guest programs into a pin is what the processors hear."""

from typing import Any

import pytest
from coremesh.hw.isa.ioapic import IoApic82093AA

LEVEL, LOW, MASKED, LOGICAL, REMOTE_IRR = 1 << 15, 1 << 13, 1 << 16, 1 << 11, 1 << 14


class Guest:
    def __init__(self, fabric: Any, chip: Any) -> None:
        self.device = IoApic82093AA(fabric)
        self.fabric = fabric
        self.chip = chip(self.device)

    def write(self, index: int, value: int) -> None:
        self.chip.write(0x00, index, 4)
        self.chip.write(0x10, value, 4)

    def read(self, index: int) -> int:
        self.chip.write(0x00, index, 4)
        return int(self.chip.read(0x10, 4))

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        self.write(0x11 + 2 * pin, destination << 24)
        self.write(0x10 + 2 * pin, low)

    def entry(self, pin: int) -> int:
        return self.read(0x10 + 2 * pin)

    def line(self, pin: int, level: bool) -> None:
        self.device.pin(pin)(level)


@pytest.fixture
def guest(fabric: Any, guest_access: Any) -> Guest:
    return Guest(fabric, guest_access)


def test_after_reset_24_pins_are_masked_and_the_version_says_so(guest: Guest) -> None:
    """Given a chip out of reset, then its version register counts 24 entries and each of them is masked."""
    assert guest.read(1) == 23 << 16 | 0x20
    assert [guest.entry(pin) for pin in range(24)] == [MASKED] * 24


def test_the_id_is_writable_and_arbitration_follows(guest: Guest) -> None:
    """When the guest gives the chip an id.

    Then only bits 24-27 take it and the arbitration id is the same.
    """
    guest.write(0, 0xFFFFFFFF)
    assert guest.read(0) == guest.read(2) == 0x0F000000


def test_an_edge_is_one_message_with_vector_and_destination(guest: Guest) -> None:
    """Given pin 4 routed to APIC 3, when its line rises and stays.

    Then one fixed edge message goes to APIC 3.
    """
    guest.program(4, 0x31, destination=3)
    guest.line(4, True)
    guest.line(4, False)
    assert guest.fabric.messages == [(0xFEE03000, 0x4031)]


@pytest.mark.parametrize(
    ("low", "address", "data"),
    [
        (0x40 | LOGICAL, 0xFEE05004, 0x4040),
        (0x40 | 1 << 8 | LOGICAL, 0xFEE0500C, 0x4140),
        (0x40 | 1 << 8 | LEVEL, 0xFEE05008, 0xC140),
        (0x02 | 2 << 8, 0xFEE05000, 0x4202),
        (0x00 | 4 << 8, 0xFEE05000, 0x4400),
        (0x00 | 5 << 8, 0xFEE05000, 0x4500),
        (0x00 | 7 << 8, 0xFEE05000, 0x4700),
        (0x00 | 7 << 8 | LEVEL, 0xFEE05000, 0x4700),
    ],
    ids=["logical", "lowest", "lowest level", "SMI", "NMI", "INIT", "ExtINT", "ExtINT is an edge"],
)
def test_delivery_modes_reach_the_message(guest: Guest, low: int, address: int, data: int) -> None:
    """Given a pin programmed for a delivery mode, when it rises, then the message is that of SDM 3A 11.11."""
    guest.program(5, low, destination=5)
    guest.line(5, True)
    assert guest.fabric.messages == [(address, data)]


def test_an_edge_on_a_masked_pin_is_lost(guest: Guest) -> None:
    """Given a masked edge pin, when its line rises and the pin is unmasked later, then nothing comes."""
    guest.program(4, 0x31 | MASKED)
    guest.line(4, True)
    guest.program(4, 0x31)
    assert guest.fabric.messages == []


def test_a_level_on_a_masked_pin_is_kept(guest: Guest) -> None:
    """Given a masked level pin whose line is high, when it is unmasked, then the interrupt comes."""
    guest.program(9, 0x51 | LEVEL | MASKED)
    guest.line(9, True)
    assert guest.fabric.messages == []
    guest.program(9, 0x51 | LEVEL)
    assert guest.fabric.vectors == [0x51]


def test_a_level_interrupt_waits_for_its_eoi(guest: Guest) -> None:
    """Given a level interrupt in service, when its line toggles.

    Then no second message goes out before the EOI.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    assert guest.entry(9) & REMOTE_IRR
    guest.line(9, False)
    guest.line(9, True)
    assert guest.fabric.vectors == [0x51]
    guest.device.eoi(0x51)
    assert guest.fabric.vectors == [0x51, 0x51]


def test_eoi_with_the_line_low_ends_it(guest: Guest) -> None:
    """Given a serviced device that has lowered its line, when the EOI comes.

    Then remote IRR is clear and all is quiet.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    guest.line(9, False)
    guest.device.eoi(0x51)
    assert not guest.entry(9) & REMOTE_IRR
    assert guest.fabric.vectors == [0x51]


def test_eoi_of_another_vector_changes_nothing(guest: Guest) -> None:
    """When another vector ends, then this pin still waits."""
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    guest.device.eoi(0x52)
    assert guest.entry(9) & REMOTE_IRR
    assert guest.fabric.vectors == [0x51]


def test_pins_that_share_a_vector_are_ended_together(guest: Guest) -> None:
    """Given two level pins with one vector, when it ends.

    Then each whose line is still high interrupts again.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.program(10, 0x51 | LEVEL)
    guest.line(9, True)
    guest.line(10, True)
    guest.line(9, False)
    guest.device.eoi(0x51)
    assert guest.fabric.vectors == [0x51, 0x51, 0x51]
    assert not guest.entry(9) & REMOTE_IRR
    assert guest.entry(10) & REMOTE_IRR


def test_the_eoi_register_does_what_the_broadcast_does(guest: Guest) -> None:
    """Given a guest that suppresses EOI broadcasts, when it writes the vector to the EOI register.

    Then that ends it.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    guest.chip.write(0x40, 0x51, 4)
    assert guest.fabric.vectors == [0x51, 0x51]


def test_masking_during_service_holds_the_redelivery_back(guest: Guest) -> None:
    """Given a level interrupt masked by its handler, when the EOI comes.

    Then it repeats only once unmasked.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    guest.write(0x10 + 2 * 9, 0x51 | LEVEL | MASKED)
    guest.device.eoi(0x51)
    assert guest.fabric.vectors == [0x51]
    guest.write(0x10 + 2 * 9, 0x51 | LEVEL)
    assert guest.fabric.vectors == [0x51, 0x51]


def test_active_low_pins_see_the_line_the_other_way_round(guest: Guest) -> None:
    """Given PCI pin 16, idle high and programmed active low, when its line falls, then it interrupts."""
    guest.program(16, 0x61 | LEVEL | LOW)
    assert guest.fabric.messages == []
    guest.line(16, False)
    assert guest.fabric.vectors == [0x61]
    guest.line(16, True)
    guest.device.eoi(0x61)
    assert guest.fabric.vectors == [0x61]


def test_an_active_low_edge_is_the_falling_one(guest: Guest) -> None:
    """Given an edge pin active low, when the line rises, nothing; when it falls, one message."""
    guest.program(3, 0x33 | LOW)
    guest.line(3, True)
    assert guest.fabric.messages == []
    guest.line(3, False)
    assert guest.fabric.vectors == [0x33]


def test_status_bits_are_read_only(guest: Guest) -> None:
    """When the guest writes ones to delivery status and remote IRR, then they stay as they are."""
    guest.program(9, 0x51 | LEVEL | 1 << 12 | REMOTE_IRR)
    assert guest.entry(9) == 0x51 | LEVEL
    guest.line(9, True)
    guest.write(0x10 + 2 * 9, 0x51 | LEVEL)
    assert guest.entry(9) & REMOTE_IRR


def test_switching_to_edge_clears_a_stuck_remote_irr(guest: Guest) -> None:
    """Given a level interrupt whose EOI never came, when the pin is set to edge and back.

    Then it works again.
    """
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    guest.write(0x10 + 2 * 9, 0x51 | MASKED)
    guest.write(0x10 + 2 * 9, 0x51 | MASKED | LEVEL)
    assert not guest.entry(9) & REMOTE_IRR
    guest.write(0x10 + 2 * 9, 0x51 | LEVEL)
    assert guest.fabric.vectors == [0x51, 0x51]


def test_registers_that_do_not_exist_read_as_zero_and_ignore_writes(guest: Guest) -> None:
    """When the guest goes beyond the 24 entries, then there is nothing."""
    for index in (3, 0x0F, 0x40, 0xFF):
        guest.write(index, 0xFFFFFFFF)
        assert guest.read(index) == 0


def test_a_person_can_see_what_is_routed(guest: Guest) -> None:
    """Given one routed pin, then the shown registers have its bits by their datasheet names and its count."""
    guest.program(9, 0x51 | LEVEL)
    guest.line(9, True)
    shown = guest.device.show()["IOREDTBL9"]
    assert (shown["INTVEC"], shown["TRIGGER"], shown["REMOTE_IRR"], shown["sent"]) == (0x51, 1, 1, 1)
