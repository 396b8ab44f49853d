# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's reset restarts the machine: in each way there is, on one host and several, with firmware too."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from baremetal_machine import MIB, PASSED
from boot_sector import HELLO, boot_sector
from coremesh.cluster.machine.images.seabios import fetch_seabios
from coremesh.core.errors import ImageFetchError
from mesh_machine import MeshMachine

CF9 = b"\xb0\x06\xba\xf9\x0c\xee"  # mov al, 6; mov dx, 0cf9h; out dx, al


@pytest.mark.parametrize(
    "shares,device_host",
    [([1], 0), ([2, 2], 0), ([0, 2], 0), ([2, 2], 1), ([2, 0], 1)],
    ids=["one-host", "two-hosts", "devices-alone-first", "devices-on-the-second", "devices-alone-second"],
)
def test_given_each_way_to_reset_when_a_guest_takes_it_then_it_starts_again_on_all_hosts(
    guest: Callable[[str], Path], shares: Sequence[int], device_host: int
) -> None:
    """Registers and devices are those of a start, the kernel is laid anew, other RAM and CMOS RAM stay."""
    with MeshMachine(
        guest("restart").read_bytes(), shares=shares, device_host=device_host, restarts=True
    ) as machine:
        machine.start()
        result = machine.finish()
        assert result.status == PASSED, result.story()
        assert machine.restarted == 5
    assert result.output.count(f"cores={sum(shares)}") == 6
    assert [vcpu["resets"] for vcpu in result.stats] == [5] * sum(shares)


@pytest.mark.parametrize(
    "shares,device_host",
    [([1], 0), ([1, 1], 0), ([1, 1], 1)],
    ids=["one-host", "two-hosts", "devices-on-the-second"],
)
def test_given_a_boot_sector_that_resets_when_the_machine_has_firmware_then_that_starts_again(
    tmp_path: Path, shares: Sequence[int], device_host: int
) -> None:
    try:
        bios = fetch_seabios()
    except ImageFetchError as error:
        pytest.skip(str(error))
    disk = tmp_path / "reset.img"
    disk.write_bytes(boot_sector(reset=CF9).ljust(MIB, b"\0"))
    with MeshMachine(
        b"", shares=shares, device_host=device_host, bios=bios, disks=[disk], restarts=True
    ) as machine:
        machine.start()
        result = machine.finish()
        assert result.status == PASSED, result.story()
        assert machine.restarted == 1
    assert result.output.count("SeaBIOS (version") == 2 and HELLO in result.output
