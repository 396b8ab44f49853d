# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's drivers on the IDE controller: DMA, a load from all vCPUs, a disc, a machine that is killed."""

import hashlib
import random
import re
import shutil
from pathlib import Path

import ext4_load
import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage
from synced_log import check

pytestmark = pytest.mark.linux


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("vcpus", "hosts"), [(4, 1), (2, 2)], ids=["one-host", "two-hosts"])
def test_given_an_ide_disk_when_all_vcpus_write_then_each_reads_its_own_and_the_host_finds_it_sound(
    debian: DebianImage, image: Path, tmp_path: Path, vcpus: int, hosts: int
) -> None:
    """By DMA, also from another host; the disc in the drive of the second channel reads as it is."""
    disc = tmp_path / "disc.iso"
    disc.write_bytes(random.Random(1).randbytes(512 << 10))
    with Machine(
        vcpus, "512M", debian.kernel, debian.initramfs(disks=True), hosts=hosts, disks=[image], cdrom=disc,
        append="quiet",
    ) as machine:  # fmt: skip
        machine.wait_shell(200)
        for device in ("1", "2"):
            mode = machine.run(f"cat /sys/class/ata_device/dev{device}.0/dma_mode", 60).output.strip()
            assert re.fullmatch(r"XFER_(MW|U)_?DMA_\d", mode), mode
        wanted = machine.run(ext4_load.ONE_VCPUS_SUM, 60).output
        result = machine.run(ext4_load.on("sda"), 200)
        assert (result.status, result.output) == (0, wanted * vcpus)
        read = machine.run("sha256sum </dev/sr0", 60).output
        assert read == f"{hashlib.sha256(disc.read_bytes()).hexdigest()}  -\n"
        # What the driver prints when registers do not agree with the interrupt that it got.
        complaints = (
            "dmesg | grep -E 'I/O error|EXT4-fs error|HSM|lost interrupt|failed command|frozen|limiting'"
        )
        assert machine.run(complaints, 60).output == ""
        counts = machine.device_stats().loc["ide0"]
        assert counts["bytes_moved"] > 200_000
        assert counts["faults"] == 0
    check(image, "-fn")


@pytest.mark.timeout(300)
def test_given_four_ide_disks_when_linux_probes_them_then_their_names_are_in_the_order_of_the_options(
    debian: DebianImage, tmp_path: Path
) -> None:
    """What is sda is not left to the order in which probes on four vCPUs end: a guest writes to it."""
    disks = [tmp_path / f"{number}.img" for number in range(4)]
    for number, disk in enumerate(disks):
        with disk.open("wb") as file:
            file.truncate((number + 1) << 20)
    with Machine(
        4, "256M", debian.kernel, debian.initramfs(disks=True), disks=disks, append="quiet"
    ) as machine:
        machine.wait_shell(200)
        sizes = machine.run("cd /sys/block; cat sda/size sdb/size sdc/size sdd/size", 60).output.split()
        assert [int(size) << 9 for size in sizes] == [1 << 20, 2 << 20, 3 << 20, 4 << 20]


@pytest.mark.timeout(300)
def test_given_a_disk_that_may_only_be_read_or_is_a_snapshot_then_the_image_stays_as_it_is(
    debian: DebianImage, image: Path, tmp_path: Path
) -> None:
    """A write to the first is an error in the guest; to the second it is there until the machine ends."""
    other = tmp_path / "other.img"
    shutil.copyfile(image, other)
    before = image.read_bytes(), other.read_bytes()
    disks = [f"{image},readonly", f"{other},snapshot"]
    with Machine(
        1, "256M", debian.kernel, debian.initramfs(disks=True), disks=disks, append="quiet"
    ) as machine:
        machine.wait_shell(200)
        assert machine.run("dd if=/dev/zero of=/dev/sda bs=4k count=1 conv=fsync", 60).status != 0
        wrote = machine.run("echo mine | dd of=/dev/sdb conv=fsync 2>/dev/null; head -c 4 /dev/sdb", 60)
        assert wrote.output == "mine"
    assert (image.read_bytes(), other.read_bytes()) == before
