# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of VIRTIO 1.2's clauses (hw/virtio/CLAUSES.md) is whole; and rules that hold for every device."""

import ast
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.hw.backend.block import RawImage
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.backend.p9.folder import SharedFolder
from coremesh.hw.virtio.block import VirtioBlock
from coremesh.hw.virtio.console import VirtioConsole
from coremesh.hw.virtio.model import VirtioModel
from coremesh.hw.virtio.net import VirtioNet
from coremesh.hw.virtio.p9 import Virtio9p
from coremesh.hw.virtio.pci import VirtioPci
from coremesh.hw.virtio.rng import VirtioRng
from virtio_driver import Driver, Ram, plug

HERE = Path(__file__).parent
TABLE = HERE.parents[2] / "hw" / "virtio" / "CLAUSES.md"
ENTRY = re.compile(r"^(\d+)\. \*\*([\w. ]+)\*\* (.+):\n   `(test_\w+\.py)::(test_\w+)`$", re.MULTILINE)
NO_VECTOR = 0xFFFF


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_clause_of_the_table_has_its_test() -> None:
    """Given the table, then its numbers have no gap, and the test of each entry is there."""
    text = TABLE.read_text()
    entries = ENTRY.findall(text)
    assert len(entries) == len(re.findall(r"^\d+\.", text, re.MULTILINE)) > 60, "an entry of another shape"
    assert [int(entry[0]) for entry in entries] == list(range(1, len(entries) + 1))
    missing = [
        f"{file}::{name}"
        for _, _, _, file, name in entries
        if not (HERE / file).exists() or name not in functions_of(HERE / file)
    ]
    assert not missing


def test_each_test_of_the_transport_is_in_the_table() -> None:
    """Given the tests that name a clause of the transport, then the table has each of them."""
    named = {
        name
        for name, node in functions_of(HERE / "test_virtio_transport.py").items()
        if any(isinstance(d, ast.Call) and ast.unparse(d.func) == "clause" for d in node.decorator_list)
    }
    assert len(named) > 20
    assert named <= {entry[4] for entry in ENTRY.findall(TABLE.read_text())}


# --- every device ------------------------------------------------------------------------------------------


class Wire:
    """A network without an end."""

    def start(self, receive: Any) -> None:
        pass

    def send(self, frames: Any) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def counts(self) -> dict[str, int]:
        return {}


def block(folder: Path) -> VirtioModel:
    (folder / "disk").write_bytes(bytes(1 << 16))
    return VirtioBlock(RawImage(folder / "disk"), name="device", queues=2)


DEVICES: dict[str, Callable[[Path], VirtioModel]] = {
    "block": block,
    "net": lambda folder: VirtioNet(Wire(), name="device", mac=bytes(6), pairs=2),
    "console": lambda folder: VirtioConsole([ConsolePort(), ConsolePort()], name="device", names=["port"]),
    "rng": lambda folder: VirtioRng(name="device"),
    "9p": lambda folder: Virtio9p(SharedFolder(folder), name="device", tag="tag", workers=2),
}


@pytest.fixture(params=DEVICES)
def driver(request: pytest.FixtureRequest, make_pc: Any, tmp_path: Path) -> Iterator[Driver]:
    ram = Ram(4 << 20)
    pc = plug(make_pc, ram, lambda bus: VirtioPci(DEVICES[request.param](tmp_path), bus))
    pc.node.start()
    driver = Driver(pc, ram)
    driver.config(4, 2, 0x6)
    yield driver
    pc.node.stop()


def test_every_device_offers_the_features_of_rings(driver: Driver) -> None:
    """6: VERSION_1, INDIRECT_DESC and EVENT_IDX are offered; a driver may take VERSION_1 alone."""
    wanted = vd.VERSION_1 | vd.INDIRECT_DESC | vd.EVENT_IDX
    assert driver.features() & wanted == wanted
    driver.start(vd.VERSION_1, queues=(), msix=False)
    assert driver.status & vd.DRIVER_OK


def test_the_configuration_is_read_in_any_width(driver: Driver) -> None:
    """4.1.4.6.1: fields are read whole, in halves or by bytes, and all say the same."""
    length = driver.capabilities[vd.DEVICE_CFG].length & ~7
    data = bytes(driver.access(vd.DEVICE_CFG, at, 1) for at in range(length))
    for size in (2, 4, 8):
        parts = [driver.access(vd.DEVICE_CFG, at, size) for at in range(0, length, size)]
        assert b"".join(part.to_bytes(size, "little") for part in parts) == data


def test_a_reset_takes_the_vectors_of_all_events(driver: Driver) -> None:
    """4.1.5.1.2: after a reset neither a queue nor the configuration has a vector."""
    rings = driver.start(vd.VERSION_1, queues=(0,))
    assert driver.common(16, 2) == 0
    driver.common(22, 2, rings[0].index)
    assert driver.common(26, 2) == 1
    driver.reset()
    assert driver.common(16, 2) == NO_VECTOR
    for queue in range(driver.common(18, 2)):
        driver.common(22, 2, queue)
        assert driver.common(26, 2) == NO_VECTOR


def test_a_notification_of_any_width_wakes_its_queue(driver: Driver) -> None:
    """4.1.5.2: a write of 2 or 4 bytes to the queue's notification address is counted as one kick."""
    driver.start(vd.VERSION_1, queues=(0,))
    queue = driver.pc.device.queues[0]
    before = queue.counters()["kicks"]
    for size in (2, 4):
        driver.access(vd.NOTIFY_CFG, 0, size, 0)
    deadline = time.monotonic() + 5
    while queue.counters()["kicks"] < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert queue.counters()["kicks"] == before + 2


def test_a_loop_of_descriptors_stops_every_device_until_its_reset(driver: Driver) -> None:
    """2.7.5, 2.1.2: a chain that ends nowhere is a counted error; after a reset the device is as new."""
    count = driver.common(18, 2)
    for number in range(count):
        if number % 2 == 0 and count > 2 and driver.pc.device.model.DEVICE_ID in (1, 3):
            continue  # a receive queue is looked at when there is something to receive
        driver.next_page = Ram.BASE
        (ring,) = driver.start(vd.VERSION_1, queues=(number,), size=4)
        before = driver.pc.device.counts()["resets_needed"]
        ring.describe(0, driver.page(), 8, vd.NEXT, 1)
        ring.describe(1, driver.page(), 8, vd.NEXT, 0)
        ring.offer(0)
        ring.ring()
        deadline = time.monotonic() + 10
        while not driver.status & vd.NEEDS_RESET:
            assert time.monotonic() < deadline, number
            time.sleep(0.001)
        assert driver.pc.device.counts()["resets_needed"] == before + 1
