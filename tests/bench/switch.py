# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP between two machines on a switch: two of Coremesh, then two of QEMU on the same switch, one run.

    python tests/bench/switch.py [--rounds N] [--mib N]

Microseconds for a MiB received, a MiB sent, and for a round trip of one byte, between guests of one vCPU. The
switch is Coremesh's, in this process; QEMU speaks its framing by '-netdev stream' (7.2 and later).
"""

import sys
import tempfile
import threading
from dataclasses import replace

import peers
from coremesh.hw.backend.network.switch import Switch
from figures import options, reported

TARGET = "ratio >= 1.0"
ADDRESS = "ip addr add 192.168.7.{number}/24 dev eth0; ip link set eth0 up\n"
PORT = 7000
LONGEST = 300.0  # seconds


def main() -> None:
    """Run the peers in turn and print ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--mib", type=int, default=32, help="what is received, and what is sent")
    arguments = parser.parse_args()
    serve = ADDRESS.format(number=1) + f"tcp serve {PORT}\n"
    ask = ADDRESS.format(number=2) + f"tcp 192.168.7.1 {PORT} {arguments.mib}\n"
    with (
        reported("TCP between two machines on a switch", arguments) as figures,
        peers.guest(serve, program="tcp.c", network="manual") as server,
        peers.guest(ask, program="tcp.c", network="manual") as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        for turn in range(arguments.rounds):
            for name, peer in peers.PEERS.items():
                path = f"{folder}/{name}{turn}"
                with Switch(f"unix:{path}"):
                    other = threading.Thread(
                        target=peer,
                        args=(replace(server, network=path), 1, 256, (peers.DONE,), LONGEST),
                        daemon=True,
                    )
                    other.start()
                    run = peer(replace(client, network=path), 1, 256, (peers.DONE,), LONGEST)
                    other.join()
                for key, value in run.values.items():
                    if key.endswith("_us"):
                        figures.add(name, key.removesuffix("_us"), value.number, "us", TARGET)
                print(f"round {turn + 1}: {name} {run.marks[peers.DONE]:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
