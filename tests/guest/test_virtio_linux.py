# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's drivers on virtio devices: what all vCPUs write at once is there, and the host finds it sound."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.core.errors import ImageFetchError

pytestmark = pytest.mark.linux

# Each vCPU writes files of its own and deletes one; then all are read from the disk again, not from memory.
LOAD = """
cd /; mkdir -p /disk; mount -t ext4 /dev/vda /disk
cat >/load <<'END'
mkdir /disk/$1; for n in 1 2 3 4; do seq $((n * 4000)) >/disk/$1/$n; done; sync; rm /disk/$1/2
END
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh /load $cpu & done
wait
umount /disk; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro /dev/vda /disk
for cpu in $(seq 0 $(($(nproc) - 1))); do cat /disk/$cpu/* | sha256sum; done
umount /disk
"""
WANTED = "{ seq 4000; seq 12000; seq 16000; } | sha256sum"


@pytest.fixture(scope="module")
def debian() -> Iterator[DebianImage]:
    try:
        yield fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    shutdown()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 file system, made and later checked by the host's own tools."""
    if shutil.which("mkfs.ext4") is None or shutil.which("e2fsck") is None:
        pytest.skip("this host has no mkfs.ext4 and e2fsck: apt install e2fsprogs")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return path


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("vcpus", "hosts"), [(4, 1), (4, 2)], ids=["one-host", "two-hosts"])
def test_ext4_holds_what_all_vcpus_write(debian: DebianImage, image: Path, vcpus: int, hosts: int) -> None:
    """Given an ext4 image as a virtio disk, when every vCPU writes to it at once, also from another host.

    Then each reads its own bytes back, every queue has interrupted, and the host's fsck finds nothing.
    """
    disk = Disk(image, interface="virtio")
    with Machine(
        vcpus, "512M", debian.kernel, debian.initramfs(disks=True), hosts=hosts, disks=[disk], append="quiet"
    ) as machine:
        machine.wait_shell(200)
        wanted = machine.run(WANTED, 60).output
        assert re.fullmatch(r"[0-9a-f]{64}  -\n", wanted)
        result = machine.run(LOAD, 200)
        assert (result.status, result.output) == (0, wanted * vcpus)
        interrupts = machine.run("grep 'MSI.*virtio.*req' /proc/interrupts", 60).output.splitlines()
        assert len(interrupts) == vcpus, "a queue for each vCPU, each with a vector of its own"
        assert machine.run("dmesg | grep -E 'I/O error|EXT4-fs error'", 60).output == ""
        counts = machine.device_stats().loc["virtio-blk0"]
        assert counts["writes"] > vcpus and counts["reads"] > 0 and counts["flushes"] > 0
        assert counts["bytes_written"] > vcpus * 100_000
        assert counts["errors"] == counts["resets_needed"] == 0
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
