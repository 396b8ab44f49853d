# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is killed while its guest flushes a log: what the guest was told to be flushed is there."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core.errors import CoremeshError
from synced_log import LOGS, SYNCED, SYNCED_LOG, check_synced

pytestmark = pytest.mark.linux

DEVICES = {"ide": "/dev/sda", "virtio": "/dev/vda"}


def kill_during_fsyncs(debian: DebianImage, image: Path, interface: str, seed: int) -> None:
    """One round: what a guest was told to be on the disk is there after its machine was killed."""
    disks = [f"{image},if={interface}"]
    with Machine(
        LOGS, "256M", debian.kernel, debian.initramfs(disks=True), disks=disks, append="quiet"
    ) as machine:
        machine.wait_shell(200)
        machine.console.write(SYNCED_LOG.replace("/dev/sda", DEVICES[interface]))
        output = b""
        until: float | None = None
        deadline = time.monotonic() + 120
        while until is None or time.monotonic() < until:
            output += machine.console.take(0.1)[0]
            if until is None and len(SYNCED.findall(output)) > 3:
                until = time.monotonic() + random.Random(seed).uniform(0.2, 2.0)
            assert time.monotonic() < deadline, output
        os.kill(machine.facts["pid"], signal.SIGKILL)
        with contextlib.suppress(CoremeshError):  # what it said until then counts, too
            while not (taken := machine.console.take(1.0))[1]:
                output += taken[0]
    check_synced(image, output)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("interface", "seed"), [("ide", 0), ("virtio", 1), ("ide", 2), ("virtio", 3), ("ide", 4)]
)
def test_given_fsyncs_when_the_machine_is_killed_then_what_was_flushed_is_there(
    debian: DebianImage, image: Path, interface: str, seed: int
) -> None:
    kill_during_fsyncs(debian, image, interface, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ten", range(5))
@pytest.mark.parametrize("interface", sorted(DEVICES))
def test_given_ten_killed_machines_then_nothing_that_was_flushed_is_lost(
    debian: DebianImage, image: Path, interface: str, ten: int
) -> None:
    """A hundred rounds in all."""
    for seed in range(10):
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        kill_during_fsyncs(debian, image, interface, 100 + 10 * ten + seed)
