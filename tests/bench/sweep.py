# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep of short trials costs beyond the machines themselves: wall and processor time a trial.

sudo python tests/bench/sweep.py [--trials N] [--vcpus N] [--at-once N]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


class Account:
    """The processor time of a program and all that it starts: a control group of its own (root)."""

    def __init__(self) -> None:
        old = Path("/sys/fs/cgroup/cpuacct")
        self._folder = (old if old.exists() else Path("/sys/fs/cgroup")) / f"coremesh-bench-{os.getpid()}"
        self._folder.mkdir()

    def enter(self) -> None:
        """In the new process, before its program."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        """Return what was used, and remove the group once it is empty."""
        try:
            used = int((self._folder / "cpuacct.usage").read_text()) / 1e9
        except OSError:
            used = int((self._folder / "cpu.stat").read_text().split()[1]) / 1e6
        for _ in range(100):
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                break
            time.sleep(0.1)
        return used


def measured(program: str, given: str) -> tuple[float, float, list[dict[str, float]]]:
    """Return wall seconds, processor seconds of all processes that it started, and its rows."""
    account, begin = Account(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, given],
        check=True, capture_output=True, text=True, preexec_fn=account.enter,
    )  # fmt: skip
    return time.monotonic() - begin, account.seconds(), json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the parts of a trial, of machines one by one and of a sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=None, help="default: what cores and memory carry")
    arguments = parser.parse_args()
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
