# SPDX-License-Identifier: GPL-2.0-or-later
"""The bus master bit of a virtio function, and where its interrupt messages go.

Source: PCI Local Bus Specification 3.0, sections 6.2.2 (bus master) and 6.8 (messages).
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

from coremesh.hw.decode import MMIO
from coremesh.hw.virtio.block import VirtioBlock
from coremesh.hw.virtio.pci import VirtioPci
from virtio_driver import Driver, Ram, Ring, plug

MEMORY, MASTER = 2, 4


class Disk:
    """A backend whose reads can be held back."""

    size, read_only, can_discard = 1 << 20, False, False

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def read(self, offset: int, buffers: Any) -> None:
        self.entered.set()
        assert self.go.wait(20)
        for buffer in buffers:
            buffer[:] = b"\xaa" * len(buffer)

    def flush(self) -> None:
        pass


class Guest:
    def __init__(self, make_pc: Any, queues: int = 2) -> None:
        self.ram, self.disk = Ram(), Disk()
        model = VirtioBlock(self.disk, name="vd", queues=queues)  # type: ignore[arg-type]
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(model, bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        self.rings = self.driver.start(size=8, queues=range(queues))
        self.page = self.driver.page(1 << 16)

    def read(self, number: int = 0) -> Ring:
        ring = self.rings[number]
        self.ram.ram_write(self.page, bytes(16 + 513))
        ring.offer(ring.chain([(self.page, 16, False), (self.page + 16, 513, True)]))
        ring.ring()
        return ring

    def command(self, value: int) -> None:
        self.driver.config(4, 2, value)

    def data(self) -> bytes:
        return self.ram.ram_read(self.page + 16, 513)


@pytest.fixture
def guest(make_pc: Any) -> Iterator[Guest]:
    guest = Guest(make_pc)
    yield guest
    guest.disk.go.set()
    guest.pc.node.stop()


def test_without_the_bus_master_bit_nothing_is_read_or_written(guest: Guest) -> None:
    """Given the bit is clear, then a request waits, and memory stays; when it is set, it is served."""
    guest.command(MEMORY)
    guest.pc.fabric.messages.clear()
    ring = guest.read()
    assert ring.quiet(0.1) and guest.data() == bytes(513)
    assert not guest.pc.fabric.messages and not guest.disk.entered.is_set()
    guest.command(MEMORY | MASTER)
    assert ring.wait() == [(0, 513)]
    assert guest.data() == b"\xaa" * 512 + b"\0"


def test_clearing_the_bit_waits_for_what_is_under_way(guest: Guest) -> None:
    """Given a read that the disk has begun, when the bit is cleared, then no byte comes after that write."""
    guest.disk.go.clear()
    ring = guest.read()
    assert guest.disk.entered.wait(10)
    cleared = threading.Event()

    def clear() -> None:
        guest.command(MEMORY)
        cleared.set()

    clearing = threading.Thread(target=clear)
    clearing.start()
    assert not cleared.wait(0.1)
    guest.disk.go.set()
    clearing.join(10)
    assert cleared.is_set()
    before = bytes(guest.ram.data)
    time.sleep(0.05)
    assert bytes(guest.ram.data) == before
    guest.command(MEMORY | MASTER)
    assert ring.wait() == [(0, 513)]


def test_a_message_is_a_write_and_waits_for_the_bit(guest: Guest) -> None:
    """Given a configuration change while the bit is clear, then its message is pending, and is sent once."""
    guest.command(MEMORY)
    guest.pc.fabric.messages.clear()
    guest.pc.device.configuration_changed()
    assert not guest.pc.fabric.messages and guest.driver.pending() == 1
    guest.command(MEMORY | MASTER)
    assert [data for _, data in guest.pc.fabric.messages] == [0x40] and guest.driver.pending() == 0
    guest.command(MEMORY | MASTER)
    assert len(guest.pc.fabric.messages) == 1


def test_a_loaded_machine_keeps_the_bit(make_pc: Any, guest: Guest) -> None:
    """Given a device that may not use the bus when it is saved, then it may not when it is loaded."""
    guest.command(MEMORY)
    guest.pc.node.stop()
    saved = json.loads(json.dumps(guest.pc.node.save()))
    model = VirtioBlock(Disk(), name="vd", queues=2)  # type: ignore[arg-type]
    second = plug(make_pc, guest.ram, lambda bus: VirtioPci(model, bus))
    second.node.load(saved)
    second.node.start()
    guest.driver.pc = second
    ring = guest.read()
    assert ring.quiet(0.1)
    guest.command(MEMORY | MASTER)
    assert ring.wait() == [(0, 513)]
    second.node.stop()


def test_a_device_that_may_not_use_the_bus_can_be_reset(guest: Guest) -> None:
    """Given a request that waits for the bit, when the driver resets the device, then status reads 0."""
    guest.command(MEMORY)
    guest.read()
    guest.driver.reset()
    guest.command(MEMORY | MASTER)
    assert guest.rings[0].quiet()


@pytest.mark.parametrize("masked", [False, True])
def test_each_vector_goes_to_the_processor_that_its_address_names(make_pc: Any, masked: bool) -> None:
    """Given vectors for processors 0, 1 and 254, also set while masked, then each message has its address."""
    guest = Guest(make_pc)
    wanted = [(0xFEE0_0000 | apic << 12, 0x51 + number) for number, apic in enumerate((0, 1, 254))]
    for number, (address, data) in enumerate(wanted):
        guest.driver.vector(number, address, data, masked=masked)
    guest.pc.fabric.messages.clear()
    guest.pc.device.configuration_changed()
    for number in (0, 1):
        guest.read(number).wait()
    deadline = time.monotonic() + 10
    while bin(guest.driver.pending()).count("1") + len(guest.pc.fabric.messages) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    if masked:
        assert not guest.pc.fabric.messages and guest.driver.pending() == 0b111
        for number in (2, 0, 1):
            guest.driver.table(16 * number + 12, 0)
        assert guest.driver.pending() == 0
        wanted = [wanted[number] for number in (2, 0, 1)]
    assert guest.pc.fabric.messages == wanted
    guest.pc.node.stop()


def test_pending_bits_are_read_only(guest: Guest) -> None:
    """PCI 6.8.2.2: software may read the pending bits; what it writes there has no effect."""
    base = guest.driver.config(guest.driver.msix + 8, 4)
    address = guest.driver.bar(base & 7) + (base & ~7)
    guest.pc.node.access(MMIO, address, 8, True, 0xFFFF)
    assert guest.driver.pending() == 0
