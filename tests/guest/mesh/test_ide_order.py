# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of a disk's DMA as cores see it that spin on its registers: on one host and on several.

A parallel emulator that took its IDE model from a sequential one raised the interrupt before the bus master
and the drive had come to rest; a core that ran meanwhile saw that. Two controls bring that order back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from baremetal_machine import PASSED, RunResult, run_on_coremesh
from coremesh.core._native import PythonBusMaster
from coremesh.core.engine import Host
from coremesh.hw.ata.channel import IdeChannel
from coremesh.hw.irq import IrqLine
from mesh_machine import run_on_mesh

SECTORS = 2048
TRANSFER = 16 * 512  # bytes, as the guest asks for them
ROUNDS = "rounds=25"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw image whose sectors hold their numbers."""
    image = tmp_path / "numbers.img"
    image.write_bytes(b"".join(number.to_bytes(4, "little") * 128 for number in range(SECTORS)))
    return image


Run = Callable[[Path, Path], RunResult]


def on_one_host(guest: Path, disk: Path) -> RunResult:
    return run_on_coremesh(guest, vcpus=4, cmdline=ROUNDS, disks=[disk])


def on_two_hosts(guest: Path, disk: Path) -> RunResult:
    return run_on_mesh(guest, shares=(2, 2), cmdline=ROUNDS, disks=[disk])


def on_cores_elsewhere(guest: Path, disk: Path) -> RunResult:
    """The devices on a host that has no core and no memory."""
    return run_on_mesh(guest, shares=(0, 2, 2), cmdline=ROUNDS, disks=[disk])


def on_the_second_host(guest: Path, disk: Path) -> RunResult:
    """The devices are not with the core that boots the guest."""
    return run_on_mesh(guest, shares=(2, 2), device_host=1, cmdline=ROUNDS, disks=[disk])


RUNS = pytest.mark.parametrize(
    "run",
    [on_one_host, on_two_hosts, on_cores_elsewhere, on_the_second_host],
    ids=["1-host", "2-hosts", "cores-elsewhere", "devices-elsewhere"],
)


@RUNS
def test_given_cores_that_spin_when_the_line_rises_then_data_and_registers_are_final(
    guest: Callable[[str], Path], disk: Path, run: Run
) -> None:
    result = run(guest("ide"), disk)
    assert result.status == PASSED, result.story()


class EarlyLine:
    """Guest RAM as the bus master sees it, which raises the disk's line with the data: before or right after.

    The bus master and the drive come to rest later, as in a model that completes a transfer in pieces.
    """

    def __init__(self, host: Host, when: str, lines: list[IrqLine]) -> None:
        self.ram_read = host.ram_read
        self._write = host.ram_write
        self._when = when
        self._written = 0
        self._lines = lines  # of the channels; the disk is on the first

    def ram_write(self, gpa: int, data: bytes) -> None:
        if self._when == "before":
            self._rise()
        self._write(gpa, data)
        self._written += len(data)
        if self._when == "after" and self._written % TRANSFER == 0:
            self._rise()

    def _rise(self) -> None:
        self._lines[0].set(True)
        time.sleep(0.001)


@RUNS
@pytest.mark.parametrize(("when", "seen"), [("before", "early_data"), ("after", "early_active")])
def test_given_the_wrong_order_when_the_same_cores_look_then_they_see_it(
    guest: Callable[[str], Path],
    disk: Path,
    run: Run,
    when: str,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Controls: the test above fails on a device that raises its interrupt too early."""
    lines: list[IrqLine] = []

    def bus_master(host: Host) -> PythonBusMaster:
        return PythonBusMaster(EarlyLine(host, when, lines), host)

    def build(channel: IdeChannel, irq: IrqLine, *others: Any) -> None:
        lines.append(irq)
        orderly(channel, irq, *others)

    orderly = IdeChannel.__init__
    monkeypatch.setattr(Host, "bus_master", bus_master, raising=True)
    monkeypatch.setattr(IdeChannel, "__init__", build)
    result = run(guest("ide"), disk)
    assert result.status != PASSED, result.story()
    assert result.values()[seen] > 0, result.story()
    assert result.values()["early_busy"] > 0, result.story()
