# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole PC as an operating system meets it: chips wired together, from the probe to the power switch."""

from typing import Any

import pytest
from coremesh.hw.board.pc import PC, ioapic_id
from coremesh.hw.decode import PORT
from coremesh.hw.firmware import acpi

PM_BASE = PC["acpi-pm"].base
LEVEL, MASKED = 1 << 15, 1 << 16
TICK_HZ_250 = 1_193_182 // 250


def start_pit(pc: Any, divisor: int) -> None:
    pc.outb(0x43, 0x34)
    pc.outb(0x40, divisor & 0xFF)
    pc.outb(0x40, divisor >> 8)


def initialize_pics(pc: Any, mask: int = 0xFFFF) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1)):
        pc.outb(port, value)
    for port, value in ((0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1)):
        pc.outb(port, value)
    pc.outb(0x21, mask & 0xFF)
    pc.outb(0xA1, mask >> 8)


def test_the_timer_arrives_at_pin_2_of_the_io_apic(pc: Any) -> None:
    """Given the MADT's override, when the PIT ticks at 250 Hz for a second, then pin 2 gives 250 edges."""
    pc.route(PC.pin(PC.irq("pit")), 0x30)
    start_pit(pc, TICK_HZ_250)
    pc.fabric.messages.clear()
    pc.clock.advance(1_000_000_000)
    assert pc.fabric.vectors == [0x30] * 250


def test_virtual_wire_mode_delivers_the_timer_through_the_8259a(pc: Any) -> None:
    """Given the 8259A programmed and the I/O APIC masked, when the PIT ticks, then INTR rises on LINT0.

    The INTA cycle gives the timer's vector and lowers INTR.
    """
    initialize_pics(pc, mask=0xFFFE)
    start_pit(pc, TICK_HZ_250)
    pc.fabric.extints.clear()
    pc.node.acknowledge()
    pc.outb(0x20, 0x60)
    pc.fabric.extints.clear()
    for _ in range(3):
        pc.clock.advance(4_000_000)
        assert pc.fabric.extints == [True]
        assert pc.node.acknowledge() == 0x30
        pc.outb(0x20, 0x60)
        assert pc.fabric.extints == [True, False]
        pc.fabric.extints.clear()
    assert pc.fabric.messages == []


def test_extint_can_come_through_pin_0(pc: Any) -> None:
    """Given pin 0 programmed as ExtINT, when the 8259A has a request, then the message says ExtINT."""
    initialize_pics(pc, mask=0xFFFE)
    pc.route(0, 0, 7 << 8)
    pc.outb(0x43, 0x30)
    pc.outb(0x40, 10)
    pc.outb(0x40, 0)
    pc.clock.advance_us(20)
    assert pc.fabric.messages == [(0xFEE0_0000, 0x4700)]


def test_typing_interrupts_on_pin_4(pc: Any) -> None:
    """Given a serial driver that waits for input, when a person types.

    Then IRQ 4 comes and the byte is there.
    """
    pc.route(4, 0x34)
    pc.outb(0x3FC, 0x0B)
    pc.outb(0x3FA, 0x07)
    pc.outb(0x3F9, 0x05)
    pc.console.feed(b"l")
    assert pc.fabric.vectors == [0x34]
    assert pc.inb(0x3FA) == 0xC4
    assert pc.inb(0x3F8) == ord("l")
    assert pc.inb(0x3FA) == 0xC1


def test_the_clock_interrupts_on_pin_8(pc: Any) -> None:
    """Given the update interrupt enabled, when a second passes, then IRQ 8 comes."""
    pc.route(8, 0x38)
    pc.cmos_write(0x0B, 0x12)
    pc.clock.advance(1_000_000_000)
    assert pc.fabric.vectors == [0x38]


def test_the_sci_is_a_level_on_pin_9(pc: Any) -> None:
    """Given the SCI routed as the MADT says, when the power button is pressed.

    Then it repeats until it is cleared.
    """
    pc.route(PC.irq("acpi-pm"), 0x39, LEVEL)
    pc.outw(PM_BASE + 2, 0x0100)
    pc.node.devices["acpi-pm"].press_power_button()
    pc.node.eoi(0x39)
    assert pc.fabric.vectors == [0x39, 0x39]
    pc.outw(PM_BASE, 0x0100)
    pc.node.eoi(0x39)
    assert pc.fabric.vectors == [0x39, 0x39]


def test_the_keyboard_controller_interrupts_on_pin_1(pc: Any) -> None:
    """Given IRQ 1 enabled in the command byte, when the controller answers, then IRQ 1 comes."""
    pc.route(1, 0x31)
    pc.outb(0x64, 0x60)
    pc.outb(0x60, 0x01)
    pc.outb(0x64, 0xAB)
    assert pc.fabric.vectors == [0x31]


@pytest.mark.parametrize(
    ("writes", "source"),
    [
        ([(PC["reset"].base, acpi.RESET_VALUE)], "reset"),
        ([(0xCF9, 0x02), (0xCF9, 0x06)], "reset"),
        ([(0x64, 0xFE)], "i8042"),
        ([(0x64, 0xD1), (0x60, 0xFE)], "i8042"),
        ([(0x92, 0x03)], "port92"),
    ],
    ids=["ACPI", "CF9", "keyboard pulse", "keyboard output port", "port 92"],
)
def test_every_way_to_reboot(pc: Any, writes: list[tuple[int, int]], source: str) -> None:
    """When a guest reboots by any of the PC's ways, then one reset is heard."""
    for port, value in writes:
        pc.outb(port, value)
    assert [(event.kind, event.source) for event in pc.power] == [("reset", source)]


def test_power_off_by_the_tables(pc: Any) -> None:
    """When Linux powers off with the sleep type and the port of the tables, then power-off is heard."""
    pc.outw(PM_BASE + 4, acpi.S5_SLEEP_TYPE << 10)
    pc.outw(PM_BASE + 4, acpi.S5_SLEEP_TYPE << 10 | 1 << 13)
    assert [event.kind for event in pc.power] == ["power-off"]


def test_the_tables_tell_the_truth(pc: Any) -> None:
    """Given the firmware's tables.

    Then the timer, the century cell and the width of the PM timer are as they say.
    """
    values = []
    for _ in range(20):
        pc.clock.advance(1_000_000_000)
        values.append(pc.inl(PM_BASE + 8))
    assert max(values) < 1 << 24
    assert len(set(values)) == 20
    assert pc.cmos(acpi.RTC_CENTURY_INDEX) == 0x20


def test_a_test_guest_ends_with_a_number(pc: Any) -> None:
    """When a bare-metal test writes 32 bits to the debug-exit port, then the number is heard as written."""
    pc.outl(0xF4, 0x1234)
    assert [(event.kind, event.value) for event in pc.power] == [("debug-exit", 0x1234)]


def test_what_a_pc_lacks_reads_as_ones(pc: Any) -> None:
    """When a guest looks for a second serial port, a disk, a Hercules card, a joystick, it finds no chip."""
    for port in (0x2F8, 0x1F7, 0x3B8, 0x201, 0xCF0):
        assert pc.inb(port) == 0xFF
        assert pc.inl(port) == 0xFFFF_FFFF


def test_everything_claimed_is_decoded_or_empty(pc: Any) -> None:
    """Given every claimed port, when each is read and written in every size.

    Then nothing is wrong with any model.
    """
    for space, first, last in pc.node.claims():
        for address in range(first, min(last, first + 0x40) + 1):
            for size in (1, 2, 4, 8):
                assert 0 <= pc.node.access(space, address, size, False, 0) < 1 << 8 * size
                pc.node.access(space, address, size, True, 0)
    assert all(counters["faults"] == 0 for counters in pc.node.counters().values())


def test_the_ports_do_not_move(pc: Any) -> None:
    """Given what the rest of the machine relies on, then every device is where the PC has it."""
    claimed = {
        port for space, first, last in pc.node.claims() if space == PORT for port in range(first, last + 1)
    }
    expected = [0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xA0, 0xA1, 0xF4, 0xF7]
    expected += [0x3F8, 0x3FF, 0x4D0, 0x4D1, 0x600, 0x604, 0x608, 0x60B, 0xCF8, 0xCF9, 0xCFC, 0xCFF]
    assert claimed.issuperset(expected)
    assert {0x2F8, 0x62, 0x63, 0x1F0, 0x3B8}.isdisjoint(claimed)


def test_a_board_reset_quiets_the_machine(pc: Any) -> None:
    """Given a machine in full swing, when the board is reset.

    Then no interrupt comes until it is programmed again.
    """
    pc.route(2, 0x30)
    pc.route(8, 0x38)
    start_pit(pc, 1000)
    pc.cmos_write(0x0B, 0x52)
    pc.node.reset()
    pc.fabric.messages.clear()
    pc.clock.advance(2_000_000_000)
    assert pc.fabric.messages == []
    pc.route(2, 0x30)
    start_pit(pc, 11_931)
    pc.fabric.messages.clear()
    pc.clock.advance(100_000_000)
    assert len(pc.fabric.messages) == 10


@pytest.mark.parametrize("vcpus", [1, 8, 255])
def test_the_io_apic_has_the_id_that_the_tables_give_it(make_pc: Any, vcpus: int) -> None:
    """Given a number of cores, then the chip's id is the one that firmware wrote into the MADT."""
    pc = make_pc(vcpus=vcpus)
    assert pc.mmio_read(0xFEC0_0010) >> 24 & 0x0F == ioapic_id(range(vcpus))


def test_a_person_can_look_at_every_device(pc: Any) -> None:
    """When a person asks for the state of the machine's devices, then each shows registers by name."""
    for name, device in pc.node.devices.items():
        shown = device.show()
        assert isinstance(shown, dict), name
    assert pc.node.devices["uart"].show()["LSR"]["THRE"] == 1
    assert ("uart", "port", 0x3F8, 0x3FF) in pc.node.map()
