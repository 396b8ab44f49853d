# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs hostile machines one after the other in this process, which they may end: see README.md.

Prints one line of JSON before each machine and one after it, so that who reads them knows what was running.
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace

import hostile_machine
from coremesh.core._native import instructions_seen, note_instructions


def main() -> int:
    """The command line; 1 when a machine hurt this process in a way that it survives."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: hostile_run.py --seed 7 --blocks 10000 --protection mprotect --hosts 2",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first machine; the next ones follow")
    parser.add_argument("--blocks", type=int, default=0, help="stop after this many blocks (0: one machine)")
    parser.add_argument("--machines", type=int, default=0, help="stop after this many machines")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this long")
    parser.add_argument("--protection", default="auto", help="userfaultfd, mprotect or auto")
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1)
    parser.add_argument("--vcpus", type=int, default=0, help="of each machine (0: 1 to 48, drawn)")
    parser.add_argument("--only", default="", help="block numbers to keep, with commas")
    parser.add_argument(
        "--coverage", action="store_true", help="tell at the end which kinds of instructions ran"
    )
    parser.add_argument("--sweep", action="store_true", help="instead: each kind of instruction once")
    parser.add_argument("--resident-mib", type=int, default=2048, help="complain above this much memory")
    asked = parser.parse_args()
    only = frozenset(int(word) for word in asked.only.split(",") if word) if asked.only else None
    note_instructions(asked.coverage)
    if asked.sweep:
        hostile_machine.run_sweep(asked.protection)
        print(json.dumps({"opcodes": instructions_seen()}), flush=True)
        return 0
    began, blocks, machines, failed = time.monotonic(), 0, 0, False
    while True:
        seed = asked.seed + machines
        plan = replace(hostile_machine.draw(seed, asked.protection, asked.hosts, asked.vcpus), only=only)
        print(json.dumps({"seed": seed, "shares": plan.shares, "blocks": plan.blocks}), flush=True)
        dies_of = os.environ.get("COREMESH_HOSTILE_DIES_OF")  # for the test of who watches this process
        if dies_of and (plan.only is None or int(dies_of) in plan.only):
            os.kill(os.getpid(), signal.SIGSEGV)
        result = hostile_machine.run(plan)
        resident = hostile_machine.resident_bytes() >> 20
        if resident > asked.resident_mib:
            result.complaints.append(f"{resident} MiB resident")
        failed |= bool(result.complaints)
        print(json.dumps({"seed": seed, "resident_mib": resident, **vars(result)}), flush=True)
        blocks += result.blocks
        machines += 1
        limits = (
            (blocks, asked.blocks),
            (machines, asked.machines),
            (time.monotonic() - began, asked.seconds),
        )
        if not any(limit for _, limit in limits) or any(limit and value >= limit for value, limit in limits):
            break
    if asked.coverage:
        print(json.dumps({"opcodes": instructions_seen()}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
