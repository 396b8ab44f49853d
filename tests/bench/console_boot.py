# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot that prints all of its messages, and a program that prints much, by 8250 and by virtio-console.

    python tests/bench/console_boot.py [--hosts 1 2] [--vcpus N] [--rounds N]

Seconds to the shell with 'ignore_loglevel', and milliseconds for 'seq 4000' (18,893 bytes)
from the command to its end. Two hosts are two processes of Ray on this computer that share memory:
every access of the serial port by the second one's vCPUs is a round trip. Coremesh alone.
"""

import sys
import time

from coremesh import Machine
from coremesh.cluster.machine.images.debian_image import fetch_debian
from figures import options, reported

CONSOLES = {"serial": "8250", "virtio": "virtio-console"}
LINES = 4000
LONGEST = 300.0  # seconds


def main() -> None:
    """Boot in turn and print seconds."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vcpus", type=int, default=4)
    arguments = parser.parse_args()
    image = fetch_debian()
    initramfs = image.initramfs(disks=True)  # the drivers of virtio too, for both consoles
    with reported("A console-heavy boot", arguments) as figures:
        for turn in range(arguments.rounds):
            for hosts in arguments.hosts:
                for console, chip in CONSOLES.items():
                    with Machine(
                        arguments.vcpus, "512M", image.kernel, initramfs, hosts=hosts, console=console,
                        append="ignore_loglevel",
                    ) as machine:  # fmt: skip
                        seconds = machine.wait_shell(LONGEST)
                        last = arguments.vcpus - 1
                        begin = time.monotonic()
                        machine.run(f"taskset -c {last} seq {LINES}", LONGEST)
                        printed = 1000 * (time.monotonic() - begin)
                    what = f"{chip}, {hosts} host{'s' * (hosts > 1)}"
                    figures.add("coremesh", f"{what}: boot", seconds, "s")
                    figures.add("coremesh", f"{what}: seq {LINES} on the last vCPU", printed, "ms")
                    print(f"round {turn + 1}: {what}: {seconds:.1f} s, {printed:.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    main()
