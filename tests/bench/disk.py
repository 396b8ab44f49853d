# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk in the guest beside QEMU: the same image, the same program in the guest, one run.

    python tests/bench/disk.py [--rounds N] [--interface virtio|ide] [--vcpus N] [--apart]

A sweep over the two engines, one trial at a time. The guest reads and writes its disk past its page cache and
prints microseconds an operation: random 4 KiB, sequential 1 MiB, and 4 KiB from a thread on each vCPU. The
image is a raw file, in the host's page cache. With --apart Coremesh has its devices on another host than the
vCPUs, as '--hosts 0,N' has it: a process by itself, linked to that of the vCPUs by shared memory.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from figures import engines, engines_apart, options, reported, trials
from guest_image import initramfs_with

DEVICES = {"virtio": "/dev/vda", "ide": "/dev/sda"}
TARGET = "ratio >= 1.0"
_BYTES = 64 << 20


def main() -> None:
    """Sweep the engines and print ratios."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--interface", choices=sorted(DEVICES), default="virtio")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--apart", action="store_true", help="the devices on a host of their own")
    arguments = parser.parse_args()
    title = f"Disk by {arguments.interface}, {arguments.vcpus} vCPUs"
    parameters: dict[str, Any] = {"engine": engines()}
    if arguments.apart:
        title += ", its host without vCPUs"
        parameters = engines_apart(arguments.vcpus)
    with reported(title, arguments) as figures, tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        # Blocks that the host's file system has still to allocate would be part of what is measured.
        with image.open("wb") as out:
            out.write(bytes(_BYTES))
            os.fsync(out.fileno())
        for row in trials(
            f"disk {DEVICES[arguments.interface]} 2000 $vcpus", parameters, arguments.rounds,
            vcpus=arguments.vcpus, memory="512M", append="quiet", collect=["marks"], timeout=300,
            disks=[f"{image},format=raw,if={arguments.interface}"], initrd=initramfs_with("disk", disks=True),
        ):  # fmt: skip
            figures.add_marked(row, "" if arguments.apart else TARGET)


if __name__ == "__main__":
    main()
