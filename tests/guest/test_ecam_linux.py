# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux takes the MCFG for true, and reads configuration space as memory, on any host."""

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage

pytestmark = pytest.mark.linux

#: Registers of 00:00.0 by the last vCPU: identity; behind the 256 bytes; and a function that is not there.
READ = "for at in 0xC0000000 0xC0000100 0xC00F8000; do taskset -c $(($(nproc) - 1)) devmem $at 32; done"


@pytest.mark.parametrize("hosts", [1, 2])
def test_given_linux_when_it_finds_the_mcfg_then_it_uses_it_and_reads_there_what_the_ports_give(
    debian: DebianImage, hosts: int
) -> None:
    """Linux keeps /dev/mem from ranges that its drivers have taken, unless it is told otherwise."""
    words = "loglevel=7 iomem=relaxed"
    with Machine(2, "256M", debian.kernel, debian.initramfs(), hosts=hosts, append=words) as machine:
        machine.wait_shell(120)
        said = machine.run("dmesg | grep -iE 'MCFG|MMCONFIG|ECAM'", 60).output
        assert "[bus 00-00]" in said and "0xc0000000-0xc00fffff" in said, said
        assert "not using" not in said and "not reserved" not in said, said
        assert machine.run("grep -ic 'mmconfig\\|ecam' /proc/iomem", 60).output == "1\n"
        assert machine.run(READ, 60).output.split() == ["0x12378086", "0xFFFFFFFF", "0xFFFFFFFF"]
        assert machine.run("wc -c </sys/bus/pci/devices/0000:00:00.0/config", 60).output == "256\n"
