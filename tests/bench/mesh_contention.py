# SPDX-License-Identifier: GPL-2.0-or-later
"""What two hosts that fight for one page get done under the three policies, and what each one's share is.

    sudo python tests/bench/mesh_contention.py [--rounds N]

Two hosts of one vCPU on a veth pair. *fight*: both add to one word without pause; *turns*: each waits for the
other's store; *apart*: each counts in a word of its own of the same page; *alone*: one asks, the other
sleeps.
"""

import tempfile
from pathlib import Path

from figures import options
from mesh_network import NetworkMachine, description_of
from mesh_table import Table, say, shown
from network import Network


def main() -> None:
    """Print operations and page moves each second."""
    arguments = options(__doc__, rounds=2).parse_args()
    from baremetal_machine import build_guest

    with (
        tempfile.TemporaryDirectory() as name,
        shown("Two hosts, one page", "slower host's share", arguments) as table,
        Network(2) as network,
    ):
        kernel = build_guest("mesh_load", Path(name)).read_bytes()
        for turn in range(arguments.rounds):
            for policy in ("never", "always", "adaptive"):
                for what in ("fight", "turns", "apart", "add"):
                    measure(table, network, kernel, policy, what)
                say(f"round {turn + 1}: {policy}")


def measure(table: Table, network: Network, kernel: bytes, policy: str, what: str) -> None:
    """One figure of one policy."""
    description = description_of(kernel, (1, 1), f"{what} pages=16 ms=1000", policy=policy)
    with NetworkMachine(network, description) as machine:
        machine.start()
        found = machine.finish(60)
        stats = machine.mesh_stats()
    if what == "add":
        table.add(f"alone, {policy}: fetch-and-adds", 1000 * found["adds"] / found["adds_ms"], "1/s")
        return
    seconds = found[f"{what}_ms"] / 1000
    done = [found[f"{what}_core_{core}"] for core in (0, 1)]
    table.add(f"{what}, {policy}: operations", sum(done) / seconds, "1/s")
    moves = sum(host["write_fetches"] + host["upgrades"] for host in stats)
    table.add(f"{what}, {policy}: moves of pages to write", moves / seconds, "1/s")
    if what != "turns":
        table.add(f"{what}, {policy}: share of the slower host", min(done) / max(1.0, sum(done)), "of 1", 0.5)


if __name__ == "__main__":
    main()
