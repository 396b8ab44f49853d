# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a network card: streams of frames, a switch, captures, user NAT, and the card itself."""

import os
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.core.errors import ConfigurationError, NetworkError
from coremesh.hw.backend.network import slirp
from coremesh.hw.backend.network.capture import Capture, Tap
from coremesh.hw.backend.network.slirp import Forward, SlirpPort, parse_forward
from coremesh.hw.backend.network.stream import StreamPort, Unframer, framed, parse_address
from coremesh.hw.backend.network.switch import AddressTable, Switch
from coremesh.hw.virtio.net import VirtioNet
from coremesh.hw.virtio.pci import VirtioPci
from hypothesis import given
from hypothesis import strategies as st
from virtio_driver import Driver, Ram, plug

A, B, C = (bytes([0x52, 0x54, 0, 0, 0, n]) for n in (1, 2, 3))
EVERYONE = b"\xff" * 6


def frame(to: bytes, source: bytes, text: bytes = b"") -> bytes:
    return to + source + b"\x88\xb5" + text.ljust(46, b"\0")


def eventually(holds: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- streams -----------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.integers(1, 64))
def test_frames_come_out_of_a_stream_however_it_is_cut(frames: list[bytes], piece: int) -> None:
    """Given frames in a row, when the stream comes in pieces of any length, then they come out whole."""
    stream = b"".join(map(framed, frames))
    unframer = Unframer()
    found = []
    for at in range(0, len(stream), piece):
        found += unframer.feed(stream[at : at + piece])
    assert found == frames


@pytest.mark.parametrize("length", [0, 65_551, 0xFFFF_FFFF])
def test_a_length_that_no_frame_has_ends_the_stream(length: int) -> None:
    """When the other end claims such a frame, then that is an error, and nothing is allocated for it."""
    with pytest.raises(ValueError, match="frame of"):
        Unframer().feed(struct.pack(">I", length))


@pytest.mark.parametrize(
    "text", ["", "nothing", "host:", ":22", "host:0", "host:99999", "unix:", "unix:" + "x" * 200]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """When an address names no socket, then that is a typed error."""
    with pytest.raises(ConfigurationError):
        parse_address(text)


# --- the switch --------------------------------------------------------------------------------------------


class Station:
    """A machine at a switch."""

    def __init__(self, switch: Switch) -> None:
        self.port = StreamPort(switch.address)
        self.heard: list[bytes] = []
        self.port.start(self.heard.extend)


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    with Switch(f"unix:{tmp_path}/s") as switch:
        yield switch


@pytest.fixture
def station(switch: Switch) -> Iterator[Callable[[], Station]]:
    made: list[Station] = []

    def make() -> Station:
        made.append(Station(switch))
        eventually(lambda: switch.counts()["ports"] == len(made))
        return made[-1]

    yield make
    for each in made:
        each.port.close()


def test_a_switch_learns_where_a_station_is(station: Callable[[], Station]) -> None:
    """Given three stations, then unknown destinations and groups go to all others, known ones to one."""
    a, b, c = station(), station(), station()
    a.port.send([frame(B, A, b"where are you")])
    eventually(lambda: b.heard and c.heard)
    b.port.send([frame(A, B, b"here")])
    eventually(lambda: a.heard)
    a.port.send([frame(B, A, b"between us"), frame(EVERYONE, A, b"all")])
    eventually(lambda: len(b.heard) == 3 and len(c.heard) == 2)
    assert [each[14:17] for each in c.heard] == [b"whe", b"all"] and len(a.heard) == 1


def test_a_slow_port_delays_no_other(switch: Switch, station: Callable[[], Station], tmp_path: Path) -> None:
    """Given a station that reads nothing, when much is sent to all, then the others get it in time.

    The slow one loses frames, which are counted.
    """
    a, b = station(), station()
    slow = socket.socket(socket.AF_UNIX)
    slow.connect(f"{tmp_path}/s")
    eventually(lambda: switch.counts()["ports"] == 3)
    for turn in range(1, 61):
        a.port.send([frame(EVERYONE, A, bytes(1400)) for _ in range(60)])
        eventually(partial(lambda sent: switch.counts()["frames"] == sent, 60 * turn))
    eventually(lambda: len(b.heard) == 3600, 20)
    eventually(lambda: switch.counts()["frames_dropped"] > 0)
    slow.close()
    eventually(lambda: switch.counts()["ports"] == 2)


def test_a_port_that_closes_within_a_frame_or_sends_nonsense_hurts_nobody(
    switch: Switch, station: Callable[[], Station], tmp_path: Path
) -> None:
    """When a station dies in the middle of a frame, or claims one of 4 GiB, then it alone is disconnected."""
    a, b = station(), station()
    for data in (struct.pack(">I", 1000) + b"half", b"\xff\xff\xff\xff", framed(b"short")):
        odd = socket.socket(socket.AF_UNIX)
        odd.connect(f"{tmp_path}/s")
        odd.sendall(data)
        odd.close()
    eventually(lambda: switch.counts()["ports"] == 2)
    a.port.send([frame(B, A)])
    eventually(lambda: b.heard == [frame(B, A)])


def test_addresses_age_and_groups_are_not_learned() -> None:
    """Given a table of addresses, then one that was not seen for long is unknown, and its port's all go."""
    table = AddressTable()
    table.learn(A, 1, 0.0)
    table.learn(EVERYONE, 2, 0.0)
    assert table.find(A, 299.0) == 1 and table.find(A, 301.0) is None and table.find(EVERYONE, 0.0) is None
    table.learn(A, 3, 302.0)
    assert table.find(A, 303.0) == 3
    table.forget(3)
    assert table.find(A, 303.0) is None


def test_a_connection_that_breaks_is_made_again(tmp_path: Path) -> None:
    """Given a switch that is started anew, then a station finds it again by itself."""
    first = Switch(f"unix:{tmp_path}/s")
    a = Station(first)
    eventually(lambda: first.counts()["ports"] == 1)
    first.close()
    a.port.send([frame(B, A)])
    with Switch(f"unix:{tmp_path}/s") as second:
        eventually(lambda: second.counts()["ports"] == 1)
        assert a.port.counts()["connections_lost"] >= 1
        a.port.close()


def test_nothing_that_listens_is_a_typed_error(tmp_path: Path) -> None:
    """When nothing listens at an address, or something does already, then the error says so."""
    with pytest.raises(NetworkError, match="start what listens"):
        StreamPort(f"unix:{tmp_path}/none")
    with Switch(f"unix:{tmp_path}/s"), pytest.raises(NetworkError, match="cannot listen"):
        Switch(f"unix:{tmp_path}/s")


# --- captures ----------------------------------------------------------------------------------------------


class Loop:
    """A port that keeps what is sent, and gives the guest what the test gives it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.receive: Callable[[list[bytes]], None] = lambda frames: None

    def start(self, receive: Any) -> None:
        self.receive = receive

    def send(self, frames: Any) -> None:
        self.sent += frames

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def counts(self) -> dict[str, int]:
        return {"frames_dropped": 0}


def test_a_capture_is_a_pcap_file_of_both_directions(tmp_path: Path) -> None:
    """Given a tap, when frames pass in both directions, then the file has them in order, with their times."""
    loop = Loop()
    tap = Tap(loop)
    heard: list[bytes] = []
    tap.start(heard.extend)
    capture = Capture(tmp_path / "c.pcap")
    tap.add(capture)
    before = time.time_ns()
    tap.send([frame(B, A, b"out")])
    loop.receive([frame(A, B, b"in")])
    tap.close()
    data = (tmp_path / "c.pcap").read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 65550, 1)
    at, found = 24, []
    while at < len(data):
        seconds, nanoseconds, size, length = struct.unpack_from("<IIII", data, at)
        assert before - 1 <= seconds * 10**9 + nanoseconds <= time.time_ns() and size == length
        found.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    assert (
        found == [frame(B, A, b"out"), frame(A, B, b"in")] and heard == found[1:] and loop.sent == found[:1]
    )


def test_a_capture_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    """When the file cannot be made, then the error says why."""
    with pytest.raises(NetworkError, match="cannot be written"):
        Capture(tmp_path / "missing" / "c.pcap")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NetworkError, match="nobody reads this pipe"):
        Capture(tmp_path / "pipe")


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file grows beyond 200 bytes, as on a disk that has no more room."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_capture_on_a_full_disk_ends_with_a_whole_frame(tmp_path: Path) -> None:
    """Given room for 24 + 2 * 76 bytes and a bit, when three frames come, then the file has two."""
    capture = Capture(tmp_path / "c.pcap")
    capture.write([frame(A, B)] * 3)
    capture.write([frame(A, B)])
    capture.close()
    assert (tmp_path / "c.pcap").stat().st_size == 24 + 2 * (16 + len(frame(A, B)))


def test_a_reader_that_stands_still_ends_a_capture_and_holds_nobody_up(tmp_path: Path) -> None:
    """Given a pipe whose reader takes nothing, when it is full, then the frames go on without the capture."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    tap = Tap(Loop())
    capture = Capture(tmp_path / "pipe")
    tap.add(capture)
    before = time.monotonic()
    for _ in range(100):
        tap.send([frame(A, B, bytes(1400))])
    assert time.monotonic() - before < 10 and 0 < capture.frames < 100
    tap.close()
    os.close(reader)


# --- user NAT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tcp:2222:22", Forward("tcp", 2222, 22)),
        ("80:8080", Forward("tcp", 80, 8080)),
        ("udp:*:53:53", Forward("udp", 53, 53, "0.0.0.0")),
        ("tcp:127.0.0.2:0:22", Forward("tcp", 0, 22, "127.0.0.2")),
    ],
)
def test_forwards_as_a_person_writes_them(text: str, wanted: Forward) -> None:
    assert parse_forward(text) == wanted


@pytest.mark.parametrize("text", ["", "22", "tcp:22", "tcp:1:0", "tcp:70000:22", "tcp:1.2.3:1:1", "sctp:1:1"])
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_forward(text)


@pytest.fixture
def nat() -> Iterator[SlirpPort]:
    if not slirp.available():
        pytest.skip("no libslirp on this computer: apt install libslirp0")
    port = SlirpPort()
    yield port
    port.close()


def test_a_guest_finds_its_gateway(nat: SlirpPort) -> None:
    """When a guest asks by ARP for 10.0.2.2, then it is answered."""
    heard: list[bytes] = []
    nat.start(heard.extend)
    request = bytes.fromhex("0001080006040001") + A + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
    nat.send([EVERYONE + A + b"\x08\x06" + request])
    eventually(lambda: any(each[12:14] == b"\x08\x06" and each[:6] == A for each in heard))


def test_ports_are_forwarded_while_it_runs(nat: SlirpPort) -> None:
    """Given a running network, when a port is forwarded, then the host listens there, until it is ended."""
    nat.start(lambda frames: None)
    port = nat.forward(Forward("tcp", 0, 22))
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(NetworkError, match="another"):
        nat.forward(Forward("tcp", port, 23))
    nat.unforward(Forward("tcp", port, 22))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_garbage_from_a_guest_hurts_nobody(nat: SlirpPort) -> None:
    """When a guest sends frames of nonsense, of every length, then the network goes on."""
    import random

    r = random.Random(7)
    nat.start(lambda frames: None)
    for length in [1, 13, 14, 15, 33, 34, 1514, 9000, 65_550]:
        kinds = (b"\x08\x00\x45", b"\x08\x06", b"\x86\xdd", b"")
        nat.send([EVERYONE + A + kind + r.randbytes(length) for kind in kinds])
    assert nat.forward(Forward("tcp", 0, 22)) > 0


# --- the card ----------------------------------------------------------------------------------------------


class Card:
    """A started network card, its two rings, and what it is connected to."""

    def __init__(self, make_pc: Any, size: int = 8) -> None:
        self.ram, self.loop = Ram(), Loop()
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(VirtioNet(self.loop, name="nic", mac=A), bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        self.receive, self.transmit = self.driver.start(
            vd.VERSION_1 | 1 << 5 | 1 << 16, queues=(0, 1), size=size
        )
        self.page = self.driver.page(1 << 16)

    def buffers(self, count: int, length: int = 1526) -> None:
        for n in range(count):
            at = self.receive.offered % self.receive.size
            self.receive.describe(at, self.page + 2048 * (n % 32), length, vd.WRITE)
            self.receive.offer(at)
        self.receive.ring()

    def counts(self) -> dict[str, int]:
        return dict(self.pc.node.counters()["nic"])


@pytest.fixture
def card(make_pc: Any) -> Iterator[Card]:
    card = Card(make_pc)
    yield card
    card.pc.node.stop()


def test_the_card_says_its_address_and_that_the_link_is_up(card: Card) -> None:
    """VIRTIO 1.2, 5.1.4."""
    assert bytes(card.driver.access(vd.DEVICE_CFG, at, 1) for at in range(6)) == A
    assert card.driver.access(vd.DEVICE_CFG, 6, 2) == 1


@pytest.mark.parametrize("cut", [12, 5, 40])
def test_what_the_guest_sends_leaves_without_the_header(card: Card, cut: int) -> None:
    """5.1.6.2: a header of 12 bytes, then the frame, however they are divided into buffers."""
    whole = bytes(12) + frame(B, A, b"hello")
    card.ram.ram_write(card.page, whole)
    segments = [(card.page, cut, False), (card.page + cut, len(whole) - cut, False)]
    card.transmit.offer(card.transmit.chain(segments))
    card.transmit.ring()
    assert card.transmit.wait() == [(0, 0)]
    eventually(lambda: card.loop.sent == [frame(B, A, b"hello")])


def test_what_comes_for_the_guest_lies_behind_a_header_of_one_buffer(card: Card) -> None:
    """5.1.6.4: num_buffers is 1, the other fields are zero; the used length counts both."""
    card.buffers(1)
    card.loop.receive([frame(A, B, b"hello")])
    assert card.receive.wait() == [(0, 12 + 60)]
    assert card.ram.ram_read(card.page, 72) == bytes(10) + b"\1\0" + frame(A, B, b"hello")


def test_frames_wait_for_buffers_in_their_order(card: Card) -> None:
    """Given more frames than buffers, when the driver gives more, then they come, none twice, none lost."""
    frames = [frame(A, B, b"%d" % n) for n in range(20)]
    card.buffers(4)
    card.loop.receive(frames)
    seen = []
    for _ in range(5):
        for head, length in card.receive.wait(4):
            at = card.page + 2048 * (head % 4)
            seen.append(card.ram.ram_read(at + 12, length - 12))
        card.buffers(4)
    assert seen == frames
    assert card.counts()["frames_received"] == 20 and card.counts()["frames_lost"] == 0


def test_a_guest_that_does_not_read_loses_frames_and_nothing_grows(card: Card) -> None:
    """Given no buffers, when frames keep coming, then a bounded number waits and the rest is counted lost."""
    for _ in range(30):
        card.loop.receive([frame(A, B)] * 100)
    assert card.counts()["frames_lost"] == 3000 - 2048


def test_frames_that_do_not_fit_are_dropped(card: Card) -> None:
    """When a frame is longer than the driver's buffer, or a request holds none, then it is counted lost."""
    card.buffers(2, 100)
    card.loop.receive([frame(A, B, bytes(200)), frame(A, B, b"fits")])
    assert [length for _, length in card.receive.wait(2)] == [0, 72]
    card.ram.ram_write(card.page, bytes(12))
    card.transmit.offer(card.transmit.chain([(card.page, 12, False)]))
    card.transmit.ring()
    card.transmit.wait()
    eventually(lambda: card.counts()["frames_lost"] == 2)
    assert card.loop.sent == []


@pytest.mark.parametrize("queue", ["receive", "transmit"])
def test_a_hostile_buffer_stops_the_card_until_its_reset(card: Card, queue: str) -> None:
    """2.1.2: given a buffer that is not RAM, then DEVICE_NEEDS_RESET, and after the reset all is well."""
    ring = getattr(card, queue)
    ring.describe(0, 0xFEE0_0000, 1526, vd.WRITE if queue == "receive" else 0)
    ring.offer(0)
    ring.ring()
    card.loop.receive([frame(A, B)])
    eventually(lambda: card.driver.status & vd.NEEDS_RESET)
    card.driver.next_page = Ram.BASE
    card.receive, card.transmit = card.driver.start(vd.VERSION_1, queues=(0, 1), size=8)
    card.page = card.driver.page(1 << 16)
    card.buffers(1)
    card.loop.receive([frame(A, B, b"again")])
    assert card.receive.wait() == [(0, 72)]


def test_no_frame_reaches_memory_after_a_reset(card: Card) -> None:
    """2.4.2: given frames that keep coming while a driver resets the card, then memory stays as it is."""
    card.buffers(8)
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            card.loop.receive([frame(A, B, b"flood")] * 4)

    thread = threading.Thread(target=flood)
    thread.start()
    card.driver.reset()
    after = bytes(card.ram.data)
    time.sleep(0.05)
    assert bytes(card.ram.data) == after
    done.set()
    thread.join()
