# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk's registers without the interpreter: what a guest's accesses go through, and what counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine
from coremesh.hw.ata.piix3_ide import Piix3Ide

ROUNDS = 40
LEAST = 10  # accesses of a transfer


def accesses(guest: Path, image: Path) -> tuple[int, dict[int | None, int]]:
    """Those of the IDE channel that came through Python, and all, by vCPU."""
    with BaremetalMachine(guest, vcpus=2, cmdline=f"rounds={ROUNDS}", disks=[image]) as machine:
        machine.start()
        result = machine.finish()
        assert result.status == PASSED, result.story()
        counted = {vcpu: count for name, vcpu, count, *_ in machine.node.uses() if name == "ide0"}
        return machine.node.devices["ide0"].accesses, counted


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image whose sectors hold their numbers."""
    path = tmp_path / "numbers.img"
    path.write_bytes(b"".join(number.to_bytes(4, "little") * 128 for number in range(2048)))
    return path


def test_given_a_guest_that_reads_by_dma_then_no_access_of_a_register_passes_the_interpreter(
    guest: Callable[[str], Path], image: Path
) -> None:
    """Each is counted for its vCPU all the same."""
    through_python, by_vcpu = accesses(guest("ide"), image)
    assert through_python == 0
    assert by_vcpu[0] > LEAST * ROUNDS
    assert by_vcpu[1] > 0


def test_given_a_channel_whose_ports_are_not_told_then_the_device_node_answers_as_well(
    guest: Callable[[str], Path], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the other test counts is counted. An access that a bus splits comes this way, too."""
    monkeypatch.setattr(Piix3Ide, "moved", lambda *_: None)
    through_python, by_vcpu = accesses(guest("ide"), image)
    assert through_python == sum(by_vcpu.values())
    assert through_python > LEAST * ROUNDS
