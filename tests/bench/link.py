# SPDX-License-Identifier: GPL-2.0-or-later
"""Round trips between two processes of this machine: a small question, a page for an answer.

    python tests/bench/link.py [--rounds N] [--trips N]

A blocking TCP exchange of the same size, in the same round, is the floor. Left alone, both of its ends
come to one CPU, which two hosts never share: it is also taken with each end on a CPU of its own. Beside
it the link with and without CURVE, with threads that are free to move, and with a protocol thread that
looks for frames before it sleeps; encrypted TCP; and shared memory. Of each the median in its best round, in
microseconds, and its ratio to the floor. No guest, no page protocol: what they add shows mesh_fetch.py.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from coremesh.core._native import LinkProbe
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.shm import ShmEnds
from coremesh.core.links.tcp import TcpEnds
from coremesh.core.links.zmq import ZmqEnds

PAGE = 4096
ASKED, ANSWERED = 52, 52 + PAGE  # bytes of a ping's two frames

FLOOR = "blocking TCP"
APART = "blocking TCP, each end on a CPU of its own"
WAYS: dict[str, dict[str, Any]] = {
    "link": {"curve": False, "pin": True, "spin_us": 0},
    "link, CURVE": {"curve": True, "pin": True, "spin_us": 0},
    "link, CURVE, threads not pinned": {"curve": True, "pin": False, "spin_us": 0},
    "link, CURVE, looks for 50 us before it sleeps": {"curve": True, "pin": True, "spin_us": 50},
    "TCP, encrypted": {"wire": "tcp", "pin": True, "spin_us": 0},
    "TCP, encrypted, threads not pinned": {"wire": "tcp", "pin": False, "spin_us": 0},
    "shared memory": {"wire": "shm", "pin": True, "spin_us": 0},
    "shared memory, threads not pinned": {"wire": "shm", "pin": False, "spin_us": 0},
}


def main() -> None:
    """Take the ways in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trips", type=int, default=3000, help="round trips of each way in a round")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(json.loads(arguments.peer))
        return
    best: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name in (FLOOR, APART, *WAYS):
            if name in WAYS:
                times = over_link(WAYS[name], arguments.trips)
            else:
                times = over_tcp(arguments.trips, apart=name == APART)
            median = statistics.median(times) / 1000
            best[name] = min(best.get(name, median), median)
    print(f"| round trip, {PAGE} bytes back | us | of the floor |\n|---|---:|---:|")
    for name, median in best.items():
        print(f"| {name} | {median:.0f} | {median / best[FLOOR]:.2f} |")


def started(what: dict[str, Any]) -> "subprocess.Popen[str]":
    """The other process; it says where it is, and ends with its input."""
    return subprocess.Popen(
        [sys.executable, __file__, "--peer", json.dumps(what)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def over_tcp(trips: int, apart: bool) -> list[int]:
    """Times in ns."""
    cpus = sorted(os.sched_getaffinity(0))
    with started({"tcp": True, "cpu": cpus[-1] if apart else None}) as other:
        assert other.stdout is not None and other.stdin is not None
        port = int(other.stdout.readline())
        if apart:
            os.sched_setaffinity(0, {cpus[0]})
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = []
            page = memoryview(bytearray(ANSWERED))
            for _ in range(trips):
                begun = time.perf_counter_ns()
                connection.sendall(bytes(ASKED))
                got = 0
                while got < ANSWERED:
                    got += connection.recv_into(page[got:])
                times.append(time.perf_counter_ns() - begun)
        other.stdin.close()
    os.sched_setaffinity(0, set(cpus))
    return times


def written(end: LinkEnd) -> str:
    return json.dumps([end.endpoint, end.public_key.hex(), end.source])


def read(line: str) -> LinkEnd:
    endpoint, key, source = json.loads(line)
    return LinkEnd(endpoint, bytes.fromhex(key), source)


def over_link(way: dict[str, Any], trips: int) -> list[int]:
    """Times in ns."""
    with started(way) as other:
        assert other.stdout is not None and other.stdin is not None
        theirs = read(other.stdout.readline())
        with ends_of(0, way) as end:
            end.admit({1: theirs})
            print(written(end.end), file=other.stdin, flush=True)
            end.connect({1: theirs})
            probe = LinkProbe(end.open(1, 1, spin_us=way["spin_us"]))
            probe.start()
            probe.ping(1, 100, PAGE)
            times = probe.ping(1, trips, PAGE)
            probe.stop()
        other.stdin.close()
    if len(times) != trips:
        raise SystemExit("the other process did not answer")
    return times


def ends_of(host: int, way: dict[str, Any]) -> ShmEnds | TcpEnds | ZmqEnds:
    """An end of the links of two hosts."""
    if way.get("wire") == "shm":
        return ShmEnds(host, 2, pin=way["pin"])
    if way.get("wire") == "tcp":
        return TcpEnds(host, 2, pin=way["pin"])
    return ZmqEnds(host, 2, curve=way["curve"], pin=way["pin"])


def peer(way: dict[str, Any]) -> None:
    """The process that answers."""
    if "tcp" in way:
        if way["cpu"] is not None:
            os.sched_setaffinity(0, {way["cpu"]})
        with socket.create_server(("127.0.0.1", 0)) as server:
            print(server.getsockname()[1], flush=True)
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while len(connection.recv(ASKED)) == ASKED:
                    connection.sendall(bytes(ANSWERED))
        return
    with ends_of(1, way) as end:
        print(written(end.end), flush=True)
        end.connect({0: read(sys.stdin.readline())})
        probe = LinkProbe(end.open(1, 1, spin_us=way["spin_us"]))
        probe.start()
        sys.stdin.readline()
        probe.stop()


if __name__ == "__main__":
    main()
