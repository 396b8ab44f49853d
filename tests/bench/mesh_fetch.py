# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page and an atomic of another host cost, beside a blocking TCP round trip of the same size.

    sudo python tests/bench/mesh_fetch.py [--delays 0 40 240] [--rounds N]

Two hosts of one vCPU in network namespaces, by a veth pair and by a relay that holds each packet for so many
microseconds (one way; the floor says what comes of it). The guest is tests/guest/baremetal/mesh_load.c; the
holder of the pages sleeps, as the TCP server does.
"""

import tempfile
from pathlib import Path

from figures import options
from mesh_network import PAGE_BYTES, REQUEST_BYTES, NetworkMachine, TcpFloor, description_of
from mesh_table import Table, say, shown
from network import Network

FIGURES = {"read": "page fetch to read", "write": "page fetch to write", "upgrade": "read to write"}


def main() -> None:
    """Measure floor and machine in turn and print their ratios."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 40, 240])
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
                    for curve in (True, False):
                        measure(table, network, floor, kernel, curve)
                        say(f"{delay} us, round {turn + 1}, CURVE {'on' if curve else 'off'}")


def measure(table: Table, network: Network, floor: TcpFloor, kernel: bytes, curve: bool) -> None:
    """One round over one network."""
    page = floor.measure(network, REQUEST_BYTES + PAGE_BYTES)
    small = floor.measure(network, REQUEST_BYTES)
    description = description_of(
        kernel, (1, 1), "fetch sequential add pages=256 ms=500", policy="always", curve=curve
    )
    with NetworkMachine(network, description) as machine:
        machine.start()
        found = machine.finish(60)
    wire = f"{network.delay_us} us each way" if network.delay_us else "veth"
    secure = "CURVE" if curve else "no CURVE"
    aim = "<= 1.1" if network.delay_us else "<= 1.5"
    for key, text in FIGURES.items():
        beside = small if key == "upgrade" else page
        table.add(f"{text}, {wire}, {secure}", found[f"{key}_median_ns"] / 1000, "us", beside, aim)
    table.add(f"sequential read, a page, {wire}, {secure}", found["sequential_page_ns"] / 1000, "us", page)
    table.add(f"fetch-and-add, {wire}, {secure}", found["add_median_ns"] / 1000, "us", small, aim)
    each = 1000 * found["adds_ms"] / found["adds"]
    table.add(f"fetch-and-add without pause, {wire}, {secure}", each, "us", small)


if __name__ == "__main__":
    main()
