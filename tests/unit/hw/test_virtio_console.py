# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio console as a driver uses it: ports, control messages, the terminal's size, emergency writes."""

import json
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.core.errors import ConfigurationError
from coremesh.hw.backend.console import ConsolePort, Handover
from coremesh.hw.backend.console_ends import ConsoleLog, ConsoleSocket
from coremesh.hw.virtio import console as vc
from coremesh.hw.virtio.console import VirtioConsole
from coremesh.hw.virtio.pci import VirtioPci
from virtio_driver import Driver, Ram, Ring, plug

CONTROL = struct.Struct("<IHH")


class Guest:
    """A console with a driver that has given each receiving queue eight buffers of 64 bytes."""

    def __init__(
        self, make_pc: Any, ports: int, features: int = vd.VERSION_1 | vc.SIZE | vc.MULTIPORT
    ) -> None:
        self.ram = Ram(4 << 20)
        self.ports = [ConsolePort() for _ in range(ports)]
        names = [f"port.{number}" for number in range(1, ports)]
        self.model = VirtioConsole(self.ports, name="vc", names=names)
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(self.model, bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        queues = range(2 if ports == 1 else 2 * ports + 2)
        offered = self.driver.features() if features & vc.MULTIPORT else features
        self.rings = self.driver.start(features & offered | vd.VERSION_1, queues=queues, size=8)
        self.page = self.driver.page(1 << 20)
        self.buffers: dict[int, int] = {}
        for number in [0, *range(2, len(self.rings), 2)]:
            at = self.buffers[number] = self.driver.page()
            for i in range(8):
                self.rings[number].describe(i, at + 64 * i, 64, vd.WRITE)
                self.rings[number].offer(i)
            self.rings[number].ring()

    def send(self, queue: int, data: bytes) -> None:
        self.ram.ram_write(self.page, data)
        ring = self.rings[queue]
        ring.offer(ring.chain([(self.page, len(data), False)]))
        ring.ring()
        assert ring.wait() == [(0, 0)]

    def received(self, queue: int) -> bytes:
        """The next buffer that the device has filled; it is given back."""
        ring = self.rings[queue]
        ((head, written),) = ring.wait()
        data = self.ram.ram_read(self.buffers[queue] + 64 * head, written)
        ring.offer(head)
        ring.ring()
        return data

    def say(self, port: int, event: int, value: int) -> None:
        self.send(vc.CONTROL_TRANSMIT, CONTROL.pack(port, event, value))

    def told(self) -> tuple[int, int, int, bytes]:
        data = self.received(vc.CONTROL_RECEIVE)
        return (*CONTROL.unpack(data[:8]), data[8:])


@pytest.fixture
def guest(make_pc: Any) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def make(ports: int = 1, **options: Any) -> Guest:
        guests.append(Guest(make_pc, ports, **options))
        return guests[-1]

    yield make
    for each in guests:
        each.pc.node.stop()


def read(port: ConsolePort, length: int) -> bytes:
    """The first ``length`` bytes that a console has shown."""
    data, deadline = b"", time.monotonic() + 10
    while len(data) < length:
        assert time.monotonic() < deadline, data
        data, _ = port.read(0, 0.2)
    return data


def test_a_console_prints_and_is_typed_on(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.3.6: what the driver sends appears, in order; what is typed fills its buffers."""
    one = guest()
    text = b"".join(b"line %d\r\n" % number for number in range(2000))
    for at in range(0, len(text), 4096):
        one.send(1, text[at : at + 4096])
    assert read(one.ports[0], len(text)) == text
    one.ports[0].feed(b"uname\n")
    assert one.received(0) == b"uname\n"
    one.ports[0].feed(b"x" * 150)  # more than a buffer has
    assert one.received(0) + one.received(0) + one.received(0) == b"x" * 150
    counts = one.pc.device.counts()
    assert (counts["bytes_sent"], counts["bytes_received"]) == (len(text), 156)
    assert counts["resets_needed"] == 0


def test_typing_waits_for_a_driver_and_for_its_buffers(guest: Callable[..., Guest]) -> None:
    """Given more than all buffers hold, then the rest waits for those that the driver gives back."""
    one = guest()
    typed = bytes(range(256)) * 8
    one.ports[0].feed(typed)
    assert b"".join(one.received(0) for _ in range(len(typed) // 64)) == typed


def test_the_size_is_in_the_configuration_and_its_change_interrupts(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.3.4 and 5.3.5: cols and rows, and a new generation with a configuration interrupt."""
    one = guest()
    assert one.driver.access(vd.DEVICE_CFG, 0, 4) == 80 | 25 << 16
    before = one.driver.common(21, 1)
    one.pc.fabric.messages.clear()
    one.model.resize(132, 43)
    assert one.driver.access(vd.DEVICE_CFG, 0, 4) == 132 | 43 << 16
    assert one.driver.common(21, 1) != before
    assert [data for _, data in one.pc.fabric.messages] == [0x40]
    one.model.resize(132, 43)
    assert len(one.pc.fabric.messages) == 1, "the same size is no news"


def test_one_console_alone_has_no_control_queues(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.3.2: queues 2 and 3 exist only with MULTIPORT."""
    one = guest()
    assert not one.driver.features() & vc.MULTIPORT
    assert one.driver.common(18, 2) == 2


def test_a_driver_that_is_ready_is_told_of_every_port(guest: Callable[..., Guest]) -> None:
    """VIRTIO 1.2, 5.3.6.2: ports are added; a ready one gets its kind, name and size, and is open."""
    two = guest(ports=2)
    assert two.driver.access(vd.DEVICE_CFG, 4, 4) == 2, "max_nr_ports"
    assert two.driver.common(18, 2) == 6
    two.say(0, vc.DEVICE_READY, 1)
    assert [two.told()[:2] for _ in range(2)] == [(0, vc.DEVICE_ADD), (1, vc.DEVICE_ADD)]
    two.say(0, vc.PORT_READY, 1)
    assert two.told() == (0, vc.CONSOLE_PORT, 1, b"")
    assert two.told() == (0, vc.RESIZE, 0, struct.pack("<HH", 80, 25))
    assert two.told() == (0, vc.OPEN, 1, b"")
    two.say(1, vc.PORT_READY, 1)
    assert two.told() == (1, vc.PORT_NAME, 1, b"port.1")
    assert two.told() == (1, vc.OPEN, 1, b"")
    two.model.resize(100, 50)
    assert two.told() == (0, vc.RESIZE, 0, struct.pack("<HH", 100, 50))
    two.send(5, b"to the host")
    assert read(two.ports[1], 11) == b"to the host"
    two.ports[1].feed(b"to the guest")
    assert two.received(4) == b"to the guest"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        bytes(7),
        b"\xff" * 8,
        CONTROL.pack(99, vc.PORT_READY, 1),
        CONTROL.pack(0, 77, 1),
        bytes(4096),
    ],
)
def test_control_messages_of_nonsense_are_ignored(guest: Callable[..., Guest], message: bytes) -> None:
    """Given a message that is short, or of a port that is not there, then the next one is answered."""
    two = guest(ports=2)
    if message:
        two.send(vc.CONTROL_TRANSMIT, message)
    two.say(0, vc.DEVICE_READY, 1)
    assert two.told()[:2] == (0, vc.DEVICE_ADD)
    assert two.pc.device.counts()["resets_needed"] == 0


def test_a_driver_that_asks_for_ever_and_never_listens_is_bounded(make_pc: Any) -> None:
    """Given 400 times READY and no buffer for an answer, then no more than 1024 messages wait."""
    two = Guest(make_pc, 2)
    for _ in range(400):
        two.say(0, vc.PORT_READY, 1)
    assert len(two.model._messages) <= 1024
    two.pc.node.stop()


def test_emergency_writes_need_no_queue(make_pc: Any) -> None:
    """VIRTIO 1.2, 5.3.4: a character written to emerg_wr appears, also before a driver has started."""
    port = ConsolePort()
    model = VirtioConsole([port], name="vc")
    pc = plug(make_pc, Ram(), lambda bus: VirtioPci(model, bus))
    driver = Driver(pc, pc.ram if hasattr(pc, "ram") else Ram())
    driver.config(4, 2, 0x6)
    assert driver.features() & vc.EMERG_WRITE
    for character in b"oops":
        driver.access(vd.DEVICE_CFG, 8, 4, character)
    assert port.read(0, 0)[0] == b"oops"


@pytest.mark.parametrize("queue", [0, 1])
def test_a_buffer_outside_memory_stops_the_device_until_its_reset(
    guest: Callable[..., Guest], queue: int
) -> None:
    """Given an address that is no RAM, then the device asks for a reset, counts it, and works after one."""
    one = guest()
    ring: Ring = one.rings[queue]
    if queue == 0:
        for i in range(8):
            ring.describe(i, 0xFFFF_F000, 64, vd.WRITE)
        one.ports[0].feed(b"x")
    else:
        ring.offer(ring.chain([(0xFFFF_F000, 64, False)]))
        ring.ring()
    deadline = time.monotonic() + 10
    while not one.driver.status & vd.NEEDS_RESET:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert one.pc.device.counts()["resets_needed"] == 1
    one.driver.next_page = Ram.BASE
    one.rings = one.driver.start(vd.VERSION_1, queues=range(2), size=8)
    one.send(1, b"again")
    assert read(one.ports[0], 5) == b"again"


def test_a_console_goes_on_in_a_loaded_machine(make_pc: Any) -> None:
    """Given ports that the driver has opened, and messages that wait, then a loaded machine has both."""
    first = Guest(make_pc, 2)
    first.say(0, vc.DEVICE_READY, 1)
    first.say(1, vc.OPEN, 1)
    first.told(), first.told()
    first.model.resize(90, 30)
    first.told()
    first.pc.node.stop()
    first.model._messages.append("00")
    saved = json.loads(json.dumps(first.pc.node.save()))
    ports = [ConsolePort(), ConsolePort()]
    model = VirtioConsole(ports, name="vc", names=["port.1"])
    second = plug(make_pc, first.ram, lambda bus: VirtioPci(model, bus))
    second.node.load(saved)
    assert (model._opened, model._messages) == ([False, True], ["00"])
    assert model.config[:4] == struct.pack("<HH", 90, 30)
    second.node.start()
    first.driver.pc = second
    first.send(1, b"on and on")
    assert read(ports[0], 9) == b"on and on"
    second.node.stop()


# --- what is behind it -------------------------------------------------------------------------------------


def test_what_is_typed_goes_to_the_device_that_has_a_driver() -> None:
    """Given a serial port and hvc0 on one console, then input follows the guest from one to the other."""
    port = ConsolePort()
    both = Handover(port)
    woken: list[str] = []
    both.first.attach(lambda: woken.append("first"))
    both.later.attach(lambda: woken.append("later"))
    port.feed(b"a")
    assert (both.first.input_left, both.later.input_left, woken) == (1, 0, ["first"])
    both.takes_over = lambda: True
    both.typed()
    assert (both.first.take(9), both.later.take(9), woken) == (b"", b"a", ["first", "later"])
    both.first.transmit(b"one ")
    both.later.transmit(b"two")
    assert port.read(0, 0)[0] == b"one two"


def test_a_log_holds_all_that_was_printed(tmp_path: Path) -> None:
    """Given a log that is closed when the console is, then nothing is missing; a second run is appended."""
    for _ in range(2):
        port = ConsolePort()
        log = ConsoleLog(port, tmp_path / "log")
        for number in range(1000):
            port.transmit(b"%d\n" % number)
        port.close()
        log.close()
    assert (tmp_path / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(1000)) * 2
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ConsoleLog(port, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="nobody reads this pipe"):
        ConsoleLog(port, tmp_path / "pipe")


def test_a_log_waits_for_the_reader_of_a_pipe_but_not_beyond_the_machines_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a reader that is slow, then it gets all; one that stands still does not keep the machine."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    text = b"x" * (1 << 18)  # more than a pipe holds
    port = ConsolePort()
    log = ConsoleLog(port, tmp_path / "pipe")
    port.transmit(text)
    got, deadline = 0, time.monotonic() + 20
    while got < len(text) and time.monotonic() < deadline:
        time.sleep(0.01)
        with suppress(BlockingIOError):
            got += len(os.read(reader, 1 << 14))
    assert got == len(text)
    port.transmit(text)
    port.close()
    before = time.monotonic()
    log.close()
    os.close(reader)
    assert time.monotonic() - before < 10
    assert "its reader stands still" in caplog.text


def test_programs_read_and_type_at_a_socket_of_this_user(tmp_path: Path) -> None:
    """Given two clients of a console's socket, then both read, one types; others may not connect."""
    port = ConsolePort()
    end = ConsoleSocket(port, tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for client in clients:
        client.settimeout(10)
        client.connect(str(tmp_path / "s"))
    deadline = time.monotonic() + 10
    while len(end._clients) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.05)  # both have taken their place in the stream
    port.transmit(b"hello")
    assert [client.recv(5, socket.MSG_WAITALL) for client in clients] == [b"hello"] * 2
    clients[1].sendall(b"typed")
    while port.input_left < 5:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert port.take(9) == b"typed"
    with pytest.raises(ConfigurationError, match="another machine listens"):
        ConsoleSocket(port, tmp_path / "s")
    clients[0].close()
    end.close()
    assert clients[1].recv(1) == b"" and not (tmp_path / "s").exists()
    clients[1].close()
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="a file of that name"):
        ConsoleSocket(port, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"precious"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    ConsoleSocket(port, tmp_path / "stale").close()
