# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that shares nothing, on every vCPU, over one, two and four hosts: what of its throughput is kept.

    sudo python tests/bench/mesh_work.py [--vcpus 4] [--rounds N]

All hosts share this computer's processors, so that only what several hosts cost can make a difference.
"""

import statistics
import tempfile
from pathlib import Path

from figures import options
from mesh_network import NetworkMachine, description_of
from mesh_table import say, shown
from network import Network

KEPT = ">= 0.95"


def main() -> None:
    """Print loops each second and the ratio to one host."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--vcpus", type=int, default=4)
    arguments = parser.parse_args()
    from baremetal_machine import build_guest

    with (
        tempfile.TemporaryDirectory() as name,
        shown(f"Independent work on {arguments.vcpus} vCPUs", "one host", arguments) as table,
        Network(4) as network,
    ):
        kernel = build_guest("mesh_load", Path(name)).read_bytes()
        alone: list[float] = []
        for turn in range(arguments.rounds):
            for hosts in (1, 2, 4):
                shares = [arguments.vcpus // hosts] * hosts
                words = f"independent ms=2000{' hosts=1' if hosts == 1 else ''}"
                with NetworkMachine(network, description_of(kernel, shares, words)) as machine:
                    machine.start()
                    found = machine.finish(60)
                each = 1000 * found["independent_total"] / found["independent_ms"]
                if hosts == 1:
                    alone.append(each)
                against = None if hosts == 1 else statistics.median(alone)
                table.add(f"{hosts} hosts" if hosts > 1 else "1 host", each, "loops/s", against, KEPT)
                say(f"round {turn + 1}: {hosts} hosts {each:.0f} loops/s")


if __name__ == "__main__":
    main()
