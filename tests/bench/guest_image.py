# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that the benchmarks' Linux guests boot: Debian's, with one of our programs in /bin."""

import subprocess
import tempfile
import time
from pathlib import Path

from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.images.initramfs import Entry
from coremesh.core.x86.linux_payload import unpack_linux

CMDLINE = "console=ttyS0 quiet"  # of the boots that are compared


def initramfs_with(program: str, *, disks: bool = False, network: str = "") -> bytes:
    """Compile guest/`program`.c and lay it into the initramfs.

    With `disks` the drivers of disks are loaded before the shell; with a `network`, 'dhcp' or 'manual', that
    of the card.
    """
    source = Path(__file__).parent / "guest" / f"{program}.c"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / program
        subprocess.run(["gcc", "-O2", "-static", "-o", built, source], check=True)
        entry = Entry.file(f"bin/{program}", built.read_bytes(), 0o755)
    return fetch_debian().initramfs(disks=disks, network=network, extra=[entry])


def unpacking(kernel: Path) -> dict[str, float]:
    """Unpack a kernel as a host does before a boot; the seconds that it takes, and its processor time.

    A sweep unpacks it once for all trials. A boot whose unpacking is to count is charged with this.
    """
    packed = kernel.read_bytes()
    begin, cpu = time.monotonic(), time.thread_time()
    unpack_linux(packed)
    return {
        "unpack_seconds": time.monotonic() - begin,
        "unpack_cpu_seconds": time.thread_time() - cpu,
    }
