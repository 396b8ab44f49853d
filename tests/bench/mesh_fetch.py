# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page and an atomic of another host cost, beside a blocking TCP round trip of the same size.

    sudo python tests/bench/mesh_fetch.py [--delays 0 40 240] [--wires shm tcp zmq zmq-plain] [--rounds N]

Two hosts of one vCPU in network namespaces, by a veth pair and by a relay that holds each packet for so
many microseconds (one way; the floor says what comes of it). tcp and zmq are encrypted, zmq-plain
is not; shm is of one computer and knows no delay: give it ``--delays 0``, its floor is TCP on the loopback.
The guest is tests/guest/baremetal/mesh_load.c; the holder of the pages sleeps, as the TCP server does.
"""

import tempfile
from pathlib import Path

from figures import options
from mesh_network import PAGE_BYTES, REQUEST_BYTES, NetworkMachine, TcpFloor, description_of, stage_of
from mesh_table import Table, say, shown
from network import Network

WIRES = ("shm", "tcp", "zmq", "zmq-plain")
FIGURES = {"read": "page fetch to read", "write": "page fetch to write", "upgrade": "read to write"}


def main() -> None:
    """Measure floor and machine in turn and print their ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 40, 240])
    parser.add_argument("--wires", nargs="+", default=["tcp", "zmq"], choices=WIRES)
    arguments = parser.parse_args()
    from baremetal_machine import build_guest

    with (
        tempfile.TemporaryDirectory() as name,
        shown("Pages and atomics of another host", "TCP, us", arguments) as table,
    ):
        floor = TcpFloor(Path(name))
        kernel = build_guest("mesh_load", Path(name)).read_bytes()
        for delay in arguments.delays:
            with Network(2, delay) as network:
                for turn in range(arguments.rounds):
                    for wire in arguments.wires:
                        measure(table, stage_of(network, wire), floor, kernel, wire)
                        say(f"{delay} us, round {turn + 1}, {wire}")


def measure(table: Table, network: Network, floor: TcpFloor, kernel: bytes, wire: str) -> None:
    """One round over one network."""
    page = floor.measure(network, REQUEST_BYTES + PAGE_BYTES)
    small = floor.measure(network, REQUEST_BYTES)
    description = description_of(
        kernel,
        (1, 1),
        "fetch sequential add pages=256 ms=500",
        policy="always",
        wire=wire.removesuffix("-plain"),
        curve=not wire.endswith("-plain"),
    )
    with NetworkMachine(network, description) as machine:
        machine.start()
        found = machine.finish(60)
    way = f"{network.delay_us} us each way" if network.delay_us else "veth"
    aim = "<= 1.1" if network.delay_us else "<= 1.3"
    for key, text in FIGURES.items():
        beside = small if key == "upgrade" else page
        table.add(f"{text}, {way}, {wire}", found[f"{key}_median_ns"] / 1000, "us", beside, aim)
    table.add(f"sequential read, a page, {way}, {wire}", found["sequential_page_ns"] / 1000, "us", page)
    table.add(f"fetch-and-add, {way}, {wire}", found["add_median_ns"] / 1000, "us", small, aim)
    each = 1000 * found["adds_ms"] / found["adds"]
    table.add(f"fetch-and-add without pause, {way}, {wire}", each, "us", small)


if __name__ == "__main__":
    main()
