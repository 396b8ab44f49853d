# SPDX-License-Identifier: GPL-2.0-or-later
"""Loops in Linux, one pinned to each vCPU, on one host and on as many as vCPUs: what of their speed is kept.

    python tests/bench/mesh_loops.py [--hosts 4] [--rounds N] [--words 'tsc=reliable quiet']

An arithmetic loop of the shell, alone and with a fork and exec each few milliseconds of it; on the last vCPU
with the others idle, and on all. All hosts share this computer's processors, so that only what several hosts
cost can make a difference. ``--words`` go to the kernel instead of the default words of several hosts.
"""

import statistics

from coremesh import Machine
from coremesh.cluster.machine.cmdline import ALWAYS, SERIAL, several_hosts
from figures import options
from mesh_table import say, shown

SECONDS = 6
#: Counts thousands of additions until so many seconds of the guest's clock have passed.
LOOP = (
    "read u r </proc/uptime; end=$((${{u%.*}}+{seconds})); n=0; while :; do i=0; "
    "while [ $i -lt 1000 ]; do i=$((i+1)); done; n=$((n+1)); {between} read u r </proc/uptime; "
    "[ ${{u%.*}} -lt $end ] || break; done; echo $n >/tmp/loop$1"
)
LOADS = {"arithmetic": "", "arithmetic, fork and exec": "cut -c1 /proc/version >/dev/null;"}


def main() -> None:
    """Print thousands of additions a second and the ratio to one host."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--words", help="for the kernel, instead of the default words of several hosts")
    parser.add_argument("--hosts", type=int, default=2, help="and so many vCPUs")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    arguments = parser.parse_args()
    most = arguments.hosts
    words = " ".join(several_hosts((1,) * most)) if arguments.words is None else arguments.words
    with shown(f"Pinned loops of a shell on {most} vCPUs", "one host", arguments) as table:
        alone: dict[str, list[float]] = {}
        for turn in range(arguments.rounds):
            for hosts in (1, most):
                line = " ".join([SERIAL, *ALWAYS, "quiet" if hosts == 1 else words])
                with Machine(most, f"{256 * most}M", cmdline=line, hosts=hosts) as machine:
                    seconds = machine.wait_shell(300)
                    say(f"round {turn + 1}: {hosts} hosts, boot {seconds:.1f} s")
                    table.add("boot" if hosts == 1 else f"{hosts} hosts: boot", seconds, "s")
                    for name, each in measure(machine, most, arguments.seconds).items():
                        if hosts == 1:
                            alone.setdefault(name, []).append(each)
                        against = None if hosts == 1 else statistics.median(alone[name])
                        table.add(f"{hosts} hosts: {name}" if hosts > 1 else name, each, "k/s", against)
                        kept = "" if against is None else f", kept {each / against:.2f}"
                        say(f"  {name}: {each:.0f} k/s{kept}")


def measure(machine: Machine, count: int, seconds: int) -> dict[str, float]:
    """Run every load on the last vCPU and on all; thousands of additions a second of each vCPU."""
    found = {}
    for name, between in LOADS.items():
        loop = LOOP.format(seconds=seconds, between=between)
        machine.run(f"cat >/tmp/loop.sh <<'END'\n{loop}\nEND", 60)
        for vcpus in ([count - 1], list(range(count))):
            started = " ".join(f"taskset -c {vcpu} sh /tmp/loop.sh {vcpu} &" for vcpu in vcpus)
            machine.run(f"rm -f /tmp/loop?; {started} wait", 20 * seconds + 60)
            counts = [int(word) for word in machine.run("cat /tmp/loop?", 60).output.split()]
            if len(counts) != len(vcpus):
                raise RuntimeError(f"{name}: {counts}")
            found[f"{name}, {'all busy' if len(vcpus) > 1 else 'the others idle'}"] = (
                sum(counts) / len(counts) / seconds
            )
    return found


if __name__ == "__main__":
    main()
