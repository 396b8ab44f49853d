# SPDX-License-Identifier: GPL-2.0-or-later
"""Page transactions of Linux over hosts, by kernel: a boot, an idle shell, and 60 times fork and exec.

    python tests/bench/mesh_kernels.py debian [bzImage ...] [--rounds N]

"debian" is Debian's own kernel; any other word is a kernel file, started with Debian's initramfs. What hosts
ask of each other hardly depends on what else the computer does, so that kernels may be compared by it.
hosts.md in this folder says how the two small kernels are built.
"""

import argparse
import sys
import time
from typing import Any

import coremesh
from coremesh import Machine

LAYOUTS = ((2, 2), (2, 8), (4, 8))
COUNT = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); cut -c1 /proc/version; done"
#: How long a guest is left alone at its shell: the kernel's own work comes each second, or each four.
IDLE_S = 20.0
FORKS = f"taskset -c {{vcpu}} sh -c '{COUNT}' >/dev/null"


def transactions(machine: Machine) -> int:
    """Fetches and upgrades of all hosts since the start."""
    stats = machine.mesh_stats()
    return int(sum(stats[name].sum() for name in ("read_fetches", "write_fetches", "upgrades")))


def measure(kernel: str, hosts: int, vcpus: int) -> list[str]:
    """One machine: a row of the table."""
    more: dict[str, Any] = {}
    if kernel != "debian":
        more = {"kernel": kernel, "initrd": coremesh.loads.initramfs()}
    with Machine(vcpus, "512M", hosts=hosts, **more) as machine:
        seconds = machine.wait_shell(200)
        counts = [transactions(machine)]
        time.sleep(IDLE_S)
        idle = (transactions(machine) - counts[0]) / IDLE_S / hosts
        last = FORKS.format(vcpu=vcpus - 1)
        for command in (last, f"{FORKS.format(vcpu=0)} & {last}; wait"):
            before = transactions(machine)
            machine.run(command, 120)
            counts.append(transactions(machine) - before)
    return [
        kernel,
        f"{vcpus} on {hosts}",
        f"{seconds:.2f}",
        str(counts[0]),
        f"{idle:.1f}",
        *map(str, counts[1:]),
    ]


def main() -> None:
    """Measure each kernel in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="+")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(
        "| kernel | vCPUs on hosts | boot, s | a boot | idle, 1/s a host "
        "| fork and exec on the last vCPU | on the first too |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for _ in range(arguments.rounds):
        for kernel in arguments.kernels:
            for hosts, vcpus in LAYOUTS:
                print(f"| {' | '.join(measure(kernel, hosts, vcpus))} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
