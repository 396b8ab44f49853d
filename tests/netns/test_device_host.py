# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices on a host of their own, the cores on two others, and what is left when that host is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.machine.cmdline import command_line
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.option_table import PROMPT
from coremesh.core._native import link_priority
from coremesh.core.errors import ImageFetchError
from host_processes import NetworkMachine, description_of
from network import Network
from synced_log import SYNCED, SYNCED_LOG, check_synced

SECONDS_TO_NOTICE = 3.0 if link_priority() in ("fifo", "nice") else 5.0


def boot(network: Network, image: Path, interface: str) -> NetworkMachine:
    """Debian's kernel on cores of hosts 1 and 2; host 0 has the devices, the disk among them."""
    try:
        debian = fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    kernel = debian.kernel.read_bytes()
    description = description_of(
        kernel, (0, 1, 1), command_line(kernel, shares=(0, 1, 1), append="quiet"), 256,
        initrd=debian.initramfs(disks=True), prompt=PROMPT, disks=check_disks([f"{image},if={interface}"]),
    )  # fmt: skip
    machine = NetworkMachine(network, description)
    machine.start()
    return machine


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("interface", "device"), [("virtio", "/dev/vda"), ("ide", "/dev/sda")])
def test_given_devices_on_a_third_host_when_it_is_killed_then_all_stop_and_what_was_flushed_is_there(
    network: Network, image: Path, interface: str, device: str
) -> None:
    """Linux writes its log from both hosts with cores. The kill is a SIGKILL in the middle of it."""
    machine = boot(network, image, interface)
    try:
        deadline = time.monotonic() + 400
        while machine.call("wait_shell", 1.0) is None:
            assert time.monotonic() < deadline, machine.console()
        assert machine.call("stats") == [], "host 0 has no vCPU"
        machine.call("feed_console", SYNCED_LOG.replace("/dev/sda", device).encode())
        output, cursor = b"", 0
        while len({log for log, _ in SYNCED.findall(output)}) < 2 or len(SYNCED.findall(output)) < 8:
            assert time.monotonic() < deadline, output
            data, cursor, _ = machine.call("read_console", cursor, 0.2)
            output += data
        os.kill(machine.pid(0), signal.SIGKILL)
        killed = time.monotonic()
        ends = [machine.call("wait", 15.0, timeout=30, host=host) for host in (1, 2)]
        assert time.monotonic() - killed <= SECONDS_TO_NOTICE, ends
        assert all(end is not None and end.kind in ("host-lost", "fenced") for end in ends), ends
    finally:
        machine.close()
    check_synced(image, output)
