# SPDX-License-Identifier: GPL-2.0-or-later
"""8259A pair: initialization, priority, the ways to end an interrupt, poll, the edge/level registers."""

from typing import Any

import pytest
from coremesh.hw.isa.i8259a import Pic8259A

MASTER, MASTER_DATA, SLAVE, SLAVE_DATA, ELCR1, ELCR2 = range(6)
NON_SPECIFIC_EOI, SPECIFIC_EOI = 0x20, 0x60


class Guest:
    """Initialized as Linux does: vectors 0x30-0x3F, 8086 mode, all inputs open."""

    def __init__(self, chip: Any) -> None:
        self.intr: list[bool] = []
        self.device = Pic8259A(self.intr.append)
        self.chip = chip(self.device)
        self.initialize()

    def initialize(self, icw4: int = 0x01, icw1: int = 0x11) -> None:
        for command, data, base, cascade in ((MASTER, MASTER_DATA, 0x30, 4), (SLAVE, SLAVE_DATA, 0x38, 2)):
            self.write(command, icw1)
            self.write(data, base)
            self.write(data, cascade)
            if icw1 & 1:
                self.write(data, icw4)
            self.write(data, 0)

    def write(self, offset: int, value: int) -> None:
        self.chip.write(offset, value)

    def read(self, offset: int) -> int:
        return int(self.chip.read(offset))

    def irq(self, number: int, level: bool = True) -> None:
        self.device.irq(number)(level)

    def pulse(self, number: int) -> None:
        self.irq(number, False)
        self.irq(number, True)

    def isr(self, chip: int = MASTER) -> int:
        self.write(chip, 0x0B)
        return self.read(chip)

    def irr(self, chip: int = MASTER) -> int:
        self.write(chip, 0x0A)
        return self.read(chip)


@pytest.fixture
def guest(guest_access: Any) -> Guest:
    return Guest(guest_access)


def test_before_initialization_nothing_comes_out(guest_access: Any) -> None:
    """Given a pair that nobody has initialized, when a line rises, then INTR stays low."""
    intr: list[bool] = []
    Pic8259A(intr.append).irq(0)(True)
    assert intr == []


def test_the_mask_register_reads_back(guest: Guest) -> None:
    """When Linux probes for the chip by writing masks, then it reads them back from each half."""
    guest.write(SLAVE_DATA, 0xFF)
    guest.write(MASTER_DATA, 0xFB)
    assert (guest.read(MASTER_DATA), guest.read(SLAVE_DATA)) == (0xFB, 0xFF)


def test_an_edge_becomes_intr_then_a_vector_then_a_service(guest: Guest) -> None:
    """When IRQ 4 rises, then INTR goes high; INTA gives vector 0x34, lowers INTR and moves IRR to ISR."""
    guest.irq(4)
    assert guest.intr == [True]
    assert guest.irr() == 0x10
    assert guest.device.acknowledge() == 0x34
    assert guest.intr == [True, False]
    assert (guest.irr(), guest.isr()) == (0, 0x10)


def test_a_line_that_stays_high_is_one_interrupt(guest: Guest) -> None:
    """Given an edge input that stays high, when its interrupt has ended.

    Then no second one comes until it falls.
    """
    guest.irq(4)
    guest.device.acknowledge()
    guest.write(MASTER, NON_SPECIFIC_EOI)
    assert not guest.device.intr
    guest.pulse(4)
    assert guest.device.intr


def test_higher_priority_interrupts_the_service_of_a_lower_one(guest: Guest) -> None:
    """Given IRQ 4 in service, when 6 and then 1 come, then only 1 interrupts; 6 comes when all has ended."""
    guest.irq(4)
    guest.device.acknowledge()
    guest.irq(6)
    assert not guest.device.intr
    guest.irq(1)
    assert guest.device.acknowledge() == 0x31
    guest.write(MASTER, NON_SPECIFIC_EOI)
    assert guest.isr() == 0x10
    guest.write(MASTER, NON_SPECIFIC_EOI)
    assert guest.device.acknowledge() == 0x36


def test_a_specific_eoi_ends_the_level_it_names(guest: Guest) -> None:
    """Given 4 and 1 in service, when the guest ends level 4, then 1 is still served."""
    guest.irq(4)
    guest.device.acknowledge()
    guest.irq(1)
    guest.device.acknowledge()
    guest.write(MASTER, SPECIFIC_EOI | 4)
    assert guest.isr() == 0x02


def test_the_slave_comes_through_input_2(guest: Guest) -> None:
    """When IRQ 8 rises.

    Then the vector is the slave's, both chips have it in service, and each wants its EOI.
    """
    guest.irq(8)
    assert guest.device.acknowledge() == 0x38
    assert (guest.isr(MASTER), guest.isr(SLAVE)) == (0x04, 0x01)
    guest.irq(9)
    assert not guest.device.intr
    guest.write(SLAVE, NON_SPECIFIC_EOI)
    guest.write(MASTER, SPECIFIC_EOI | 2)
    assert guest.device.acknowledge() == 0x39


def test_the_slave_ranks_between_irq_1_and_irq_3(guest: Guest) -> None:
    """When 3, 15 and 1 are pending, then they come in the order 1, 15, 3."""
    for number in (3, 15, 1):
        guest.irq(number)
    order = []
    for _ in range(3):
        order.append(guest.device.acknowledge())
        if order[-1] >= 0x38:
            guest.write(SLAVE, NON_SPECIFIC_EOI)
        guest.write(MASTER, NON_SPECIFIC_EOI)
    assert order == [0x31, 0x3F, 0x33]


def test_a_request_withdrawn_before_inta_is_the_spurious_irq_7(guest: Guest) -> None:
    """When a line falls before the processor acknowledges.

    Then the vector is IR7's and nothing is in service.
    """
    guest.irq(4)
    guest.irq(4, False)
    assert guest.intr == [True, False]
    assert guest.device.acknowledge() == 0x37
    assert guest.isr() == 0


def test_a_request_of_the_slave_that_is_gone_by_inta_is_the_spurious_irq_15(guest: Guest) -> None:
    """Given a request of the slave that is masked there before INTA, when the processor acknowledges.

    Then the cascade has fallen with it and INTA finds nothing: IR7 of the master, as on the board.
    """
    guest.irq(9)
    guest.write(SLAVE_DATA, 0xFF)
    assert guest.device.acknowledge() == 0x37
    guest.write(SLAVE_DATA, 0x00)
    assert guest.device.acknowledge() == 0x39


def test_the_mask_holds_a_request_back_and_keeps_it(guest: Guest) -> None:
    """Given IRQ 4 masked, when it rises, then it shows in IRR and comes when it is unmasked."""
    guest.write(MASTER_DATA, 0x10)
    guest.irq(4)
    assert not guest.device.intr
    assert guest.irr() == 0x10
    guest.write(MASTER_DATA, 0)
    assert guest.device.acknowledge() == 0x34


def test_automatic_eoi_leaves_nothing_in_service(guest: Guest) -> None:
    """Given AEOI mode, when an interrupt is acknowledged, then the next lower one may come at once."""
    guest.initialize(icw4=0x03)
    guest.irq(1)
    guest.irq(4)
    assert [guest.device.acknowledge(), guest.device.acknowledge()] == [0x31, 0x34]
    assert guest.isr() == 0


def test_the_slave_requests_again_after_each_automatic_eoi(guest: Guest) -> None:
    """Given AEOI mode and two requests at the slave, when one is acknowledged, then the other comes too."""
    guest.initialize(icw4=0x03)
    guest.irq(8)
    guest.irq(9)
    assert [guest.device.acknowledge(), guest.device.acknowledge()] == [0x38, 0x39]
    assert not guest.device.intr


def test_rotation_gives_the_served_level_the_lowest_priority(guest: Guest) -> None:
    """Given equal devices, when 4 ends with a rotating EOI, then 5 goes before 4 and before 0."""
    guest.irq(4)
    guest.device.acknowledge()
    guest.write(MASTER, 0xA0)
    for number in (0, 5):
        guest.irq(number)
    guest.pulse(4)
    order = []
    for _ in range(3):
        order.append(guest.device.acknowledge())
        guest.write(MASTER, NON_SPECIFIC_EOI)
    assert order == [0x35, 0x30, 0x34]


def test_rotation_in_automatic_eoi_mode(guest: Guest) -> None:
    """Given AEOI with rotation, when 1 is acknowledged, then it ranks last: 4 goes before the next 1."""
    guest.initialize(icw4=0x03)
    guest.write(MASTER, 0x80)
    guest.irq(1)
    guest.device.acknowledge()
    guest.pulse(1)
    guest.irq(4)
    assert [guest.device.acknowledge(), guest.device.acknowledge()] == [0x34, 0x31]


def test_set_priority_names_the_lowest(guest: Guest) -> None:
    """When level 5 is made the lowest, then 6 goes first and 0 after 7."""
    guest.write(MASTER, 0xC5)
    guest.irq(0)
    guest.irq(6)
    assert guest.device.acknowledge() == 0x36


def test_a_specific_eoi_can_rotate(guest: Guest) -> None:
    """When level 3 ends with a rotating specific EOI, then 4 becomes the highest."""
    guest.irq(3)
    guest.device.acknowledge()
    guest.write(MASTER, 0xE3)
    assert guest.isr() == 0
    guest.irq(0)
    guest.irq(4)
    assert guest.device.acknowledge() == 0x34


def test_special_mask_mode_lets_lower_levels_in(guest: Guest) -> None:
    """Given 3 in service and masked, when special mask mode is set, then 6 may interrupt."""
    guest.irq(3)
    guest.device.acknowledge()
    guest.irq(6)
    guest.write(MASTER_DATA, 0x08)
    assert not guest.device.intr
    guest.write(MASTER, 0x68)
    assert guest.device.acknowledge() == 0x36
    guest.write(MASTER, 0x48)
    assert guest.isr() == 0x48


def test_special_fully_nested_mode_lets_the_slave_in_again(guest: Guest) -> None:
    """Given SFNM, when the slave's IRQ 9 is served and its IRQ 8 comes.

    Then it interrupts; IRQ 12 does not.
    """
    guest.initialize(icw4=0x11)
    guest.irq(9)
    guest.device.acknowledge()
    guest.irq(12)
    assert not guest.device.intr
    guest.irq(8)
    assert guest.device.acknowledge() == 0x38


def test_poll_acknowledges_without_intr(guest: Guest) -> None:
    """When the guest polls with 5 pending.

    Then it reads 0x85 and 5 is in service; with nothing pending it reads 0.
    """
    guest.irq(5)
    guest.write(MASTER, 0x0C)
    assert guest.read(MASTER) == 0x85
    assert guest.isr() == 0x20
    assert not guest.device.intr
    guest.write(MASTER, 0x0C)
    assert guest.read(MASTER) == 0


def test_level_inputs_request_as_long_as_they_are_high(guest: Guest) -> None:
    """Given IRQ 9 set to level in ELCR, when it ends while the line is high.

    Then it comes again; low, it does not.
    """
    guest.write(ELCR2, 0x02)
    guest.irq(9)
    for _ in range(2):
        assert guest.device.acknowledge() == 0x39
        guest.write(SLAVE, NON_SPECIFIC_EOI)
        guest.write(MASTER, NON_SPECIFIC_EOI)
    assert guest.device.intr
    guest.irq(9, False)
    assert not guest.device.intr


def test_some_inputs_are_edges_for_ever(guest: Guest) -> None:
    """When all ones are written to the edge/level registers.

    Then timer, keyboard, cascade, RTC and FPU stay edges.
    """
    guest.write(ELCR1, 0xFF)
    guest.write(ELCR2, 0xFF)
    assert (guest.read(ELCR1), guest.read(ELCR2)) == (0xF8, 0xDE)


def test_initialization_forgets_requests_and_services(guest: Guest) -> None:
    """Given one in service and one pending, when ICW1 comes.

    Then both are gone and a high edge line stays silent.
    """
    guest.irq(1)
    guest.device.acknowledge()
    guest.irq(4)
    guest.initialize()
    assert (guest.irr(), guest.isr(), guest.device.intr) == (0, 0, False)
    guest.pulse(4)
    assert guest.device.acknowledge() == 0x34


def test_icw4_is_optional(guest: Guest) -> None:
    """When ICW1 says that no ICW4 follows, then the write after ICW3 is the mask."""
    guest.write(MASTER, 0x10)
    guest.write(MASTER_DATA, 0x50)
    guest.write(MASTER_DATA, 0x04)
    guest.write(MASTER_DATA, 0xAA)
    assert guest.read(MASTER_DATA) == 0xAA
