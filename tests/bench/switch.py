# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP between two machines on a switch: two of Coremesh, then two of QEMU on the same switch, one run.

    python tests/bench/switch.py [--rounds N] [--mib N]

Microseconds for a MiB received, a MiB sent, and for a round trip of one byte, between guests of one vCPU. The
switch is Coremesh's, in this process; QEMU speaks its framing by '-netdev stream' (7.2 and later).
"""

import tempfile
import threading

from coremesh.cluster.experiments.engines import Subject, open_machine
from coremesh.cluster.experiments.experiment import Command
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.hw.backend.network.switch import Switch
from figures import engines, options, reported
from guest_image import initramfs_with

TARGET = "ratio >= 1.0"
ADDRESS = "ip addr add 192.168.7.{number}/24 dev eth0; ip link set eth0 up; "
PORT = 7000
LONGEST = 300.0  # seconds


def measured(server: Subject, client: Subject, mib: int) -> dict[str, float]:
    """What the client's program printed, in microseconds, while the server's answered it."""
    for machine in (server, client):
        machine.wait_shell(LONGEST)
    serve = ADDRESS.format(number=1) + f"tcp serve {PORT}"
    answers = threading.Thread(target=server.handle.run, args=(serve, LONGEST), daemon=True)
    answers.start()
    ask = Command(ADDRESS.format(number=2) + f"tcp 192.168.7.1 {PORT} {mib}")
    found = dict(ask(client.handle, {}, LONGEST))
    answers.join()
    return found


def main() -> None:
    """Run the engines in turn and print ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--mib", type=int, default=32, help="what is received, and what is sent")
    arguments = parser.parse_args()
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
                with (
                    Switch(path),
                    open_machine(engine, wired) as server,
                    open_machine(engine, wired) as client,
                ):
                    found = measured(server, client, arguments.mib)
                figures.add_marked({"engine": engine, **found}, TARGET)


if __name__ == "__main__":
    main()
