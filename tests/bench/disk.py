# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk in the guest beside QEMU: the same image, the same program in the guest, one run.

    python tests/bench/disk.py [--rounds N] [--interface virtio|ide] [--vcpus N] [--apart]

The guest reads and writes its disk past its page cache and prints microseconds an operation: random 4 KiB,
sequential 1 MiB, and 4 KiB from a thread on each vCPU. The image is a raw file, in the host's page cache.
With --apart Coremesh has its devices on another host than the vCPUs, as '--hosts 0,N' has it: a process by
itself, linked to that of the vCPUs by shared memory.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import peers
from figures import options, reported

DEVICES = {"virtio": "/dev/vda", "ide": "/dev/sda"}
SCRIPT = "disk {device} 2000 {vcpus}\n"
TARGET = "ratio >= 1.0"
_BYTES = 64 << 20


def main() -> None:
    """Run the peers in turn and print ratios."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--interface", choices=sorted(DEVICES), default="virtio")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--apart", action="store_true", help="the devices on a host of their own")
    arguments = parser.parse_args()
    script = SCRIPT.format(device=DEVICES[arguments.interface], vcpus=arguments.vcpus)
    title = f"Disk by {arguments.interface}, {arguments.vcpus} vCPUs"
    all_peers = dict(peers.PEERS)
    if arguments.apart:
        title += ", its host without vCPUs"
        all_peers["coremesh"] = peers.run_apart
    with (
        reported(title, arguments) as figures,
        peers.guest(script, program="disk.c", drivers=True) as guest,
        tempfile.TemporaryDirectory() as folder,
    ):
        image = Path(folder) / "disk.img"
        for turn in range(arguments.rounds):
            for name, peer in all_peers.items():
                # Blocks that the host's file system has still to allocate would be part of what is measured.
                with image.open("wb") as out:
                    out.write(bytes(_BYTES))
                    os.fsync(out.fileno())
                with_disk = replace(guest, disks=((image, arguments.interface),))
                run = peer(with_disk, arguments.vcpus, 512, (peers.FIRST, peers.LAST, peers.DONE), 300)
                for key, value in run.values.items():
                    if key.endswith("_us"):
                        target = "" if arguments.apart else TARGET
                        cpu = None if arguments.apart else value.cpu
                        figures.add(name, key.removesuffix("_us"), value.number, "us", target, cpu=cpu)
                print(f"round {turn + 1}: {name} {run.marks[peers.DONE]:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
