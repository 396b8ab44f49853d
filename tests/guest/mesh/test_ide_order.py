# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of a disk's DMA as cores see it that spin on its registers: on one host and on several.

A parallel emulator that took its IDE model from a sequential one raised the interrupt before the bus master
and the drive had come to rest; a core that ran meanwhile saw that. Two controls bring that order back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, RunResult, run_on_coremesh
from coremesh.hw.ata.channel import IdeChannel
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.prd import move
from coremesh.hw.ata.registers import BMISTA
from mesh_machine import run_on_mesh

SECTORS = 2048
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


RUNS = pytest.mark.parametrize(
    "run", [on_one_host, on_two_hosts, on_cores_elsewhere], ids=["1-host", "2-hosts", "cores-elsewhere"]
)


@RUNS
def test_given_cores_that_spin_when_the_line_rises_then_data_and_registers_are_final(
    guest: Callable[[str], Path], disk: Path, run: Run
) -> None:
    result = run(guest("ide"), disk)
    assert result.status == PASSED, result.story()


def interrupt_before_data(channel: IdeChannel, drive: Drive) -> None:
    """The order of a model that completes a transfer first and moves it then."""
    transfer, table = drive.transfer(), channel.bmidtp
    channel.bmista = channel.bmista & ~BMISTA.BMIDEA | BMISTA.IDEINTS
    channel._irq.set(True)
    channel.lock.release()
    time.sleep(0.001)
    try:
        outcome = move(transfer, channel._memory, table)
    finally:
        channel.lock.acquire()
    channel._report(drive, outcome)


def interrupt_before_status(channel: IdeChannel, drive: Drive) -> None:
    """The data are there, the line rises, and only then the bus master and the drive come to rest."""
    transfer, table = drive.transfer(), channel.bmidtp
    channel.lock.release()
    try:
        outcome = move(transfer, channel._memory, table)
    finally:
        channel.lock.acquire()
    channel.bmista |= BMISTA.IDEINTS
    channel._irq.set(True)
    channel.lock.release()
    time.sleep(0.001)
    channel.lock.acquire()
    channel._report(drive, outcome)


@RUNS
@pytest.mark.parametrize(
    ("wrong_order", "seen"),
    [(interrupt_before_data, "early_data"), (interrupt_before_status, "early_active")],
)
def test_given_the_wrong_order_when_the_same_cores_look_then_they_see_it(
    guest: Callable[[str], Path],
    disk: Path,
    run: Run,
    wrong_order: Callable[[IdeChannel, Drive], None],
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Controls: the test above fails on a device that raises its interrupt too early."""
    monkeypatch.setattr(IdeChannel, "_work_on_dma", wrong_order)
    result = run(guest("ide"), disk)
    assert result.status != PASSED, result.story()
    assert result.values()[seen] > 0, result.story()
    assert result.values()["early_busy"] > 0, result.story()
