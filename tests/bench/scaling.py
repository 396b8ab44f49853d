# SPDX-License-Identifier: GPL-2.0-or-later
"""What a second vCPU adds on a host with two cores: independent work on one vCPU, then on both at once.

    python tests/bench/scaling.py [--rounds N]

One guest with two vCPUs counts operations in windows of 1 ms, of which the best counts: on a busy host some
windows still have both host cores to themselves. The gain is the machine's throughput with both vCPUs at work
over that with one; 2.0 is ideal.
"""

import sys

import peers
from figures import options, reported

JOBS = ("alu", "load_store", "getppid")
TARGET = 1.9


def main() -> None:
    """Run the peers in turn and print the gains."""
    arguments = options(__doc__, rounds=3).parse_args()
    title = "Time of the machine for one operation, 2 vCPUs"
    with reported(title, arguments) as figures, peers.guest("load scale") as guest:
        for turn in range(arguments.rounds):
            for name, peer in peers.PEERS.items():
                run = peer(guest, 2, 512, (peers.FIRST, peers.LAST, peers.DONE), 300)
                for job in JOBS:
                    for how, text in (("alone", "one vCPU"), ("together", "both vCPUs")):
                        figures.add(name, f"{job}, {text}", run.values[f"{how}_{job}_ns"].number, "ns")
                print(f"round {turn + 1}: {name} {run.marks[peers.DONE]:.1f} s", file=sys.stderr)
    print("\n| gain of the second vCPU | Coremesh | QEMU | target |  |\n|---|---:|---:|---|---|")
    rows = {row.name: row for row in figures}
    for job in JOBS:
        gains = []
        for name in peers.PEERS:
            alone, together = (rows[f"{job}, {text}"].best(name) for text in ("one vCPU", "both vCPUs"))
            gains.append(alone / together if alone and together else float("nan"))
        verdict = "met" if gains[0] >= TARGET else "missed"
        cells = [f"{gain:.2f}" for gain in gains] + [""] * (2 - len(gains))
        print(f"| {job} | {' | '.join(cells)} | >= {TARGET} | {verdict} |")


if __name__ == "__main__":
    main()
