# SPDX-License-Identifier: GPL-2.0-or-later
"""Links over real sockets: encrypted, keyed, bounded, ended in order, and native whatever Python does."""

import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
import zmq
from coremesh.core.cores import usable_cores
from coremesh.core.errors import ConfigurationError, LinkError
from coremesh.core.links import choose_wire, make_ends, this_computer
from coremesh.core.links import zmq as zmq_wire
from coremesh.core.links.door import Door, LinkEnd
from coremesh.core.links.tuning import receives_while_waiting
from coremesh.core.links.zmq import ZmqEnds
from linked_hosts import (
    EPOCH,
    MACHINE,
    Connect,
    Linked,
    eventually,
    link_up,
    links_probe,
    read,
    written,
    zmq_end,
)
from zmq.utils import z85

every_wire = pytest.mark.parametrize("wire", ["zmq", "tcp", "shm"])


def frame(
    source: int, destination: int, sequence: int, payload: bytes = b"", machine: int = MACHINE
) -> bytes:
    """A frame as core/native/link/frame.hpp lays it out; type 6 is control."""
    head = struct.pack(
        "<IBBBBQIIQQ", 0x48534D43, 1, 6, source, destination, machine, EPOCH, len(payload), sequence, 0
    )
    return head + payload


def knock(
    machine: Linked, host: int, message: bytes, keys: tuple[bytes, bytes] | None
) -> "zmq.Socket[bytes]":
    """A socket of our own that sends one message to a host's router, with the keys given.

    It comes from a port that the host was told to admit: the stranger has stolen a peer's.
    """
    end, stolen = zmq_end(machine, host), Door(ip_address("127.0.0.1"))
    machine.stolen.append(LinkEnd("", b"", f"127.0.0.1:{stolen.source[1]}"))
    end.admit({**machine.peers(), **dict(enumerate(machine.stolen, start=10))})
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.set(zmq.LINGER, 0)
    if keys:
        dealer.set(zmq.CURVE_PUBLICKEY, keys[0])
        dealer.set(zmq.CURVE_SECRETKEY, keys[1])
        dealer.set(zmq.CURVE_SERVERKEY, z85.encode(end.public_key))
    dealer.connect(f"tcp://127.0.0.1:{stolen.source[1]};{end.endpoint.removeprefix('tcp://')}")
    dealer.send(message)
    stolen.close()
    return dealer


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("wire", "curve"), [("zmq", True), ("zmq", False), ("tcp", True), ("shm", False)])
def test_given_two_hosts_when_one_asks_for_a_page_then_the_answer_comes_and_is_counted(
    connect: Connect, wire: str, curve: bool
) -> None:
    machine = connect(wire=wire, curve=curve)
    assert len(machine.probes[0].ping(1, 200, 4096)) == 200
    counters = machine.links[0].counters(1)
    assert counters["sent_frames"] == counters["received_frames"] == 200
    assert counters["received_bytes"] == 200 * (40 + 12 + 4096)
    assert counters["lost"] == counters["not_sent"] == 0
    assert machine.links[0].facts()["keys_accepted"] == (1 if curve else 0)
    assert machine.links[0].facts()["wire"] == wire
    assert machine.links[0].facts()["priority"] in {"fifo", "nice", "slice", "none"}


@every_wire
def test_given_four_hosts_when_each_sends_to_each_then_all_arrives_in_order_with_its_parts_joined(
    connect: Connect, wire: str
) -> None:
    machine = connect(4, wire=wire)
    page = os.urandom(4096)
    for number in range(200):
        for source in range(4):
            for destination in set(range(4)) - {source}:
                head = struct.pack("<I", number)
                assert machine.probes[source].send(destination, "page", head, page)
    got: dict[tuple[int, int], list[int]] = {}

    def count() -> int:
        for host in range(4):
            for source, kind, _, payload in machine.probes[host].take():
                assert kind == "page" and payload[4:] == page
                got.setdefault((source, host), []).append(struct.unpack_from("<I", payload)[0])
        return sum(map(len, got.values()))

    assert eventually(lambda: count() == 12 * 200)
    assert all(numbers == list(range(200)) for numbers in got.values())


@every_wire
def test_given_traffic_when_python_holds_its_lock_or_is_busy_then_frames_are_answered_all_the_same(
    connect: Connect, wire: str
) -> None:
    machine = connect(wire=wire)
    # The handshake too: nobody in Python answers for the keys.
    assert len(machine.probes[0].ping_holding_the_interpreter(1, 200, 4096)) == 200
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    busy = threading.Thread(target=compute)
    busy.start()
    times = machine.probes[0].ping(1, 200, 4096)
    over.set()
    busy.join()
    assert len(times) == 200
    assert sorted(times)[100] < 4_000_000, "a switch of the interpreter's lock alone takes 5 ms"


def test_given_an_unknown_key_or_none_when_it_knocks_then_it_is_not_let_in_and_the_link_goes_on(
    connect: Connect,
) -> None:
    machine = connect()
    stranger = knock(machine, 0, frame(1, 0, 1, b"strange"), zmq.curve_keypair())
    naked = knock(machine, 0, frame(1, 0, 1, b"naked"), None)
    assert eventually(lambda: machine.links[0].facts()["keys_refused"] >= 1)
    assert machine.probes[1].send(0, "control", b"known")
    assert eventually(lambda: machine.links[0].counters(1)["received_frames"] == 1)
    assert [entry[3] for entry in machine.probes[0].take()] == [b"known"]
    stranger.close()
    naked.close()


def test_given_a_host_with_a_key_when_it_says_that_it_is_another_host_then_it_is_refused_and_blamed(
    connect: Connect,
) -> None:
    machine = connect(3)
    keys = (zmq_end(machine, 2)._public, zmq_end(machine, 2)._secret)
    liar = knock(machine, 0, frame(1, 0, 1, b"I am host 1"), keys)
    assert eventually(lambda: machine.links[0].counters(2).get("refused_source") == 1)
    assert machine.probes[1].send(0, "control", b"truth")
    assert eventually(lambda: machine.links[0].counters(1)["received_frames"] == 1)
    assert [entry[3] for entry in machine.probes[0].take()] == [b"truth"]
    liar.close()


def test_given_broken_replayed_and_foreign_frames_when_they_come_then_each_is_counted_by_its_reason(
    connect: Connect,
) -> None:
    machine = connect()
    keys = (zmq_end(machine, 1)._public, zmq_end(machine, 1)._secret)
    peer = knock(machine, 0, frame(1, 0, 1, b"good"), keys)
    for bad in (
        frame(1, 0, 1, b"good"),
        frame(1, 0, 2, b"short")[:-1],
        b"",
        b"x" * 39,
        b"x" * 40,
        frame(1, 0, 2, b"x" * 65537),
        frame(1, 0, 2, machine=MACHINE + 1),
        frame(1, 1, 2),
    ):
        peer.send(bad)
    peer.send_multipart([frame(1, 0, 2), b"and more"])
    peer.send(frame(1, 0, 2, b"good as well"))
    assert eventually(lambda: machine.links[0].counters(1)["received_frames"] == 2)
    counters = machine.links[0].counters(1)
    assert {name: count for name, count in counters.items() if name.startswith("refused_")} == {
        "refused_replayed": 1,
        "refused_length": 1,
        "refused_truncated": 2,
        "refused_not_a_frame": 1,
        "refused_oversized": 1,
        "refused_machine": 1,
        "refused_destination": 1,
    }
    assert machine.links[0].facts()["refused_not_a_frame"] == 1
    assert [entry[3] for entry in machine.probes[0].take()] == [b"good", b"good as well"]
    peer.send(frame(1, 0, 4, b"one is missing"))
    assert eventually(lambda: machine.probes[0].lost == 1 << 1)
    peer.close()


@every_wire
def test_given_a_host_of_an_older_epoch_when_it_sends_then_it_is_refused(connect: Connect, wire: str) -> None:
    machine = connect(wire=wire, epochs=[EPOCH, EPOCH - 1])
    assert machine.probes[1].send(0, "control", b"from the past")
    assert eventually(lambda: machine.links[0].counters(1).get("refused_epoch") == 1)
    assert machine.probes[0].take() == []


@every_wire
def test_given_a_slow_host_when_it_is_sent_more_than_the_queues_hold_then_the_rest_waits_and_nothing_is_lost(
    connect: Connect, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_wire, "QUEUE", 16)
    machine = connect(wire=wire)
    assert machine.probes[0].ping(1, 1)
    machine.probes[1].slow_down(50_000_000)
    count = 6000  # 24 MB: more than sockets and queues hold
    for number in range(count):
        assert machine.probes[0].send(1, "page", struct.pack("<I", number), bytes(4096))
    counters = machine.links[0].counters(1)
    assert counters["overflow_now"] > 0
    assert not machine.probes[0].send(1, "heartbeat", b"old news"), "what need not arrive is dropped first"
    machine.probes[1].slow_down(0)
    got: list[int] = []

    def all_there() -> bool:
        got.extend(struct.unpack_from("<I", entry[3])[0] for entry in machine.probes[1].take())
        return len(got) == count

    assert eventually(all_there, 60)
    assert got == list(range(count))
    counters = machine.links[0].counters(1)
    assert counters["overflow_now"] == 0 and counters["overflow_high_water"] > 0
    assert counters["not_sent"] == 1 and counters["lost"] == 0


@every_wire
def test_given_a_host_that_takes_nothing_when_the_own_queue_is_full_as_well_then_it_is_given_up(
    connect: Connect, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_wire, "QUEUE", 16)
    machine = connect(wire=wire, overflow=64)
    assert machine.probes[0].ping(1, 1)
    machine.probes[1].slow_down(2_000_000_000)
    sent = 0
    while sent < 20_000 and machine.probes[0].send(1, "page", bytes(4096)):
        sent += 1
    assert sent < 20_000
    counters = machine.links[0].counters(1)
    assert counters["lost"] == 1 and counters["overflow_high_water"] == 64
    assert eventually(lambda: machine.probes[0].lost == 1 << 1)
    machine.probes[1].slow_down(0)


PEER = """
import sys
from coremesh.core.links.door import LinkEnd
from coremesh.core.links import make_ends
from coremesh.core._native import LinkProbe
end = make_ends("%s", 1, 2)
print(end.end.endpoint, end.end.public_key.hex(), end.end.source or "-", flush=True)
endpoint, key, source = sys.stdin.readline().split()
end.connect({0: LinkEnd(endpoint, bytes.fromhex(key), source)})
probe = LinkProbe(end.open(%d, %d))
probe.start()
sys.stdin.readline()
"""


@every_wire
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_given_a_peer_that_dies_or_hangs_when_the_link_stops_then_at_once_and_nothing_is_left(
    how: signal.Signals, wire: str
) -> None:
    before = threads(), descriptors()
    with subprocess.Popen(
        [sys.executable, "-c", PEER % (wire, MACHINE, EPOCH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        try:
            assert peer.stdout is not None and peer.stdin is not None
            end = make_ends(wire, 0, 2)
            end.connect({1: read(peer.stdout.readline())})
            probe = links_probe(end)
            peer.stdin.write(written(end.end) + "\n")
            peer.stdin.flush()
            assert len(probe.ping(1, 50)) == 50
            peer.send_signal(how)
            if how == signal.SIGKILL:
                peer.wait()
            for _ in range(500):
                probe.send(1, "page", bytes(4096))
            begun = time.monotonic()
            probe.stop()
            end.close()
            assert time.monotonic() - begun < 10
        finally:
            peer.kill()
    del probe, end
    assert eventually(lambda: threads() <= before[0] and descriptors() <= before[1])


@every_wire
def test_given_links_that_come_and_go_when_all_are_closed_then_no_thread_and_no_descriptor_is_left(
    wire: str,
) -> None:
    def once() -> None:
        machine = link_up(3, wire=wire)
        assert machine.probes[2].ping(0, 5)
        machine.close()

    once()
    before = threads(), descriptors()
    for _ in range(3):
        once()
    assert eventually(lambda: threads() <= before[0] and descriptors() <= before[1])


@every_wire
def test_given_a_link_that_was_never_started_when_it_is_closed_then_nothing_hangs(
    connect: Connect, wire: str
) -> None:
    machine = connect(wire=wire, start=False)
    assert not machine.probes[0].send(1, "control", b"too early")
    machine.close()
    assert not machine.probes[0].send(1, "control", b"too late")


def test_given_the_ends_of_a_host_when_they_are_pickled_then_the_secret_stays_here() -> None:
    with ZmqEnds(0, 2) as end:
        with pytest.raises(TypeError, match="secret"):
            pickle.dumps(end)
        assert len(end.public_key) == 32
        assert end._secret.decode() not in repr(vars(end.__class__)) + repr(end)


def test_given_what_no_link_can_be_made_of_when_it_is_asked_for_then_the_error_says_what_to_give() -> None:
    with pytest.raises(LinkError, match="counted from 0"):
        ZmqEnds(2, 2)
    with pytest.raises(LinkError, match="no IP address"):
        ZmqEnds(0, 2, "not-an-address")
    with pytest.raises(LinkError, match="this computer"):
        ZmqEnds(0, 2, "192.0.2.1")
    with ZmqEnds(0, 3) as end:
        with pytest.raises(LinkError, match="host 2 is missing"):
            end.connect({1: LinkEnd("tcp://127.0.0.1:1", b"x" * 32, "127.0.0.1:2")})
        with pytest.raises(LinkError, match="of its own"):
            same = LinkEnd("tcp://127.0.0.1:1", b"x" * 32, "127.0.0.1:2")
            end.connect({1: same, 2: same})
        with pytest.raises(LinkError, match="connect the ends"):
            end.open(MACHINE, EPOCH)


def test_given_this_process_when_libzmq_is_looked_for_then_it_is_the_one_that_python_uses() -> None:
    assert "libzmq" in Path(zmq_wire.loaded_libzmq()).name


def test_given_hosts_of_one_computer_or_of_two_when_the_wire_is_chosen_then_it_is_one_that_reaches_them() -> (
    None
):
    here, there = this_computer(), "elsewhere"
    assert choose_wire("auto", [here, here])[0] == "shm"
    assert choose_wire("auto", [here, there])[0] == "tcp"
    assert choose_wire("zmq", [here, here])[0] == "zmq"
    with pytest.raises(ConfigurationError, match="one computer"):
        choose_wire("shm", [here, there])


def test_given_more_vcpus_than_cores_when_a_link_opens_then_only_its_protocol_thread_receives_unless_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores = usable_cores()
    assert receives_while_waiting(cores) and not receives_while_waiting(cores + 1)
    monkeypatch.setenv("COREMESH_LINK_LEND", "0")
    assert not receives_while_waiting(cores)
    monkeypatch.setenv("COREMESH_LINK_LEND", "1")
    assert receives_while_waiting(cores + 1)
    monkeypatch.setenv("COREMESH_LINK_LEND", "no")
    with pytest.raises(ConfigurationError, match="give 0 or 1, or remove"):
        receives_while_waiting(1)


def test_given_a_process_without_privilege_when_a_link_starts_then_its_thread_asks_for_a_short_slice() -> (
    None
):
    """As in a container: its protocol thread waits for a CPU among all others, and heartbeats with it."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        pytest.skip("needs root and setpriv, to give a privilege up")
    program = "from coremesh.core._native import link_priority; print(link_priority())"
    words = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-all", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("slice" if release >= (6, 12) else "none")
