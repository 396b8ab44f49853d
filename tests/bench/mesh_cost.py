# SPDX-License-Identifier: GPL-2.0-or-later
"""The processor time of a page transaction between two hosts, by the scheduler's own count, thread by thread.

    sudo python tests/bench/mesh_cost.py [--wires shm tcp zmq] [--rounds N]

Two hosts of one vCPU write to the same pages in turn, one host at a time, so that all that the vCPUs do is to
fetch pages (tests/guest/baremetal/mesh_load.c, ``exchange``). ``/proc/PID/task/*/schedstat`` is read every
20 ms; what the threads have used when the guest ends, over the number of pages fetched. The time of the
kernel's own threads and of interrupts is not in it.
"""

import re
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

from figures import options
from mesh_network import NetworkMachine, description_of, stage_of
from mesh_table import Table, say, shown
from network import Network

PERIOD = 0.02
#: Of this machine's threads; what Python does beside them is the stage's.
NATIVE = ("cm-", "coremesh", "vcpu")


class ThreadTimes:
    """Samples the time that each thread of some processes has run, until it is closed."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._seen: dict[tuple[int, str], tuple[str, int]] = {}
        self._start: dict[tuple[int, str], int] = {}
        self._over = threading.Event()
        self._sample()
        self._start = {key: ns for key, (_, ns) in self._seen.items()}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _sample(self) -> None:
        for host, pid in enumerate(self._pids):
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    name = (task / "comm").read_text().strip()
                    self._seen[host, task.name] = name, int((task / "schedstat").read_text().split()[0])
                except OSError:
                    continue  # it has ended

    def _watch(self) -> None:
        while not self._over.wait(PERIOD):
            self._sample()

    def close(self) -> dict[tuple[int, str], float]:
        """Seconds by host and thread's name, of the native threads."""
        self._over.set()
        self._thread.join()
        used: dict[tuple[int, str], float] = defaultdict(float)
        for (host, task), (name, ns) in self._seen.items():
            if name.startswith(NATIVE):
                used[host, re.sub(r"\d+$", "", name)] += (ns - self._start.get((host, task), 0)) / 1e9
        return used


def main() -> None:
    """Measure the wires in turn."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--wires", nargs="+", default=["shm", "tcp", "zmq"], choices=("shm", "tcp", "zmq"))
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    from baremetal_machine import build_guest

    with (
        tempfile.TemporaryDirectory() as name,
        shown("Processor time of a page transaction", "", arguments) as table,
        Network(2, 0) as network,
    ):
        kernel = build_guest("mesh_load", Path(name)).read_bytes()
        for turn in range(arguments.rounds):
            for wire in arguments.wires:
                measure(table, stage_of(network, wire), kernel, wire, arguments.turns)
                say(f"round {turn + 1}, {wire}")


def measure(table: Table, network: Network, kernel: bytes, wire: str, turns: int) -> None:
    """One machine over one wire."""
    words = f"exchange pages=256 times={turns}"
    with NetworkMachine(network, description_of(kernel, (1, 1), words, wire=wire)) as machine:
        times = ThreadTimes([machine.pid(host) for host in range(2)])
        machine.start()
        found = machine.finish(120)
        used = times.close()
        stats = machine.mesh_stats()
    moved = sum(host[counter] for host in stats for counter in ("read_fetches", "write_fetches", "upgrades"))
    for (host, name), seconds in sorted(used.items()):
        if 1e6 * seconds / moved >= 0.1:
            table.add(f"{wire}: {name} of host {host}", 1e6 * seconds / moved, "us")
    table.add(f"{wire}: all threads", 1e6 * sum(used.values()) / moved, "us")
    table.add(f"{wire}: wall clock", found["exchange_page_ns"] / 1000, "us")


if __name__ == "__main__":
    main()
