# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses as messages from another host: the same answers as by direct call."""

from typing import Any

import pytest
from coremesh.hw.request import MMIO, PORT, Kind, Reply, Request


def test_a_request_survives_the_wire() -> None:
    """Given a request with every field in use, when it is packed and unpacked.

    Then it is the same 32 bytes long.
    """
    request = Request(2**63, Kind.ACCESS, MMIO, 0xFEC0_0010, 4, True, 0xFFFF_FFFF)
    assert len(request.pack()) == 32
    assert Request.unpack(request.pack()) == request
    assert Reply.unpack(Reply(7, 2**64 - 1).pack()) == Reply(7, 2**64 - 1)


def test_the_layout_is_fixed() -> None:
    """Given native code at the other end, then the bytes are at the places that it expects."""
    packed = Request(1, Kind.ACCESS, PORT, 0x3F8, 1, True, 0x41).pack()
    assert packed.hex() == "01000000000000000000010001000000f8030000000000004100000000000000"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 31,
        b"\xff" * 32,
        Request(1, Kind.ACCESS, PORT, 0x80, 8).pack(),  # a port of 64 bits
        Request(1, Kind.ACCESS, PORT, 0x10000, 1).pack(),
        Request(1, Kind.ACCESS, MMIO, 1 << 52, 4).pack(),
        Request(1, Kind.ACCESS, MMIO, 0xFEC0_0000, 3).pack(),
        Request(1, Kind.ACCESS, 2, 0, 1).pack(),
        Request(1, Kind.ACCESS, PORT, 0x80, 1, True, 0x100).pack(),
        Request(1, Kind.ACCESS, PORT, 0x80, 1, False, 1).pack(),  # a read with a value
        Request(1, Kind.EOI, value=0x100).pack(),
        Request(1, Kind.ACKNOWLEDGE, value=1).pack(),
        Request(1, Kind.ACKNOWLEDGE).pack()[:11] + b"\1" + bytes(20),
    ],
)
def test_what_is_no_request_is_refused(garbage: bytes) -> None:
    """When bytes arrive that no vCPU sends, then that is a ValueError, and no device sees them."""
    with pytest.raises(ValueError):
        Request.unpack(garbage)


def test_what_is_no_reply_is_refused() -> None:
    """When a reply has the wrong length, then that is a ValueError."""
    with pytest.raises(ValueError):
        Reply.unpack(b"short")


def test_a_served_request_does_what_a_call_does(pc: Any) -> None:
    """Given a guest that writes and reads by messages.

    Then the devices do the same and the ticket comes back.
    """
    for ticket, byte in enumerate(b"hi"):
        assert pc.node.serve(Request(ticket, Kind.ACCESS, PORT, 0x3F8, 1, True, byte)) == Reply(ticket, 0)
    assert pc.console.read(0, 0)[0] == b"hi"
    pc.node.serve(Request(0, Kind.ACCESS, MMIO, 0xFEC0_0000, 4, True, 1))
    assert pc.node.serve(Request(9, Kind.ACCESS, MMIO, 0xFEC0_0010, 4)) == Reply(9, 23 << 16 | 0x20)


def test_eoi_and_acknowledge_are_messages_too(pc: Any) -> None:
    """Given a level interrupt and an 8259A request, when another host ends and acknowledges them.

    Then they go on.
    """
    pc.route(9, 0x51, 1 << 15)
    pc.outw(0x602, 0x0100)
    pc.node.devices["acpi-pm"].press_power_button()
    pc.node.serve(Request(1, Kind.EOI, value=0x51))
    assert pc.fabric.vectors == [0x51, 0x51]
    for port, value in ((0x20, 0x13), (0x21, 0x30), (0x21, 0x01), (0x21, 0xFE)):
        pc.outb(port, value)
    pc.outb(0x43, 0x30)
    pc.outb(0x40, 10)
    pc.outb(0x40, 0)
    pc.clock.advance_us(100)
    assert pc.node.serve(Request(2, Kind.ACKNOWLEDGE)) == Reply(2, 0x30)
