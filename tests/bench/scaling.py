# SPDX-License-Identifier: GPL-2.0-or-later
"""What a second vCPU adds on a host with two cores: named loads on one vCPU of two, then on both.

    python tests/bench/scaling.py [--rounds N] [--json FILE]

A sweep over the two engines, one trial at a time; of each the best round counts. The gain is the machine's
throughput with both vCPUs at work over that with one; 2.0 is ideal. The rates are by the guest's own clock.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import coremesh
from coremesh.cluster.experiments import loads, qemu

# Work that shares nothing: registers alone, memory of one's own, compiled programs.
WORK: list[tuple[loads.Load, dict[str, list[Any]]]] = [
    (loads.loop, {}),
    (loads.share, {"pattern": ["private"]}),
    (loads.hashing, {"megabytes": [4]}),
]
TARGET = 1.9
MACHINE: dict[str, Any] = {"vcpus": 2, "memory": "512M", "append": "quiet"}


def gains(
    load: loads.Load, more: dict[str, list[Any]], rounds: int, engines: list[str]
) -> list[dict[str, Any]]:
    """Run one load on each engine and return a row for each: rates of one and of both, and the gain."""
    parameters: dict[str, Any] = {"engine": engines, "threads": [1, 2], **more}
    result = coremesh.sweep(load, parameters, repeats=rounds, at_once=1, **MACHINE)
    if result.failures:
        sys.exit("\n".join(result.failures.values()))
    best = result.good.groupby(["engine", "threads"])[load.measures].max()
    return [
        {
            "load": load.identity(), "measure": load.measures, "engine": engine,
            "one": float(best[engine, 1]), "both": float(best[engine, 2]),
            "gain": float(best[engine, 2] / best[engine, 1]),
        }
        for engine in engines
    ]  # fmt: skip


def main() -> None:
    """Sweep each load over the engines that there are, and print the gains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    engines = ["coremesh", *(["qemu"] if qemu.installed() else [])]
    rows = [row for load, more in WORK for row in gains(load, more, arguments.rounds, engines)]
    print("| load | Coremesh, one -> both | QEMU, one -> both | gain, Coremesh | gain, QEMU | target | |")
    print("|---|---:|---:|---:|---:|---|---|")
    for load, _ in WORK:
        of = {row["engine"]: row for row in rows if row["load"] == load.identity()}
        rates = [f"{row['one']:.4g} -> {row['both']:.4g}" for row in of.values()] + [""] * (2 - len(of))
        found = [f"{row['gain']:.2f}" for row in of.values()] + [""] * (2 - len(of))
        verdict = "met" if of["coremesh"]["gain"] >= TARGET else "missed"
        name = f"`{load.identity()}`, {load.measures}"
        print(f"| {name} | {' | '.join(rates + found)} | >= {TARGET} | {verdict} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
