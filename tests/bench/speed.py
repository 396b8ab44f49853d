# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest speed at one vCPU beside QEMU: how many times as fast Coremesh runs the same work.

    python tests/bench/speed.py [--rounds N]

The guest times each load several times and reports the least; the peers take turns, and of each figure the
best round counts for either. The guest's clock is checked against the host's in every run.
"""

import sys

import peers
from figures import options, reported

SCRIPT = r"""
cat /bin/busybox /bin/load >/tmp/mixed
i=0; while [ $i -lt 8 ]; do cat /tmp/mixed; i=$((i+1)); done >/tmp/long
load time sha256sum /bin/sha256sum /tmp/long
load time gzip /bin/gzip -c /tmp/mixed
load time shell_loop /bin/sh -c 'i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done'
load
"""

APPLICATION, ALU, SSE = "ratio >= 1.1", "ratio >= 1.0", "ratio >= 1.4"
CLOCK_ERROR = 0.05  # as a fraction: what reading the marks late can explain


def target(name: str) -> str:
    """What is asked of a load."""
    return ALU if name == "alu_ns" else SSE if name.startswith("sse_") else APPLICATION


def main() -> None:
    """Run the peers in turn and print ratios."""
    arguments = options(__doc__, rounds=3).parse_args()
    with reported("Guest speed, 1 vCPU", arguments) as figures, peers.guest(SCRIPT) as guest:
        for turn in range(arguments.rounds):
            for name, peer in peers.PEERS.items():
                run = peer(guest, 1, 512, (peers.FIRST, peers.LAST, peers.DONE), 300)
                if abs(run.clock_error()) > CLOCK_ERROR:
                    raise peers.PeerError(f"the clock of {name}'s guest is off by {run.clock_error():.0%}")
                for key, value in run.values.items():
                    if key.endswith(("_ns", "_us", "_ms")):
                        load, _, unit = key.rpartition("_")
                        figures.add(name, load, value.number, unit, target(key), cpu=value.cpu)
                seconds, cpu = run.marks[peers.DONE], run.cpu[peers.DONE]
                print(
                    f"round {turn + 1}: {name} {seconds:.1f} s, {cpu:.1f} s of processor time",
                    file=sys.stderr,
                )


if __name__ == "__main__":
    main()
