# SPDX-License-Identifier: GPL-2.0-or-later
"""What single operations cost, on bare metal: atomics, interrupts between cores, port accesses.

    python tests/bench/micro.py [--rounds N]

The guests are those of tests/guest/baremetal (load.c, smp_bench.c): no operating system, so that nothing but
the operation is in the figure. The engines take turns, and of each figure the best round counts for either.
"""

import sys
import tempfile
from pathlib import Path

from coremesh.cluster.experiments import qemu
from figures import engines, options, reported

sys.path.append(str(Path(__file__).resolve().parents[1] / "guest"))
from baremetal_machine import RunResult, build_guest, run_on_coremesh, run_on_qemu

# Guest, options and vCPUs; then the guest's names for its figures, and what they are.
BENCHES = {
    ("load", "ms=100", 1): {
        "lock_xadd_ns": "lock xadd, uncontended",
        "lock_xadd_misaligned_ns": "lock xadd, misaligned",
        "port_device_ns": "port access served in Python (port 80H)",
        "port_unclaimed_ns": "port access served in native code (nobody's port)",
    },
    ("load", "ms=100", 2): {
        "lock_xadd_contended_ns": "lock xadd, contended by 2 vCPUs, each",
    },
    ("smp", "bench", 2): {
        "ipi_self_ns": "interrupt to itself, ICR write to handler",
        "ipi_running_ns": "IPI to a running vCPU, ICR write to handler, median",
        "ipi_halted_ns": "IPI to a halted vCPU, ICR write to handler, median",
        "ipi_round_trip_running_ns": "IPI there and back, running vCPUs",
        "ipi_round_trip_halted_ns": "IPI there and back, halted vCPU",
    },
}


def main() -> None:
    """Run the engines in turn and print nanoseconds."""
    arguments = options(__doc__, rounds=3).parse_args()
    title = "Cost of single operations"
    with reported(title, arguments) as figures, tempfile.TemporaryDirectory() as name:
        guests = {theme: build_guest(theme, Path(name)) for theme in ("load", "smp")}
        for turn in range(arguments.rounds):
            for (theme, cmdline, vcpus), wanted in BENCHES.items():
                for engine in engines():
                    if engine == "coremesh":
                        result = run_on_coremesh(guests[theme], vcpus=vcpus, cmdline=cmdline)
                    else:
                        result = run_on_qemu(
                            guests[theme], vcpus=vcpus, cmdline=cmdline, program=qemu.program()
                        )
                    for key, value in values(result).items():
                        if key in wanted:
                            figures.add(engine, wanted[key], value, "ns")
                print(f"round {turn + 1}: {theme}, {vcpus} vCPUs", file=sys.stderr)


def values(result: RunResult) -> dict[str, float]:
    """The guest's name=number words, fractions too. Raises RuntimeError for a guest that ended badly."""
    found: dict[str, float] = {}
    for word in result.output.split():
        name, _, number = word.partition("=")
        if name.endswith("_ns"):
            found[name] = float(number)
    if result.ended != "debug-exit" or not found:
        raise RuntimeError(result.story())
    return found


if __name__ == "__main__":
    main()
