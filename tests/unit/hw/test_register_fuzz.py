# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that writes garbage everywhere: every access is answered, in time, by every device."""

import time
from typing import Any

from coremesh.hw.backend.keys import KEYS
from coremesh.hw.backend.screen import read_screen
from coremesh.hw.decode import MMIO, PORT
from coremesh.hw.isa.ps2_keyboard import RELEASE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PORTS = [
    *range(0x20, 0x22),
    *range(0x40, 0x44),
    *range(0x60, 0x65),
    *range(0x70, 0x72),
    0x80,
    0x92,
    *range(0xA0, 0xA2),
    *range(0xF4, 0xF8),
    *range(0x3B4, 0x3B6),
    *range(0x3BA, 0x3E0),
    *range(0x3F8, 0x400),
    *range(0x4D0, 0x4D2),
    *range(0x600, 0x60C),
    *range(0xCF8, 0xD00),
]
VALUES = st.one_of(
    st.sampled_from([0, 1, 0x0A, 0x10, 0x11, 0x20, 0x80, 0xC0, 0xFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF]),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
)
SIZES = st.sampled_from([1, 1, 1, 2, 4, 8])
PORT_ACCESS = st.tuples(st.just(PORT), st.sampled_from(PORTS), SIZES, st.booleans(), VALUES)
IOAPIC_ACCESS = st.tuples(
    st.just(MMIO),
    st.sampled_from([0xFEC0_0000, 0xFEC0_0010, 0xFEC0_0040, 0xFEC0_0FFF]),
    st.sampled_from([4, 4, 4, 1, 8]),
    st.booleans(),
    VALUES,
)
STRAY_ACCESS = st.tuples(
    st.sampled_from([PORT, MMIO]),
    st.one_of(st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1)),
    SIZES,
    st.booleans(),
    VALUES,
)
EVENT = st.one_of(
    PORT_ACCESS,
    PORT_ACCESS,
    PORT_ACCESS,
    IOAPIC_ACCESS,
    STRAY_ACCESS,
    st.integers(0, 3_000_000_000),  # time passes, ns
    st.binary(max_size=40),  # the person types
    st.lists(st.sampled_from(sorted(KEYS.values())), max_size=8),  # and presses keys
    st.sampled_from(["eoi", "acknowledge", "reset", "slow host", "fast host"]),
)


def apply(pc: Any, event: Any) -> None:
    if isinstance(event, int):
        # Bounded by events of the busiest timers, not by the guest: alarms per second are limited.
        pc.clock.advance(min(event, 50_000_000 if pc.clock.expired > 20_000 else event))
    elif isinstance(event, bytes):
        pc.console.feed(event)
    elif isinstance(event, list):
        pc.node.devices["i8042"].press([*event, *(key | RELEASE for key in event)])
    elif event == "eoi":
        pc.node.eoi(0x51)
    elif event == "acknowledge":
        assert 0 <= pc.node.acknowledge() <= 0xFF
    elif event in ("slow host", "fast host"):
        pc.clock.step = 300_000 if event == "slow host" else 0
    elif event == "reset":
        pc.node.reset()
    else:
        space, address, size, is_write, value = event
        answer = pc.node.access(space, address, size, is_write, value)
        assert 0 <= answer < 1 << 8 * size


def well(pc: Any) -> None:
    """No model has failed, no lock was left behind, nobody waits for the other."""
    read_screen(pc.node.devices["vga"].text_mode(), lambda gpa, length: bytes(length))
    for name, device in pc.node.devices.items():
        assert device.faults == 0, name
        assert not device.lock.locked(), name
        device.show()


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(EVENT, max_size=80))
def test_garbage_in_every_register_is_answered(make_pc: Any, events: list[Any]) -> None:
    """Given any sequence of accesses, time, typing and interrupts.

    Then all are answered and no model fails.
    """
    pc = make_pc()
    start = time.perf_counter()
    for event in events:
        apply(pc, event)
    assert time.perf_counter() - start < 10
    well(pc)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.sampled_from(PORTS), st.integers(0, 255)), max_size=60))
def test_after_any_garbage_a_reset_gives_a_working_serial_port(
    make_pc: Any, writes: list[tuple[int, int]]
) -> None:
    """Given a guest gone mad, when the board is reset, then the next one prints as if nothing had been."""
    pc = make_pc()
    for port, value in writes:
        pc.outb(port, value)
    pc.node.reset()
    mark = pc.console.end
    pc.outb(0x3FB, 0x03)
    for byte in b"ok":
        assert pc.inb(0x3FD) & 0x20
        pc.outb(0x3F8, byte)
    assert pc.console.read(mark, 0)[0] == b"ok"
    well(pc)
