# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep of short trials costs beyond the machines themselves: wall and processor time a trial.

python tests/bench/sweep.py [--trials N] [--vcpus N] [--at-once N]
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36  # prctl(2): what loses its parent becomes ours, and its processor time too
MACHINE = {"memory": "256M", "append": "quiet"}
COMMAND = "echo done=1"

SWEEP = """
import json, sys
from coremesh import sweep
trials, vcpus, at_once, machine, command = json.loads(sys.argv[1])
result = sweep(command, {"vcpus": [vcpus]}, repeats=trials, at_once=at_once, progress=False, **machine)
print(result.table.to_json(orient="records"))
"""
ALONE = """
import json, sys, time
from coremesh import Machine
trials, vcpus, _, machine, command = json.loads(sys.argv[1])
rows = []
for _ in range(trials):
    begin = time.monotonic()
    with Machine(vcpus=vcpus, **machine) as guest:
        start = time.monotonic() - begin
        boot = guest.wait_shell(300)
        worked = time.monotonic()
        guest.run(command, 300)
        worked = time.monotonic() - worked
    rows.append({"wall_seconds": time.monotonic() - begin, "start_seconds": start, "boot_seconds": boot,
                 "host_seconds": worked})
print(json.dumps(rows))
"""


def measured(program: str, given: str) -> tuple[float, float, list[dict[str, float]]]:
    """Return wall seconds, processor seconds of all processes that it started, and its rows."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, given], check=True, capture_output=True, text=True)
    wall = time.monotonic() - begin
    while True:  # what the program has left behind, as Ray's daemons
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, processor, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the parts of a trial, of machines one by one and of a sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=None, help="default: what cores and memory carry")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    given = json.dumps([arguments.trials, arguments.vcpus, arguments.at_once, MACHINE, COMMAND])
    print(f"{arguments.trials} trials of {arguments.vcpus} vCPU; load average {os.getloadavg()[0]:.1f}\n")
    print("| a trial, s | one by one | sweep |\n|---|---:|---:|")
    results = [measured(program, given) for program in (ALONE, SWEEP)]
    parts: dict[str, Callable[[tuple[float, float, list[dict[str, float]]]], float]] = {
        "start: to emulation": lambda result: _mean(result[2], "start_seconds"),
        "boot: emulation to the prompt": lambda result: _mean(result[2], "boot_seconds"),
        "the work": lambda result: _mean(result[2], "host_seconds"),
        "from start to result": lambda result: _mean(result[2], "wall_seconds"),
        "beyond boot and work": lambda result: (
            _mean(result[2], "wall_seconds")
            - _mean(result[2], "boot_seconds")
            - _mean(result[2], "host_seconds")
        ),
        "wall time of all, over trials": lambda result: result[0] / arguments.trials,
        "processor time of all, over trials": lambda result: result[1] / arguments.trials,
    }
    for name, value in parts.items():
        print(f"| {name} | {value(results[0]):.2f} | {value(results[1]):.2f} |")


def _mean(rows: list[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


if __name__ == "__main__":
    main()
