# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian from its disk to the login prompt, from the start of emulation, beside QEMU.

    python tests/bench/disk_boot.py [--vcpus 1 8 255] [--interface ide virtio] [--rounds N]

The disk is that of 'coremesh fetch debian --disk 4G': systemd, udev, a network by DHCP through user NAT. It
is a snapshot, so that each boot is a first one, from the host's page cache. Both peers get the same bzImage;
QEMU's guest unpacks it, Coremesh's host does, as 'coremesh boot' has it, and that time counts. The kernel is
told 'mitigations=off': Coremesh's processor needs none, QEMU's would pay for them.
"""

import sys

import peers
from coremesh.cluster.machine.images.debian_disk import pristine_disk
from figures import options, reported

LOGIN = "login: "
TARGET = "share <= 0.8"
MEMORY_MIB = {255: 4096}
LONGEST = 900.0  # seconds


def main() -> None:
    """Run the peers in turn and print seconds and ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--interface", nargs="+", choices=["ide", "virtio"], default=["ide", "virtio"])
    arguments = parser.parse_args()
    system = pristine_disk()
    cmdline = f"console=ttyS0,115200 quiet mitigations=off {system.cmdline}"
    with reported("Debian from its disk to the login", arguments) as figures:
        for turn in range(arguments.rounds):
            for interface in arguments.interface:
                guest = peers.Guest(
                    system.kernel, system.initrd, cmdline,
                    disks=((system.disk, interface),), snapshot=True, network="user",
                )  # fmt: skip
                for vcpus in arguments.vcpus:
                    for name, peer in peers.PEERS.items():
                        run = peer(guest, vcpus, MEMORY_MIB.get(vcpus, 1024), (LOGIN,), LONGEST)
                        what = f"{interface}, {vcpus} vCPU{'s' * (vcpus > 1)}"
                        target = TARGET if vcpus <= 8 else ""
                        figures.add(name, what, run.marks[LOGIN], "s", target, cpu=run.cpu[LOGIN])
                        print(f"round {turn + 1}: {what}: {name} {run.marks[LOGIN]:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
