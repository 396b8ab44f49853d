# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian from its disk to the login prompt, from the start of emulation, beside QEMU.

    python tests/bench/disk_boot.py [--vcpus 1 8 255] [--interface ide virtio] [--rounds N]

The disk is that of 'coremesh fetch debian --disk 4G': systemd, udev, a network by DHCP through user NAT. It
is a snapshot, so that each boot is a first one, from the host's page cache. Both engines get the same
bzImage; QEMU's guest unpacks it, Coremesh's host does, as 'coremesh boot' has it, and that time counts. The
kernel is told 'mitigations=off': Coremesh's processor needs none, QEMU's would pay for them.
"""

from pathlib import Path
from typing import Any

from coremesh.cluster.machine.images.debian_disk import pristine_disk
from figures import charged, engines, options, reported, trials
from guest_image import unpacking

LOGIN = "login: $"
TARGET = "share <= 0.8"
MEMORY = {255: "4G"}
LONGEST = 900.0  # seconds


def to_login(machine: Any, engine: str, packed: str, interface: str) -> dict[str, float]:
    """Seconds of emulation to the login, and of unpacking before it. `interface` names the row."""
    found = {"login_seconds": machine.wait_shell(LONGEST)}
    return found | unpacking(Path(packed)) if engine == "coremesh" else found


def main() -> None:
    """Sweep interfaces and sizes over the engines, and print seconds and ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--interface", nargs="+", choices=["ide", "virtio"], default=["ide", "virtio"])
    arguments = parser.parse_args()
    system = pristine_disk()
    disk = str(system.disk).replace(",", ",,")
    parameters = {
        "interface, disks": [(name, [f"{disk},if={name},snapshot"]) for name in arguments.interface],
        "vcpus, memory": [(vcpus, MEMORY.get(vcpus, "1G")) for vcpus in arguments.vcpus],
        "engine": engines(),
        "packed": [str(system.kernel)],
    }
    with reported("Debian from its disk to the login", arguments) as figures:
        for row in trials(
            to_login, parameters, arguments.rounds, shell=False, prompt=LOGIN, timeout=LONGEST + 10,
            kernel=system.kernel, initrd=system.initrd, net="user",
            cmdline=f"console=ttyS0,115200 quiet mitigations=off {system.cmdline}",
        ):  # fmt: skip
            vcpus = row["vcpus"]
            figures.add(
                row["engine"],
                f"{row['interface']}, {vcpus} vCPU{'s' * (vcpus > 1)}",
                row["login_seconds"] + charged(row, "unpack_seconds"),
                "s",
                TARGET if vcpus <= 8 else "",
                cpu=row["cpu_seconds"] + charged(row, "unpack_cpu_seconds"),
            )


if __name__ == "__main__":
    main()
