# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest speed at one vCPU beside QEMU: how many times as fast Coremesh runs the same work.

    python tests/bench/speed.py [--rounds N]

The peers take turns, and of each figure the best round counts for either.
"""

import argparse

import peers

SCRIPT = r"""
exec >/dev/ttyS0 2>&1
seconds() { awk '{print $1}' /proc/uptime; }
measure() { # name, command: hundredths of a second by the guest's clock, which is the host's
    a=$(date +%s%N 2>/dev/null); s=$(cut -d' ' -f1 /proc/uptime | tr -d .)
    eval "$2" >/dev/null 2>&1
    e=$(cut -d' ' -f1 /proc/uptime | tr -d .)
    echo "$1=$((e - s))"
}
dd if=/dev/zero of=/tmp/z bs=1M count=64 2>/dev/null
measure sha256sum_cs 'sha256sum /tmp/z'
measure gzip_cs 'head -c 32000000 /tmp/z | cat - /bin/busybox /bin/load | gzip -c'
measure shell_loop_cs 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'
load
echo DONE
"""


def main() -> None:
    """Run the peers in turn and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    best: dict[str, dict[str, float]] = {"coremesh": {}, "qemu": {}}
    with peers.guest(SCRIPT) as guest:
        for _ in range(rounds):
            for name, run in peers.PEERS.items():
                for key, value in run(guest, 1, 512, ("DONE",), 300).values().items():
                    best[name][key] = min(value, best[name].get(key, value))
    print(f"{'load':24} {'coremesh':>10} {'qemu':>10} {'ratio':>7}")
    for key, ours in best["coremesh"].items():
        theirs = best["qemu"].get(key, float("nan"))
        print(f"{key:24} {ours:10.2f} {theirs:10.2f} {theirs / ours if ours else float('nan'):7.2f}")


if __name__ == "__main__":
    main()
