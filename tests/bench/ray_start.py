# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the time of ``coremesh boot --run true`` goes: the host's process, loading, the boot itself.

Beside it what a person waits for before anything runs: ``import coremesh`` and ``coremesh --help``.

python tests/bench/ray_start.py [--vcpus N] [--rounds N]
"""

import argparse
import json
import subprocess
import sys
import time

# In a process of its own each time: Ray is started once a process.
PROGRAM = """
import json, sys
from coremesh.cluster.launch.machine import Machine
with Machine(vcpus=int(sys.argv[1])) as machine:
    machine.run("true", 120)
    print(json.dumps(machine.timings))
"""
COMMAND = [sys.executable, "-m", "coremesh.cluster.cli"]
# What a person types, beside Python's own start; the aim in seconds.
SHORT = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "python -c 'import coremesh'": ([sys.executable, "-c", "import coremesh"], 0.3),
    "coremesh --help": ([*COMMAND, "--help"], 0.3),
}
BOOT_AIM = 4.0
PARTS = {
    "ray_start": "Ray's start",
    "actor_start": "the actor's process",
    "load": "RAM, devices, images; unpacking the kernel",
    "boot": "emulation, to the prompt",
}


def main() -> None:
    """Print the least of the rounds for each part and for the whole command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    vcpus = str(arguments.vcpus)
    timings: list[dict[str, float]] = []
    whole: list[float] = []
    for _ in range(arguments.rounds):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, vcpus], check=True, capture_output=True, text=True, timeout=300
        )
        timings.append(json.loads(done.stdout.splitlines()[-1]))
        whole.append(seconds([*COMMAND, "boot", "--vcpus", vcpus, "--run", "true"]))
        print(f"{whole[-1]:.2f} s, {timings[-1]}", file=sys.stderr)
    print(f"coremesh boot --vcpus {vcpus} --run true\n\n| part | s |\n|---|---:|")
    for key, text in PARTS.items():
        print(f"| {text} | {min(timing[key] for timing in timings):.2f} |")
    print(f"| the whole command, with Python's imports and power-off | {min(whole):.2f} (aim {BOOT_AIM:g}) |")
    for name, (command, aim) in SHORT.items():
        least = min(seconds(command) for _ in range(arguments.rounds))
        print(f"| `{name}` | {least:.2f}{'' if aim is None else f' (aim {aim:g})'} |")


def seconds(command: list[str]) -> float:
    """How long a command takes that succeeds."""
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
