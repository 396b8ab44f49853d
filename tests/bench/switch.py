# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP between two machines on a switch: two of Coremesh, then two of QEMU on the same switch, one run.

    python tests/bench/switch.py [--rounds N] [--mib N]

Microseconds for a MiB received, a MiB sent, and for a round trip of one byte, between guests of one vCPU. The
switch is Coremesh's, in this process; QEMU speaks its framing by '-netdev stream' (7.2 and later).
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from coremesh.cluster.experiments.engines import open_machine
from coremesh.cluster.experiments.experiment import Command
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.hw.backend.network.switch import Switch
from figures import engines, options, reported
from guest_image import initramfs_with

TARGET = "ratio >= 1.0"
ADDRESS = "ip addr add 192.168.7.{number}/24 dev eth0; ip link set eth0 up; "
PORT = 7000
LONGEST = 300.0  # seconds


def run_one(engine: str, machine: dict[str, Any], command: str, measures: bool) -> dict[str, float]:
    """Run a command in a machine of its own; what it printed, in microseconds, if it `measures`."""
    with open_machine(engine, machine) as subject:
        subject.wait_shell(LONGEST)
        if not measures:
            subject.handle.run(command, LONGEST)
            return {}
        return dict(Command(command)(subject.handle, {}, LONGEST))


def main() -> None:
    """Run the engines in turn and print ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--mib", type=int, default=32, help="what is received, and what is sent")
    arguments = parser.parse_args()
    serve = ADDRESS.format(number=1) + f"tcp serve {PORT}"
    ask = ADDRESS.format(number=2) + f"tcp 192.168.7.1 {PORT} {arguments.mib}"
    machine = {
        "kernel": fetch_debian().kernel.read_bytes(), "initrd": initramfs_with("tcp", network="manual"),
        "vcpus": 1, "memory": "256M", "append": "quiet",
    }  # fmt: skip
    with (
        reported("TCP between two machines on a switch", arguments) as figures,
        tempfile.TemporaryDirectory() as folder,
    ):
        for turn in range(arguments.rounds):
            for engine in engines():
                path = f"unix:{folder}/{engine}{turn}"
                wired = {**machine, "net": f"switch={path}"}
                # Each machine in a process of its own: the switch has this one's interpreter to itself.
                with Switch(path), ProcessPoolExecutor(2, get_context("spawn")) as processes:
                    server = processes.submit(run_one, engine, wired, serve, False)
                    client = processes.submit(run_one, engine, wired, ask, True)
                    found = client.result()
                    server.result()
                figures.add_marked({"engine": engine, **found}, TARGET)


if __name__ == "__main__":
    main()
