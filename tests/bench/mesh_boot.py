# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian to its shell over one, two and four hosts: time, pages, bytes and atomics.

    sudo python tests/bench/mesh_boot.py [--hosts 1 2 4] [--wires shm tcp] [--vcpus 8] [--disk] [--rounds N]

The same machine each time, its vCPUs spread evenly over hosts, all on this computer's processors: over shared
memory, and in network namespaces on one switch. No Ray. With --disk it is the disk of 'coremesh fetch debian
--disk 4G' to its login, as a snapshot on virtio, without a network card.
"""

from typing import Any

from coremesh.cluster.machine.cmdline import several_hosts
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.images.debian_disk import DebianDisk, pristine_disk
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.cluster.machine.shell import PROMPT
from figures import options
from guest_image import CMDLINE
from mesh_network import NetworkMachine, description_of, stage_of
from mesh_table import Table, say, shown
from network import Network

LOGIN = rb"login: $"
COUNTERS = {
    "read_fetches": "pages fetched to read",
    "write_fetches": "pages fetched to write",
    "prefetches": "pages sent ahead",
    "first_touches": "pages never used, given ahead to write",
    "migrations": "reads given the right to write",
    "migrations_unwritten": "of these, not written",
    "upgrades": "pages made writable",
    "atomics_local": "atomics executed here",
    "atomics_remote": "atomics executed elsewhere",
}


def main() -> None:
    """Boot in turn and print seconds and counts."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--wires", nargs="+", default=["shm", "tcp"], choices=("shm", "tcp", "zmq"))
    parser.add_argument("--vcpus", type=int, default=8)
    parser.add_argument("--memory", type=int, default=1024, help="MiB")
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("--disk", action="store_true", help="the fetched disk to its login, not to a shell")
    parser.add_argument("--words", help="for the kernel, instead of the default words of several hosts")
    arguments = parser.parse_args()
    end = "login" if arguments.disk else "shell"
    with (
        shown(f"Boot to {end} on {arguments.vcpus} vCPUs", "one host", arguments) as table,
        Network(max(arguments.hosts)) as network,
    ):
        image = pristine_disk() if arguments.disk else fetch_debian()
        alone: float | None = None
        runs = [
            (hosts, wire)
            for hosts in arguments.hosts
            for wire in (arguments.wires if hosts > 1 else arguments.wires[:1])
        ]
        for turn in range(arguments.rounds):
            for hosts, wire in runs:
                seconds = boot(
                    table, stage_of(network, wire), image, hosts, wire, arguments.vcpus, arguments.memory,
                    alone, arguments.timeout, arguments.words,
                )  # fmt: skip
                alone = seconds if hosts == 1 else alone
                say(f"round {turn + 1}: {hosts} hosts, {wire} {seconds:.1f} s")


def boot(
    table: Table,
    network: Network,
    image: DebianImage | DebianDisk,
    hosts: int,
    wire: str,
    vcpus: int,
    memory_mib: int,
    alone: float | None,
    timeout: float,
    words: str | None,
) -> float:
    """One boot; seconds."""
    shares = [vcpus // hosts + (host < vcpus % hosts) for host in range(hosts)]
    if words is None:
        words = " ".join(several_hosts(shares))
    more: dict[str, Any] = {}
    if isinstance(image, DebianDisk):
        words = f"{words} {image.words(shares)}"
        disks = check_disks([f"{str(image.disk).replace(',', ',,')},if=virtio,snapshot"])
        more = {"initrd": image.initrd.read_bytes(), "prompt": LOGIN, "disks": disks}
    else:
        more = {"initrd": image.initramfs(), "prompt": PROMPT}
    description = description_of(
        image.kernel.read_bytes(), shares, f"{CMDLINE} {words}", memory_mib, wire=wire, **more
    )
    with NetworkMachine(network, description) as machine:
        machine.start()
        seconds = machine.call("wait_shell", timeout, timeout=timeout + 10)
        if seconds is None:
            raise RuntimeError(f"no shell over {hosts} hosts in {timeout:g} s:\n{machine.console()[-3000:]}")
        stats = machine.mesh_stats()
    name = f"{hosts} hosts, {wire}" if hosts > 1 else "1 host"
    table.add(f"{name}: boot", seconds, "s", alone if hosts > 1 else None)
    if hosts > 1:
        for key, text in COUNTERS.items():
            table.add(f"{name}: {text}", sum(row[key] for row in stats), "")
        table.add(f"{name}: pages' bytes", sum(row["page_bytes"] for row in stats) / 2**20, "MiB")
        waited = sum(row["wait_ns"] for row in stats) / 1e9
        table.add(f"{name}: vCPUs waited for pages", waited, "s")
    return float(seconds)


if __name__ == "__main__":
    main()
