# SPDX-License-Identifier: GPL-2.0-or-later
"""What a driver sees of virtio over PCI, clause by clause of VIRTIO 1.2: each test names its clause."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

import sys

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.hw.backend.block import RawImage
from coremesh.hw.virtio.block import VirtioBlock
from coremesh.hw.virtio.pci import VirtioPci
from virtio_driver import Driver, Ram, plug
from virtqueue_hostile import HOSTILE, one

QUEUES = 2
NO_VECTOR = 0xFFFF
Clause = Callable[[Callable[..., None]], Callable[..., None]]
CLAUSES: dict[str, str] = {}


def clause(number: str, text: str) -> Clause:
    """Says which clause of the specification a test is of; a number stands once."""

    def note(test: Callable[..., None]) -> Callable[..., None]:
        assert number not in CLAUSES
        CLAUSES[number] = text
        test.__doc__ = f"VIRTIO 1.2, {number}: {text}"
        return test

    return note


@pytest.fixture
def ram() -> Ram:
    return Ram()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[RawImage]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    image = RawImage(path)
    yield image
    image.close()


@pytest.fixture
def pc(make_pc: Any, ram: Ram, image: RawImage) -> Iterator[Any]:
    pc = plug(make_pc, ram, lambda bus: VirtioPci(VirtioBlock(image, name="vd", queues=QUEUES), bus))
    pc.node.start()
    yield pc
    pc.node.stop()


@pytest.fixture
def driver(pc: Any, ram: Ram) -> Driver:
    driver = Driver(pc, ram)
    driver.config(4, 2, 0x6)
    return driver


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it does: a worker is at it."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def messages(pc: Any) -> list[int]:
    """The data of the interrupt messages since the last look, when the workers are at rest."""
    eventually(lambda: all(queue.idle for queue in pc.device.queues))
    found = [data for _, data in pc.fabric.messages]
    pc.fabric.messages.clear()
    return found


def flush(ring: vd.Ring) -> None:
    """A request of the device's simplest kind."""
    ram, page = ring.driver.ram, ring.driver.page()
    ram.ram_write(page, (4).to_bytes(4, "little") + bytes(12) + b"\xff")
    ring.offer(ring.chain([(page, 16, False), (page + 16, 1, True)]))
    ring.ring()
    assert ring.wait() == [(0, 1)]
    assert ram.ram_read(page + 16, 1) == b"\0"


# --- discovery ---------------------------------------------------------------------------------------------


@clause("4.1.2.1", "the device has vendor 1AF4, device 1040 + its number, and a revision of at least 1")
def test_identity(driver: Driver) -> None:
    assert driver.config(0, 4) == 0x1042_1AF4
    assert driver.config(8, 1) >= 1
    assert driver.config(0x2E, 2) >= 0x40


@clause("4.1.4.1", "each structure has a capability, whose BAR is 0 to 5 and holds it")
def test_capabilities(driver: Driver) -> None:
    assert set(driver.capabilities) == {1, 2, 3, 4, 5}
    for kind in (1, 2, 3, 4):
        found = driver.capabilities[kind]
        assert found.bar <= 5 and found.offset % 4 == 0
        size = driver.config(0x10 + 4 * found.bar, 4)
        driver.config(0x10 + 4 * found.bar, 4, 0xFFFF_FFFF)
        length = -(driver.config(0x10 + 4 * found.bar, 4) & ~0xF) & 0xFFFF_FFFF
        driver.config(0x10 + 4 * found.bar, 4, size)
        assert 0 < found.offset + found.length <= length


@clause("4.1.4.4.1", "the notify multiplier is 0 or a power of two, and each queue's address lies within")
def test_notify_capability(driver: Driver) -> None:
    notify = driver.capabilities[vd.NOTIFY_CFG]
    assert notify.multiplier & (notify.multiplier - 1) == 0
    for queue in range(QUEUES):
        driver.common(22, 2, queue)
        assert driver.common(30, 2) * notify.multiplier + 2 <= notify.length


@clause("4.1.4.9", "the PCI configuration window reaches the structures without their BARs")
def test_configuration_window(driver: Driver) -> None:
    window = driver.capabilities[vd.PCI_CFG].at
    common = driver.capabilities[vd.COMMON_CFG]
    driver.config(window + 4, 1, common.bar)
    driver.config(window + 8, 4, common.offset + 18)
    driver.config(window + 12, 4, 2)
    assert driver.config(window + 16, 2) == QUEUES
    driver.config(window + 8, 4, common.offset + 20)
    driver.config(window + 12, 4, 1)
    driver.config(window + 16, 1, vd.ACKNOWLEDGE)
    assert driver.status == vd.ACKNOWLEDGE


@clause("4.1.4.9-limits", "a window that lies in no BAR, or is of another size, reaches nothing")
def test_configuration_window_of_nonsense(driver: Driver) -> None:
    window = driver.capabilities[vd.PCI_CFG].at
    for bar, offset, length in ((9, 0, 4), (0, 0xFFFF_FFF0, 4), (0, 20, 3), (0, 0x3FFE, 4)):
        driver.config(window + 4, 1, bar)
        driver.config(window + 8, 4, offset)
        driver.config(window + 12, 4, length)
        driver.config(window + 16, 4)
        driver.config(window + 16, 4, 0xFFFF_FFFF)
    assert driver.status == 0


# --- features and status -----------------------------------------------------------------------------------


@clause("4.1.4.3.1", "feature words beyond the second read zero; a queue that is not there has size zero")
def test_absent_words(driver: Driver) -> None:
    assert driver.features() & vd.VERSION_1
    driver.common(0, 4, 2)
    assert driver.common(4, 4) == 0
    assert driver.common(18, 2) == QUEUES
    driver.common(22, 2, QUEUES)
    assert driver.common(24, 2) == 0 and driver.common(28, 2) == 0


@clause("2.2.1", "FEATURES_OK does not stay for features that were not offered, nor without VERSION_1")
def test_refused_features(driver: Driver) -> None:
    for features in (vd.VERSION_1 | 1 << 24, vd.VERSION_1 | 1 << 60, vd.EVENT_IDX, 0):
        driver.reset()
        driver.status = vd.ACKNOWLEDGE | vd.DRIVER
        assert not driver.accept(features)
    driver.reset()
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    assert driver.accept(driver.features())


@clause("2.2.2", "features do not change after FEATURES_OK")
def test_frozen_features(driver: Driver) -> None:
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    assert driver.accept(vd.VERSION_1)
    driver.accept(vd.VERSION_1 | vd.EVENT_IDX)
    driver.common(8, 4, 0)
    assert driver.common(12, 4) == 0


@clause("2.4.1", "after a reset all is as at the start, and the same driver can begin anew")
def test_reset(driver: Driver, pc: Any) -> None:
    for _ in range(3):
        (ring,) = driver.start(size=8)
        flush(ring)
        driver.reset()
        assert driver.common(16, 2) == NO_VECTOR
        for queue in range(QUEUES):
            driver.common(22, 2, queue)
            assert driver.common(24, 2) == 256 and driver.common(26, 2) == NO_VECTOR
            assert driver.common(28, 2) == 0 and driver.common(32, 8) == 0
        driver.common(8, 4, 0)
        assert driver.common(12, 4) == 0
        ring.ring()
        assert ring.quiet()


@clause("2.1.2", "nothing is served before DRIVER_OK, and everything that waited after it")
def test_before_driver_ok(driver: Driver, ram: Ram) -> None:
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    driver.accept(vd.VERSION_1)
    ring = driver.lay_queue(0, 8)
    page = driver.page()
    ram.ram_write(page, (4).to_bytes(4, "little") + bytes(13))
    ring.offer(ring.chain([(page, 16, False), (page + 16, 1, True)]))
    ring.ring()
    assert ring.quiet()
    driver.status = driver.status | vd.DRIVER_OK
    assert ring.wait() == [(0, 1)]


@clause("4.1.5.1.2", "a vector reads back as it was written, or as NO_VECTOR where there is none")
def test_vectors_read_back(driver: Driver) -> None:
    for register in (16, 26):
        for value, wanted in ((0, 0), (QUEUES, QUEUES), (QUEUES + 1, NO_VECTOR), (NO_VECTOR, NO_VECTOR)):
            driver.common(register, 2, value)
            assert driver.common(register, 2) == wanted


@clause("4.1.4.3.2", "a queue may be made smaller, its size stays a power of two, and is fixed once enabled")
def test_queue_size(driver: Driver) -> None:
    for value, wanted in ((64, 64), (0, 64), (48, 64), (512, 64), (1, 1), (256, 256)):
        driver.common(24, 2, value)
        assert driver.common(24, 2) == wanted
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    driver.accept(vd.VERSION_1)
    driver.lay_queue(0, 8)
    driver.common(24, 2, 16)
    driver.common(28, 2, 0)
    assert (driver.common(24, 2), driver.common(28, 2)) == (8, 1)


@clause("4.1.3.1", "fields of 64 bits are written whole or in halves")
def test_halves(driver: Driver) -> None:
    driver.common(32, 8, 0x1234_5678_9ABC_DEF0)
    driver.common(40, 4, 0x9ABC_DEF0)
    driver.common(44, 4, 0x1234_5678)
    assert driver.common(32, 8) == driver.common(40, 8) == 0x1234_5678_9ABC_DEF0
    assert driver.common(36, 4) == 0x1234_5678


@clause("3.1.1", "a driver that starts over after a half-made set-up finds the device as new")
def test_half_configured(driver: Driver) -> None:
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    driver.accept(vd.VERSION_1)
    driver.enable_msix()
    driver.lay_queue(0, 8, vector=1)
    driver.reset()
    driver.enable_msix(False)
    rings = driver.start(queues=range(QUEUES), size=8, msix=False)
    for ring in rings:
        flush(ring)


# --- interrupts --------------------------------------------------------------------------------------------


@clause("4.1.5.3.1", "with MSI-X a used buffer is a message of the queue's vector, and ISR stays zero")
def test_msix(driver: Driver, pc: Any) -> None:
    rings = driver.start(queues=range(QUEUES), size=8)
    messages(pc)
    flush(rings[1])
    assert messages(pc) == [0x42]
    assert driver.access(vd.ISR_CFG, 0, 1) == 0
    flush(rings[0])
    assert messages(pc) == [0x41]


@clause("4.1.4.5.1", "without MSI-X ISR says what it was, reading clears it and takes the pin back")
def test_isr(driver: Driver, pc: Any) -> None:
    (ring,) = driver.start(size=8, msix=False)
    pin = 18  # PIRQC: INTA of slot 3
    pc.route(pin, 0x55, 1 << 15 | 1 << 13)
    messages(pc)
    flush(ring)
    eventually(lambda: bool(pc.fabric.messages))
    assert [data & 0xFF for _, data in pc.fabric.messages] == [0x55]
    assert driver.config(6, 2) & 8
    assert driver.access(vd.ISR_CFG, 0, 1) == 1
    assert driver.access(vd.ISR_CFG, 0, 1) == 0
    assert not driver.config(6, 2) & 8
    assert pc.node.devices["ioapic"].levels[pin] is True


@clause("PCI-6.8.3.4", "a message while its vector is masked is pending, and is sent once when it is not")
def test_masked_vector(driver: Driver, pc: Any) -> None:
    (ring,) = driver.start(size=8)
    messages(pc)
    driver.table(16 + 12, 1)
    flush(ring)
    flush(ring)
    assert messages(pc) == [] and driver.pending() == 1 << 1
    driver.vector(1, 0xFEE0_0000, 0x77, masked=True)  # changed while it is masked, as Linux does
    driver.table(16 + 12, 0)
    assert messages(pc) == [0x77] and driver.pending() == 0


@clause("PCI-6.8.3.3", "the function mask holds every vector's messages back")
def test_masked_function(driver: Driver, pc: Any) -> None:
    rings = driver.start(queues=range(QUEUES), size=8)
    messages(pc)
    driver.config(driver.msix + 2, 2, 0xC000)
    for ring in rings:
        flush(ring)
    assert messages(pc) == [] and driver.pending() == 0b110
    driver.config(driver.msix + 2, 2, 0x8000)
    assert sorted(messages(pc)) == [0x41, 0x42]


@clause("2.7.7", "without EVENT_IDX the driver's flag suppresses interrupts")
def test_no_interrupt(driver: Driver, pc: Any, ram: Ram) -> None:
    (ring,) = driver.start(size=8)
    messages(pc)
    ram.ram_write(ring.available, b"\1\0")
    flush(ring)
    assert messages(pc) == []
    ram.ram_write(ring.available, b"\0\0")
    flush(ring)
    assert messages(pc) == [0x41]


@clause("2.7.7.2", "with EVENT_IDX the driver is interrupted when used passes the index that it named")
def test_used_event(driver: Driver, pc: Any, ram: Ram) -> None:
    (ring,) = driver.start(vd.VERSION_1 | vd.EVENT_IDX, size=8)
    ram.ram_write(ring.available + 4 + 2 * ring.size, (2).to_bytes(2, "little"))
    messages(pc)
    counts = []
    for _ in range(5):
        flush(ring)
        counts.append(len(messages(pc)))
    assert sum(counts[1:]) == 1 and counts[2] == 1, "the third element has index 2"


@clause("2.7.10", "with EVENT_IDX the device names the index at which it wants to be rung")
def test_available_event(driver: Driver, ram: Ram) -> None:
    (ring,) = driver.start(vd.VERSION_1 | vd.EVENT_IDX, size=8)
    for count in range(1, 20):
        flush(ring)
        event = ring.used + 4 + 8 * ring.size
        told = count.to_bytes(2, "little")
        eventually(partial(lambda at, value: ram.ram_read(at, 2) == value, event, told))


@clause("2.7.13.3", "ring indexes wrap at 65536, at any queue size")
def test_wrap(driver: Driver, pc: Any) -> None:
    (ring,) = driver.start(size=4)
    registers = pc.device._queue_registers[0]
    pc.device.queues[0].stop()
    registers.position = (65534, 65534, 65534)
    ring.offered = ring.seen = 65534
    for part in (ring.available, ring.used):
        driver.ram.ram_write(part + 2, (65534).to_bytes(2, "little"))
    with pc.device.lock:
        pc.device._start_queue(registers, pc.device.queues[0])
    for _ in range(5):
        flush(ring)
    assert ring.seen == 3


# --- what no driver does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_queues_stop_the_device_until_its_reset(driver: Driver, pc: Any, ram: Ram, what: str) -> None:
    """VIRTIO 1.2, 2.1.2: given a driver's error, then DEVICE_NEEDS_RESET and a configuration interrupt.

    Nothing else is served until the reset, and the other queue and the next driver work as ever after it.
    """
    rings = driver.start(vd.VERSION_1 | vd.INDIRECT_DESC, queues=range(QUEUES), size=8)
    messages(pc)
    page = driver.page()
    HOSTILE[what](rings[0], page)
    rings[0].ring()
    eventually(lambda: bool(driver.status & vd.NEEDS_RESET))
    assert messages(pc) == [0x40]
    counts = pc.node.counters()["vd"]
    assert counts["resets_needed"] == 1 and counts["faults"] == 0
    rings[1].ring()
    assert rings[1].quiet(0.02)
    driver.next_page = Ram.BASE
    (ring,) = driver.start(size=8)
    flush(ring)


@clause("2.7.5.3.1", "an indirect table without its feature is an error")
def test_indirect_not_negotiated(driver: Driver, pc: Any) -> None:
    (ring,) = driver.start(vd.VERSION_1, size=8)
    one(0, 32, vd.INDIRECT)(ring, driver.page())
    ring.ring()
    eventually(lambda: bool(driver.status & vd.NEEDS_RESET))


@clause("2.7.4", "rings that are not aligned are an error")
def test_misaligned(driver: Driver) -> None:
    driver.status = vd.ACKNOWLEDGE | vd.DRIVER
    driver.accept(vd.VERSION_1)
    driver.common(32, 8, Ram.BASE + 8)
    driver.common(28, 2, 1)
    assert driver.common(28, 2) == 0 and driver.status & vd.NEEDS_RESET


# --- reset and state ---------------------------------------------------------------------------------------


class SlowDisk:
    """A backend whose writes wait to be let go."""

    size, read_only, can_discard = 1 << 20, False, False

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def read(self, offset: int, buffers: Any) -> None:
        self.entered.set()
        assert self.go.wait(20)
        for buffer in buffers:
            buffer[:] = b"\xaa" * len(buffer)

    def flush(self) -> None:
        pass


@clause("2.4.2", "status reads 0 only when no request under way touches memory any more")
def test_reset_waits(make_pc: Any, ram: Ram) -> None:
    disk = SlowDisk()
    model = VirtioBlock(disk, name="slow", queues=1)  # type: ignore[arg-type]
    pc = plug(make_pc, ram, lambda bus: VirtioPci(model, bus))
    pc.node.start()
    driver = Driver(pc, ram)
    (ring,) = driver.start(size=8)
    page = driver.page()
    ram.ram_write(page, bytes(16))
    ring.offer(ring.chain([(page, 16, False), (page + 512, 513, True)]))
    ring.ring()
    assert disk.entered.wait(10)
    driver.status = 0
    assert driver.status != 0, "the read is under way"
    disk.go.set()
    driver.reset()
    after = ram.ram_read(page, 2048)
    time.sleep(0.05)
    assert ram.ram_read(page, 2048) == after
    pc.node.stop()


@clause("2.1", "a device that was saved goes on where it was")
def test_save_and_load(make_pc: Any, driver: Driver, pc: Any, ram: Ram, tmp_path: Path) -> None:
    (ring,) = driver.start(vd.VERSION_1 | vd.EVENT_IDX, size=4)
    for _ in range(6):
        flush(ring)
    messages(pc)
    pc.node.stop()
    saved = json.loads(json.dumps(pc.node.save()))
    (tmp_path / "copy").write_bytes(bytes(1 << 20))
    model = VirtioBlock(RawImage(tmp_path / "copy"), name="vd", queues=QUEUES)
    second = plug(make_pc, ram, lambda bus: VirtioPci(model, bus))
    second.node.load(saved)
    second.node.start()
    driver.pc = second
    ram.ram_write(ring.available + 4 + 2 * ring.size, (6).to_bytes(2, "little"))
    flush(ring)
    assert messages(second) == [0x41]
    second.node.stop()
    assert (
        json.loads(json.dumps(second.node.save()))["vd"]["interrupts_state"]
        == saved["vd"]["interrupts_state"]
    )
