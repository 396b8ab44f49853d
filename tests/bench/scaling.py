# SPDX-License-Identifier: GPL-2.0-or-later
"""What a second vCPU adds on a host with two cores: independent work on one vCPU, then on both at once.

    python tests/bench/scaling.py [--rounds N]

Both runs are in one guest with two vCPUs. The gain is twice the time alone over the time together: 2.0 is
ideal. It needs two idle host cores: whatever else runs there is taken from the second vCPU alone.
"""

import sys

import peers
from figures import Figures, options, report

# Each job is bound to its vCPU, so that the guest's scheduler has no part in it.
SCRIPT = r"""
cat >/tmp/both <<END
#!/bin/sh
taskset -c 0 "\$@" & taskset -c 1 "\$@"
wait
END
chmod +x /tmp/both
i=0; while [ $i -lt 8 ]; do cat /bin/busybox /bin/load; i=$((i+1)); done >/tmp/long
measure() {
    name=$1; shift
    load time alone_$name /bin/taskset -c 0 "$@"
    load time together_$name /tmp/both "$@"
}
measure alu /bin/load alu 150
measure sha256sum /bin/sha256sum /tmp/long
"""
JOBS = ("alu", "sha256sum")


def main() -> None:
    """Run the peers in turn and print the gains."""
    arguments = options(__doc__, rounds=3).parse_args()
    figures = Figures("Time of two vCPUs for twice the work of one, and the gain (2.0 is ideal)")
    gains: dict[str, dict[str, list[float]]] = {job: {} for job in JOBS}
    with peers.guest(SCRIPT) as guest:
        for turn in range(arguments.rounds):
            for name, peer in peers.PEERS.items():
                run = peer(guest, 2, 512, (peers.FIRST, peers.LAST, peers.DONE), 300)
                for job in JOBS:
                    alone, together = (run.values[f"{how}_{job}_ms"] for how in ("alone", "together"))
                    figures.add(name, f"{job} alone", alone.number, "ms", cpu=alone.cpu)
                    figures.add(name, f"{job} together", together.number, "ms", cpu=together.cpu)
                    gains[job].setdefault(name, []).append(2 * alone.number / together.number)
                    print(
                        f"round {turn + 1}: {name} {job}: gain {gains[job][name][-1]:.2f}, "
                        f"by processor time {2 * alone.cpu / together.cpu:.2f}",
                        file=sys.stderr,
                    )
    report(figures, arguments)
    print("\n| gain of the second vCPU | Coremesh | QEMU | target | |\n|---|---:|---:|---|---|")
    for job in JOBS:
        # Both times are the best of their rounds, for either peer.
        cells = [f"{2 * a / b:.2f}" for a, b in (_times(figures, job, peer) for peer in peers.PEERS)]
        met = "met" if float(cells[0]) >= 1.9 else "missed"
        print(f"| {job} | {' | '.join([*cells, *[''] * (2 - len(cells))])} | >= 1.9 | {met} |")


def _times(figures: Figures, job: str, peer: str) -> tuple[float, float]:
    best = {row.name: row.best(peer) or float("nan") for row in figures}
    return best[f"{job} alone"], best[f"{job} together"]


if __name__ == "__main__":
    main()
