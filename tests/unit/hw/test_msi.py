# SPDX-License-Identifier: GPL-2.0-or-later
"""Message signalled interrupts of a PCI function, as software sets them up: PCI 3.0, section 6.8.1."""

import json
from typing import Any

import pytest
from coremesh.hw.pci.function import INTA, PciFunction
from coremesh.hw.pci.msi import Msi

COMMAND, MASTER = 4, 4
CONTROL, ADDRESS, UPPER, DATA, MASK, PENDING = 2, 4, 8, 12, 16, 20
ENABLE = 1


class Function(PciFunction):
    """A function with messages, which are kept."""

    def __init__(self, messages: int) -> None:
        super().__init__("msi", vendor=0x1234, device=1, class_code=0x088000, pin=INTA)
        self.sent: list[tuple[int, int]] = []
        self.msi = Msi(self, lambda address, data: self.sent.append((address, data)), messages)

    def written(self, at: int, size: int) -> None:
        self.msi.written(at, size)


class Software:
    """What finds the capability and programs it through the ports."""

    def __init__(self, make_pc: Any, messages: int = 4) -> None:
        self.function = Function(messages)
        self.pc = make_pc(functions=[self.function])
        at = self.config(0x34, 1)
        while self.config(at, 1) != 5:
            at = self.config(at + 1, 1)
        self.at = at
        self.config(COMMAND, 2, MASTER)

    def config(self, at: int, size: int, value: int | None = None) -> int:
        self.pc.outl(0xCF8, 1 << 31 | 3 << 11 | at & 0xFC)
        return int(self.pc.node.access(0, 0xCFC + at % 4, size, value is not None, value or 0))

    def register(self, offset: int, size: int = 4, value: int | None = None) -> int:
        return self.config(self.at + offset, size, value)

    def start(self, messages_log2: int = 0, apic: int = 7) -> None:
        self.register(ADDRESS, 4, 0xFEE0_0000 | apic << 12)
        self.register(UPPER, 4, 0)
        self.register(DATA, 2, 0x58)
        self.register(CONTROL, 2, messages_log2 << 4 | ENABLE)


def test_the_capability_says_what_the_function_can(make_pc: Any) -> None:
    """Given a function of four messages, then it says so, with addresses of 64 bits and masks."""
    one = Software(make_pc)
    assert one.register(CONTROL, 2) == 2 << 1 | 1 << 7 | 1 << 8
    one.register(ADDRESS, 4, 0xFFFF_FFFF)
    assert one.register(ADDRESS) == 0xFFFF_FFFC
    one.register(MASK, 4, 0xFFFF_FFFF)
    assert one.register(MASK) == 0xF
    one.register(PENDING, 4, 0xFFFF_FFFF)
    assert one.register(PENDING) == 0
    one.register(CONTROL, 2, 0xFFFF)
    assert one.register(CONTROL, 2) == 2 << 1 | 1 << 7 | 1 << 8 | 7 << 4 | ENABLE


def test_until_it_is_enabled_the_function_uses_its_pin(make_pc: Any) -> None:
    """Given software that has not enabled messages, then none is sent, and the caller is told."""
    one = Software(make_pc)
    assert not one.function.msi.signal(0) and not one.function.sent
    one.start()
    assert one.function.msi.signal(0)


ALL_FOUR = [0x58, 0x59, 0x5A, 0x5B]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(0, [0x58] * 4), (1, [0x58, 0x59, 0x59, 0x59]), (2, ALL_FOUR), (5, ALL_FOUR)],
)
def test_the_data_tells_which_message_it_is(make_pc: Any, given: int, wanted: list[int]) -> None:
    """Given fewer messages than the function has, then the last stands for the others; its address is one."""
    one = Software(make_pc)
    one.start(given, apic=254)
    for message in range(4):
        one.function.msi.signal(message)
    assert one.function.sent == [(0xFEEF_E000, data) for data in wanted]


def test_a_masked_message_is_pending_and_sent_once(make_pc: Any) -> None:
    """Given a mask, then a message waits, shows itself as pending, and goes out when the mask is lifted."""
    one = Software(make_pc)
    one.start(2)
    one.register(MASK, 4, 0b0110)
    for message in (0, 1, 1, 2, 3):
        one.function.msi.signal(message)
    assert [data for _, data in one.function.sent] == [0x58, 0x5B]
    assert one.register(PENDING) == 0b0110
    one.register(MASK, 4, 0b0100)
    assert [data for _, data in one.function.sent] == [0x58, 0x5B, 0x59]
    assert one.register(PENDING) == 0b0100
    one.register(MASK, 4, 0)
    one.register(MASK, 4, 0)
    assert [data for _, data in one.function.sent] == [0x58, 0x5B, 0x59, 0x5A]
    assert one.register(PENDING) == 0


def test_a_message_is_a_write_and_needs_the_bus(make_pc: Any) -> None:
    """Given the bus master bit is clear, then a message is pending until it is set."""
    one = Software(make_pc)
    one.start()
    one.config(COMMAND, 2, 0)
    one.function.msi.signal(0)
    assert not one.function.sent and one.register(PENDING) == 1
    one.config(COMMAND, 2, MASTER)
    assert one.function.sent == [(0xFEE0_7000, 0x58)] and one.register(PENDING) == 0


def test_masks_and_pending_messages_are_saved(make_pc: Any) -> None:
    """Given a message that waits when the machine is saved, then it goes out of the loaded one."""
    first = Software(make_pc)
    first.start()
    first.register(MASK, 4, 1)
    first.function.msi.signal(0)
    second = Software(make_pc)
    second.pc.node.load(json.loads(json.dumps(first.pc.node.save())))
    assert second.register(PENDING) == 1 and not second.function.sent
    second.register(MASK, 4, 0)
    assert second.function.sent == [(0xFEE0_7000, 0x58)]


@pytest.mark.parametrize("messages", [0, 3, 64])
def test_no_other_number_of_messages(messages: int) -> None:
    """Given a number of messages that there cannot be, then it is refused as the machine is made."""
    with pytest.raises(ValueError, match="messages"):
        Function(messages)
