# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux on one host and on several: what independent work keeps of its speed, and what shared work costs.

    python tests/bench/mesh_linux.py [--hosts 1 2] [--rounds N] [--json FILE]

One vCPU for each of the most hosts asked for, in one machine each time; a process on each vCPU. Rates are by
the guest's clock, of each the best round. Work that shares by design is told in microseconds a round trip.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import coremesh
from coremesh.cluster.experiments import loads

ALONE: list[tuple[loads.Load, dict[str, list[Any]]]] = [
    (loads.loop, {}),
    (loads.shell_loop, {"turns": [60000, 600000]}),
    (loads.memory, {"kind": ["copy", "allocate"]}),
    (loads.fork_storm, {}),
]
SHARED: list[tuple[loads.Load, dict[str, list[Any]]]] = [
    (loads.pingpong, {"via": ["pipe", "futex", "semaphore"]}),
]


def rates(
    load: loads.Load, more: dict[str, list[Any]], hosts: list[int], rounds: int
) -> list[dict[Any, Any]]:
    """Run one load; a row for each way of it, with its rate on each number of hosts."""
    result = coremesh.sweep(
        load, {"hosts": hosts, **more}, repeats=rounds, at_once=1, vcpus=max(hosts), memory="512M"
    )
    if result.failures:
        sys.exit("\n".join(result.failures.values()))
    way = next((name for name, values in more.items() if len(values) > 1), None)
    found: dict[str, dict[Any, Any]] = {}
    for trial in result.good.to_dict("records"):
        name = load.name if way is None else f"{load.name}, {trial[way]}"
        row = found.setdefault(name, {"load": name})
        row[trial["hosts"]] = max(row.get(trial["hosts"], 0.0), trial[load.measures])
    return list(found.values())


def main() -> None:
    """Sweep each load over the numbers of hosts, and print what is kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    hosts = sorted(arguments.hosts)
    alone = [row for load, more in ALONE for row in rates(load, more, hosts, arguments.rounds)]
    shared = [row for load, more in SHARED for row in rates(load, more, hosts, arguments.rounds)]
    first, *others = hosts
    print(f"| rate on {first} host, and kept on more | rate | " + " | ".join(map(str, others)) + " |")
    print("|---|" + "---:|" * len(hosts))
    for row in alone:
        print(
            f"| {row['load']} | {row[first]:.4g} | "
            + " | ".join(f"{row[n] / row[first]:.2f}" for n in others)
            + " |"
        )
    print("\n| us a round trip | " + " | ".join(f"{n} hosts" for n in hosts) + " |")
    print("|---|" + "---:|" * len(hosts))
    for row in shared:
        print(f"| {row['load']} | " + " | ".join(f"{1e6 / row[n]:.0f}" for n in hosts) + " |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(alone + shared, indent=1))


if __name__ == "__main__":
    main()
