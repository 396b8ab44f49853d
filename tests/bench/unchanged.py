# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of one host beside an earlier build of the package: nothing that it does may have become slower.

    python tests/bench/unchanged.py --before FOLDER [--before-tests FOLDER] [--rounds N]

FOLDER is where the earlier build was installed (``pip install --target FOLDER``); the second one is the
folder ``tests`` of its source, when this one's no longer fits the earlier package. Both run the same guests,
in turn, each in a process of its own; of each figure the best round counts for either.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from coremesh.cluster.machine.images.debian_image import fetch_debian
from figures import options
from guest_image import CMDLINE
from mesh_table import say, shown

KEPT = "<= 1.02"
GUESTS = {
    ("load", "ms=100", 1): {
        "lock_xadd_ns": "lock xadd, uncontended",
        "lock_xadd_misaligned_ns": "misaligned",
    },
    ("load", "ms=100", 2): {"lock_xadd_contended_ns": "lock xadd, contended by 2 vCPUs"},
    ("mesh_load", "faults", 1): {"fault_min_ns": "store into a page of translated code"},
}
RUN = "import sys; sys.path.insert(0, sys.argv[1]); from baremetal_machine import run_on_coremesh as r; "
RUN += "from pathlib import Path; x = r(Path(sys.argv[2]), vcpus=int(sys.argv[3]), cmdline=sys.argv[4]); "
RUN += "print(x.output); sys.exit(x.status != 33)"
# Processor time of the machine's process from the start of emulation to the prompt.
BOOT = "import sys, time; from pathlib import Path; from coremesh import Machine\n"
BOOT += "with Machine(int(sys.argv[1]), '512M', Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]) as x:\n"
BOOT += "    clock = ~x.facts['pid'] << 3 | 2; begin = time.clock_gettime(clock); x.wait_shell(120)\n"
BOOT += "    print(time.clock_gettime(clock) - begin)"


def main() -> None:
    """Run both builds in turn and print what this one takes over what the earlier one took."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--before-tests", type=Path)
    parser.add_argument("--no-boot", action="store_true")
    arguments = parser.parse_args()
    own_tests = Path(__file__).resolve().parents[1]
    sys.path.append(str(own_tests / "guest"))
    from baremetal_machine import build_guest

    best: dict[tuple[str, str], float] = {}
    tests = {"before": arguments.before_tests or own_tests, "now": own_tests}
    builds = {"before": {**os.environ, "PYTHONPATH": str(arguments.before)}, "now": dict(os.environ)}

    def note(name: str, build: str, value: float) -> None:
        best[name, build] = min(value, best.get((name, build), value))

    with (
        tempfile.TemporaryDirectory() as folder,
        shown("One host, before and now", "before", arguments) as table,
    ):
        image = fetch_debian()
        initramfs = Path(folder) / "initramfs"
        initramfs.write_bytes(image.initramfs())
        guests = {theme: build_guest(theme, Path(folder)) for theme in ("load", "mesh_load")}
        units: dict[str, str] = {}
        for turn in range(arguments.rounds):
            for build, environment in builds.items():
                for (theme, words, vcpus), wanted in GUESTS.items():
                    runner, guest = str(tests[build] / "guest"), str(guests[theme])
                    command = [sys.executable, "-c", RUN, runner, guest, str(vcpus), words]
                    text = subprocess.run(
                        command, env=environment, check=True, capture_output=True, text=True, timeout=120
                    ).stdout
                    for key, value in re.findall(r"(\w+)=([\d.]+)", text):
                        if key in wanted:
                            units[wanted[key]] = "ns"
                            note(wanted[key], build, float(value))
                if not arguments.no_boot:
                    for vcpus in (1, 2):
                        command = [sys.executable, "-c", BOOT, str(vcpus), str(image.kernel), str(initramfs)]
                        text = subprocess.run(
                            [*command, CMDLINE], env=environment, check=True, capture_output=True, text=True,
                            timeout=180,
                        ).stdout  # fmt: skip
                        units[f"boot, {vcpus} vCPUs, processor time"] = "s"
                        note(f"boot, {vcpus} vCPUs, processor time", build, float(text))
            say(f"round {turn + 1}")
            table.rows.clear()
            for name, unit in units.items():
                table.add(name, best[name, "now"], unit, best[name, "before"], KEPT)


if __name__ == "__main__":
    main()
