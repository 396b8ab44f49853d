# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the time of ``coremesh boot --run true`` goes: the host's process, loading, the boot itself.

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
        begin = time.monotonic()
        command = [sys.executable, "-m", "coremesh.cluster.cli", "boot", "--vcpus", vcpus, "--run", "true"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        whole.append(time.monotonic() - begin)
        print(f"{whole[-1]:.2f} s, {timings[-1]}", file=sys.stderr)
    print(f"coremesh boot --vcpus {vcpus} --run true\n\n| part | s |\n|---|---:|")
    for key, text in PARTS.items():
        print(f"| {text} | {min(timing[key] for timing in timings):.2f} |")
    print(f"| the whole command, with Python's imports, power-off and Ray's end | {min(whole):.2f} |")


if __name__ == "__main__":
    main()
