# SPDX-License-Identifier: GPL-2.0-or-later
"""The device node.

Who answers where, how odd accesses are split, and that nothing a guest does is an error.
"""

import threading
import time
from typing import Any

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw.decode import MMIO, PORT, At
from coremesh.hw.device import Device
from coremesh.hw.isa.i8259a import Pic8259A
from coremesh.hw.isa.ioapic import IoApic82093AA
from coremesh.hw.node import DeviceNode


class Latches(Device):
    """Sixteen bytes that remember who touched them how."""

    def __init__(self, name: str, widths: tuple[int, ...] = (1,)) -> None:
        super().__init__(name)
        self.widths = widths  # type: ignore[misc]  # each of these tests wants another
        self.log: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size, 0))
        return sum(0x10 + offset + i << 8 * i for i in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size, value))


class Broken(Device):
    """A model with a bug."""

    def read(self, offset: int, size: int) -> int:
        raise KeyError(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        raise IndexError(offset)


def node_of(fabric: Any, *mappings: At) -> DeviceNode:
    return DeviceNode(mappings, IoApic82093AA(fabric), Pic8259A())


def test_a_device_sees_its_own_offsets(fabric: Any) -> None:
    """Given a device mapped at two places, then it sees offsets, not addresses."""
    latches = Latches("latches")
    node = node_of(fabric, At(PORT, 0x100, 4, latches), At(PORT, 0x300, 4, latches, offset=8))
    node.access(PORT, 0x102, 1, True, 0xAB)
    assert node.access(PORT, 0x301, 1, False, 0) == 0x19
    assert latches.log == [("w", 2, 1, 0xAB), ("r", 9, 1, 0)]


def test_a_wide_access_to_a_narrow_device_is_split(fabric: Any) -> None:
    """Given a device of bytes, when a double word is read or written.

    Then it sees four bytes, lowest first.
    """
    latches = Latches("latches")
    node = node_of(fabric, At(PORT, 0x100, 4, latches))
    assert node.access(PORT, 0x100, 4, False, 0) == 0x13121110
    latches.log.clear()
    node.access(PORT, 0x100, 4, True, 0x44332211)
    assert latches.log == [("w", 0, 1, 0x11), ("w", 1, 1, 0x22), ("w", 2, 1, 0x33), ("w", 3, 1, 0x44)]


def test_an_access_across_two_devices_reaches_both(fabric: Any) -> None:
    """Given neighbours, when a word spans them, then each gets its byte; beyond them is the empty bus."""
    left, right = Latches("left"), Latches("right")
    node = node_of(fabric, At(PORT, 0x100, 1, left), At(PORT, 0x101, 1, right))
    assert node.access(PORT, 0x100, 2, False, 0) == 0x1010
    assert node.access(PORT, 0x100, 4, False, 0) == 0xFFFF1010


def test_a_misaligned_access_is_split(fabric: Any) -> None:
    """Given a device of 1, 2 and 4 bytes, when a double word at an odd port is read.

    Then it sees aligned parts.
    """
    latches = Latches("latches", widths=(1, 2, 4))
    node = node_of(fabric, At(PORT, 0x100, 8, latches))
    assert node.access(PORT, 0x102, 4, False, 0) == 0x15141312
    assert [entry[1:3] for entry in latches.log] == [(2, 2), (4, 2)]


def test_memory_mapped_devices_are_found_by_range(fabric: Any) -> None:
    """Given two ranges with a gap, then addresses in them decode and the ones around read as ones."""
    low, high = Latches("low", (4,)), Latches("high", (4,))
    node = node_of(fabric, At(MMIO, 0x2000, 0x10, high), At(MMIO, 0x1000, 0x10, low))
    assert node.access(MMIO, 0x1004, 4, False, 0) == 0x17161514
    assert node.access(MMIO, 0x2000, 8, False, 0) == 0x1716151413121110
    for address in (0xFFC, 0x1010, 0x1FFC, 0x2010, 1 << 63):
        assert node.access(MMIO, address, 4, False, 0) == 0xFFFF_FFFF
    assert node.access(MMIO, 0x1001, 2, False, 0) == 0xFFFF
    assert node.access(MMIO, 0x1002, 4, False, 0) == 0xFFFF_FFFF


@pytest.mark.parametrize("space", [-1, PORT, MMIO, 2])
def test_absurd_accesses_are_answered(pc: Any, space: int) -> None:
    """When something asks for what no processor can, then it gets ones or nothing, and no error."""
    for size in (-1, 0, 3, 5, 16, 1000, 1 << 40):
        for address in (-1, 0, 0x3F8, 0x10000, 1 << 64, 1 << 100):
            assert 0 <= pc.node.access(space, address, size, False, 0) < 1 << 64
            assert pc.node.access(space, address, size, True, -5) == 0


def test_values_are_cut_to_their_size(fabric: Any) -> None:
    """When a value wider than the access arrives, then the device sees only what fits."""
    latches = Latches("latches")
    node = node_of(fabric, At(PORT, 0x100, 1, latches))
    node.access(PORT, 0x100, 1, True, 0x1FF)
    node.access(PORT, 0x100, 1, True, -1)
    assert latches.log == [("w", 0, 1, 0xFF), ("w", 0, 1, 0xFF)]


def test_a_bug_in_a_model_is_counted_and_answered_with_ones(
    fabric: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a model that raises.

    Then the guest reads ones, the lock is free, and the fault is logged once.
    """
    broken = Broken("broken")
    node = node_of(fabric, At(PORT, 0x100, 1, broken))
    assert node.access(PORT, 0x100, 1, False, 0) == 0xFF
    assert node.access(PORT, 0x100, 1, True, 0) == 0
    assert not broken.lock.locked()
    assert node.counters()["broken"] == {
        "accesses": 2, "contended": 0, "waited_ns": 0, "faults": 2,
    }  # fmt: skip
    assert len(caplog.records) == 1


@pytest.mark.parametrize("space", [PORT, MMIO])
def test_two_devices_cannot_share_an_address(fabric: Any, space: int) -> None:
    """When a machine is described with two devices at one address, then that is refused by name."""
    with pytest.raises(ConfigurationError, match="right"):
        node_of(fabric, At(space, 0x100, 4, Latches("left")), At(space, 0x103, 4, Latches("right")))


def test_claims_are_sorted_and_joined(fabric: Any) -> None:
    """Given neighbouring and overlapping ranges, then the engine is asked for each address once."""
    latches, wide = Latches("latches"), Latches("wide", (4,))
    node = node_of(
        fabric,
        At(MMIO, 0x1000, 0x10, wide),
        At(PORT, 0x102, 2, latches),
        At(PORT, 0x100, 2, latches),
        At(PORT, 0x100, 4, wide),
        At(PORT, 0x110, 1, latches),
    )
    assert node.claims() == [(PORT, 0x100, 0x103), (PORT, 0x110, 0x110), (MMIO, 0x1000, 0x100F)]


def test_waiting_for_a_busy_device_is_counted(fabric: Any) -> None:
    """Given a device that somebody holds, when another thread accesses it.

    Then it waits, and that is counted.
    """
    latches = Latches("latches")
    node = node_of(fabric, At(PORT, 0x100, 1, latches))
    tries = 0
    while not latches.contended:  # the other thread may start too late to find the device busy
        tries += 1
        assert tries < 20
        with latches.lock:
            vcpu = threading.Thread(target=node.access, args=(PORT, 0x100, 1, False, 0))
            vcpu.start()
            time.sleep(0.02)
            assert len(latches.log) < tries
        vcpu.join(2)
    counts = node.counters()["latches"]
    assert counts.pop("waited_ns") > 0
    assert counts == {"accesses": tries, "contended": 1, "faults": 0}


def test_a_busy_device_holds_nobody_else_up(pc: Any) -> None:
    """Given a device whose lock is held for long, when others are accessed meanwhile, then they answer."""
    with pc.node.devices["rtc"].lock:
        pc.outb(0x3F8, 65)
        assert pc.inb(0x3FD) & 0x60
        assert pc.mmio_read(0xFEC0_0000) == 0
    assert pc.console.read(0, 0)[0] == b"A"


def test_starting_and_stopping_leaves_no_thread(fabric: Any, make_pc: Any) -> None:
    """Given a node on the host's clock, when it is started, stopped, started and stopped.

    Then no thread is left.
    """
    from coremesh.hw.backend.console import ConsolePort
    from coremesh.hw.board.pc import build_pc
    from coremesh.hw.clock import HostClock

    before = threading.active_count()
    node = build_pc(
        fabric,
        console=ConsolePort(),
        on_power=lambda event: None,
        ram_bytes=1 << 30,
        vcpus=1,
        clock=HostClock(),
    )
    for _ in range(2):
        node.start()
        assert threading.active_count() > before
        node.stop()
        assert threading.active_count() == before
