# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire of TCP against strangers between the hosts or at their doors: nothing is read, changed or kept."""

import os
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from coremesh.core._native import LinkProbe
from coremesh.core.links.door import Door, LinkEnd
from coremesh.core.links.tcp import TcpEnds
from linked_hosts import EPOCH, MACHINE, Linked, eventually

Connect = Callable[..., Linked]
GREETING = struct.Struct("<8sBB6x32s")


def greeting(host: int) -> bytes:
    """As core/native/link/secure_channel.cpp lays it out."""
    return GREETING.pack(b"CMlink\0\1", host, 0, os.urandom(32))


def knock(machine: Linked, host: int) -> socket.socket:
    """A connection to a host from a port that it was told to admit: the stranger has stolen a peer's."""
    end, stolen = machine.ends[host], Door(ip_address("127.0.0.1"))
    machine.stolen.append(LinkEnd("", b"", f"127.0.0.1:{stolen.source[1]}"))
    end.admit({**machine.peers(), **dict(enumerate(machine.stolen, start=10))})
    stranger = socket.socket()
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stranger.bind(("127.0.0.1", stolen.source[1]))
    stranger.settimeout(10)
    stranger.connect(("127.0.0.1", int(end.end.endpoint.rpartition(":")[2])))
    stolen.close()
    return stranger


class Between:
    """Two hosts whose one connection goes through a relay of ours, which sees and may change each byte."""

    def __init__(self, change: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.seen = bytearray()
        self._change = change
        self.ends = [TcpEnds(0, 2), TcpEnds(1, 2)]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._out = Door(ip_address("127.0.0.1"))
        first, second = (end.end for end in self.ends)
        place = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        peers = [
            {1: second._replace(endpoint=place)},
            {0: first._replace(source=f"127.0.0.1:{self._out.source[1]}")},
        ]
        self.links, self.probes = [], []
        self._thread = threading.Thread(target=self._relay, args=(int(second.endpoint.rpartition(":")[2]),))
        self._thread.start()
        for end, others in zip(self.ends, peers, strict=True):
            end.connect(others)
            self.links.append(end.open(MACHINE, EPOCH))
            self.probes.append(LinkProbe(self.links[-1]))
            self.probes[-1].start()

    def _relay(self, port: int) -> None:
        one, _ = self._listening.accept()
        other = socket.socket()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", self._out.source[1]))
        other.connect(("127.0.0.1", port))
        with one, other:
            while True:
                for ready in select.select([one, other], [], [])[0]:
                    try:
                        data = ready.recv(65536)
                        self.seen += data
                        (other if ready is one else one).sendall(self._change(data))
                    except OSError:
                        return
                    if not data:
                        return

    def close(self) -> None:
        for probe in self.probes:
            probe.stop()
        for end in self.ends:
            end.close()
        self._thread.join()
        self._listening.close()
        self._out.close()


@pytest.fixture
def between() -> Iterator[Callable[..., Between]]:
    made: list[Between] = []

    def make(*arguments: Callable[[bytes], bytes]) -> Between:
        made.append(Between(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_given_somebody_between_two_hosts_when_a_page_is_sent_then_none_of_its_bytes_are_seen(
    between: Callable[..., Between],
) -> None:
    machine = between()
    text = b"the guest's secret" * 200
    assert machine.probes[0].ping(1, 3, 64)
    assert machine.probes[0].send(1, "page", b"", text)
    assert eventually(lambda: text in [payload for *_, payload in machine.probes[1].take()])
    assert len(machine.seen) > len(text) and b"secret" not in machine.seen


def test_given_somebody_who_changes_one_bit_when_a_frame_comes_then_it_and_all_after_it_are_refused(
    between: Callable[..., Between],
) -> None:
    over = threading.Event()

    def change(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if data and over.is_set() else data

    machine = between(change)
    assert len(machine.probes[0].ping(1, 10, 64)) == 10
    machine.probes[1].take()
    over.set()
    assert machine.probes[0].send(1, "page", b"", b"x" * 100)
    assert eventually(lambda: machine.links[1].facts().get("refused_not_a_frame", 0) == 1)
    assert machine.probes[1].take() == []


def test_given_a_stranger_at_an_admitted_port_when_it_says_that_it_is_a_host_then_its_key_is_asked_for(
    connect: Connect,
) -> None:
    machine = connect(3, wire="tcp", start=False)
    for probe in machine.probes[:2]:
        probe.start()  # host 2 is late: a stranger comes in its place
    assert len(machine.probes[0].ping(1, 10, 64)) == 10
    with closing(knock(machine, 1)) as stranger:
        assert len(stranger.recv(48)) == 48
        stranger.sendall(greeting(0) + bytes(20))
        answer = b"".join(iter(lambda: stranger.recv(4096), b""))
    assert len(answer) <= 20, "no more than the proof of the host's own key"
    assert machine.links[1].facts()["keys_refused"] == 1
    machine.probes[2].start()
    assert len(machine.probes[2].ping(1, 10, 64)) == 10
    assert len(machine.probes[0].ping(1, 10, 64)) == 10


def test_given_strangers_who_send_anything_or_nothing_when_they_go_then_nothing_is_left_of_them(
    connect: Connect,
) -> None:
    machine = connect(wire="tcp")
    assert len(machine.probes[0].ping(1, 10, 64)) == 10
    before = len(list(Path("/proc/self/fd").iterdir()))
    numbers = random.Random(5)
    silent = [knock(machine, 1) for _ in range(6)]  # more than are kept unproven
    for stranger in silent:
        stranger.close()
    for _ in range(60):
        with closing(knock(machine, 1)) as stranger:
            start = greeting(numbers.randrange(3))[: numbers.randrange(49)] if numbers.random() < 0.7 else b""
            stranger.sendall(start + numbers.randbytes(numbers.randrange(3000)))
            if numbers.random() < 0.3:
                stranger.shutdown(socket.SHUT_WR)
    assert eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)
    assert len(machine.probes[0].ping(1, 10, 4096)) == 10
    assert machine.links[1].counters(0)["lost"] == 0


def test_given_a_host_that_connects_before_it_is_admitted_when_it_is_then_frames_pass() -> None:
    ends = [TcpEnds(host, 2) for host in range(2)]
    ends[0].connect({1: ends[1].end})
    probes = [LinkProbe(ends[0].open(MACHINE, EPOCH))]
    probes[0].start()
    assert not probes[0].ping(1, 1, 64)
    ends[1].connect({0: ends[0].end})
    probes.append(LinkProbe(ends[1].open(MACHINE, EPOCH)))
    probes[1].start()
    assert eventually(lambda: len(probes[0].ping(1, 5, 64)) == 5)
    for probe, end in zip(probes, ends, strict=True):
        probe.stop()
        end.close()


@pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="this kernel has no IPv6")
def test_given_hosts_on_ipv6_when_a_page_is_asked_for_then_it_comes() -> None:
    ends = [TcpEnds(host, 2, "::1") for host in range(2)]
    probes = []
    for end in ends:
        end.connect({host: other.end for host, other in enumerate(ends)})
        probes.append(LinkProbe(end.open(MACHINE, EPOCH)))
        probes[-1].start()
    assert len(probes[0].ping(1, 20, 4096)) == 20
    for probe, end in zip(probes, ends, strict=True):
        probe.stop()
        end.close()
