# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that writes garbage into a virtio function: configuration space, registers, vectors, doorbells."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

from coremesh.hw.backend.block import RawImage
from coremesh.hw.decode import MMIO, PORT
from coremesh.hw.virtio.block import VirtioBlock
from coremesh.hw.virtio.pci import VirtioPci
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import Driver, Ram, plug

SIZES = st.sampled_from([1, 2, 4, 8])
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 0xF, 0x40, 0x80, 0x8000, 0xC000, 0xFFFF, 0xFFFF_FFFF, Ram.BASE]),
    st.integers(0, 2**64 - 1),
)
CONFIG = st.tuples(st.just("config"), st.integers(0, 255), SIZES, st.booleans(), VALUES)
COMMON = st.tuples(
    st.just("bar"), st.one_of(st.sampled_from([0, 8, 12, 16, 20, 22, 24, 26, 28, 32, 36, 40, 48]),
    st.integers(0, 0x4FFF)), SIZES, st.booleans(), VALUES,
)  # fmt: skip
NOTIFY = st.tuples(st.just("bar"), st.integers(0x3000, 0x3010), SIZES, st.just(True), VALUES)
EVENT = st.one_of(CONFIG, COMMON, COMMON, NOTIFY, st.sampled_from(["reset", "save", "start"]))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> RawImage:
    path = tmp_path_factory.mktemp("fuzz") / "disk"
    path.write_bytes(bytes(1 << 16))
    return RawImage(path)


def begin_anew(pc: Any, ram: Ram) -> Any:
    """A driver that gives the function its addresses, and starts it."""
    for at, value in ((0x10, 0xD000_0000), (0x14, 0xD001_0000), (0x04, 6)):
        pc.outl(0xCF8, 1 << 31 | 3 << 11 | at)
        pc.outl(0xCFC, value)
    driver = Driver(pc, ram)
    return driver, driver.start(size=4)[0]


def apply(pc: Any, ram: Ram, event: Any) -> None:
    if event == "reset":
        pc.node.reset()
    elif event == "save":
        json.dumps(pc.node.devices["vd"].save())
    elif event == "start":
        begin_anew(pc, ram)
    else:
        where, at, size, write, value = event
        value &= (1 << 8 * size) - 1
        if where == "config":
            at &= -min(size, 4)
            pc.outl(0xCF8, 1 << 31 | 3 << 11 | at & 0xFC)
            answer = pc.node.access(PORT, 0xCFC + at % 4, size, write, value)
        else:
            bar = pc.device.function.bars[at >= 0x4000]
            base = pc.device.function.base(bar)
            answer = pc.node.access(MMIO, base + (at & 0x3FFF & -size), size, write, value)
        assert 0 <= answer < 1 << 8 * size


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(EVENT, max_size=40))
def test_garbage_in_a_virtio_function_is_answered_and_a_new_driver_finds_it_well(
    make_pc: Any, image: RawImage, events: list[Any]
) -> None:
    """Given any accesses, resets and half-made drivers, then none fails, no lock is left, nothing waits.

    After a reset of the board's bus a driver starts the device and is served.
    """
    ram = Ram()
    pc = plug(make_pc, ram, lambda bus: VirtioPci(VirtioBlock(image, name="vd", queues=2), bus))
    pc.node.start()
    begin = time.perf_counter()
    try:
        for event in events:
            apply(pc, ram, event)
        for device in pc.node.devices.values():
            assert device.faults == 0, device.name
            assert not device.lock.locked(), device.name
        pc.node.reset()
        driver, ring = begin_anew(pc, ram)
        page = driver.page()
        ram.ram_write(page, b"\x04" + bytes(16))
        ring.offer(ring.chain([(page, 16, False), (page + 16, 1, True)]))
        ring.ring()
        assert ring.wait() == [(0, 1)]
    finally:
        pc.node.stop()
    assert time.perf_counter() - begin < 20
