# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's 9p driver on a shared folder: trees go both ways whole, from all vCPUs at once, over two hosts."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.core.errors import ImageFetchError

pytestmark = pytest.mark.linux

MOUNT = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 work /mnt"
# Each vCPU makes a tree of its own, and all read all of them again.
LOAD = """
cat >/load <<'END'
mkdir -p /mnt/$1/a/b && for n in 1 2 3 4; do seq $((n * 1000)) >/mnt/$1/a/b/$n; done
ln -s b /mnt/$1/a/link; mv /mnt/$1/a/b/1 /mnt/$1/a/first; rm /mnt/$1/a/link/2
END
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh /load $cpu & done
wait
for cpu in $(seq 0 $(($(nproc) - 1))); do
    (cd /mnt/$cpu && find . -type f | sort | xargs cat | sha256sum)
done
"""


@pytest.fixture(autouse=True)
def debian() -> Iterator[None]:
    try:
        if not fetch_debian().has_module("9p"):
            fetch_debian(refresh=True)
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    yield
    shutdown()


def tree(folder: Path) -> dict[str, str]:
    """Hashes of the files in a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("vcpus", "hosts"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)], ids=["one-host", "two-hosts"]
)
def test_trees_are_copied_both_ways(tmp_path: Path, vcpus: int, hosts: int) -> None:
    """Given a tree in a folder, when the guest copies it in and out, and every vCPU makes one, all are whole.

    A link to the outside leads into the guest's own files; a folder that is only read stays as it is.
    """
    work, kept = tmp_path / "work", tmp_path / "kept"
    for folder in (work / "in" / "deep", kept):
        folder.mkdir(parents=True)
    for number in range(30):
        (work / "in" / f"{number}").write_bytes(os.urandom(number * 3000))
    (work / "in" / "deep" / "large").write_bytes(os.urandom(3 << 20))
    (work / "out-of-it").symlink_to("/etc/hostname")
    (kept / "file").write_text("kept\n")
    with Machine(
        vcpus,
        "256M",
        hosts=hosts,
        folders=[f"{work}", f"{kept},readonly,tag=other"],
        append="quiet",
        rng=True,
    ) as machine:
        machine.wait_shell(300)
        assert machine.run(MOUNT, 60).status == 0
        copied = machine.run(
            "cp -a /mnt/in /tmp/in && cp -a /tmp/in /mnt/out && diff -r /mnt/in /mnt/out", 300
        )
        assert (copied.status, copied.output) == (0, "")
        assert machine.run("cat /mnt/out-of-it 2>&1", 60).status != 0, "the guest has no such file"
        found = machine.run(LOAD, 300).output.splitlines()
        assert len(found) == vcpus and len(set(found)) == 1
        mounted = machine.run(
            "mkdir /o && mount -t 9p -o trans=virtio,version=9p2000.L other /o && cat /o/file", 60
        )
        assert mounted.output == "kept\n"
        refused = machine.run("touch /o/new 2>&1; rm /o/file 2>&1", 60).output
        assert refused.count("Read-only file system") == 2
        random = machine.run("cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | wc -c", 60)
        assert random.output == "virtio_rng.0\n4096\n"
        counts = machine.device_stats().loc["virtio-9p0"]
        assert counts["bytes_written"] > 3 << 20 and counts["malformed"] == counts["resets_needed"] == 0
    assert tree(work / "out") == tree(work / "in")
    for cpu in range(vcpus):
        assert sorted(tree(work / f"{cpu}")) == ["a/b/3", "a/b/4", "a/first"]
    assert [path.name for path in kept.iterdir()] == ["file"]
