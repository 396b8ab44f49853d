# SPDX-License-Identifier: GPL-2.0-or-later
"""Strangers that connect again and again: they cost a host nothing, and its peers get in."""

import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from coremesh.core.links.door import Door, filter_program
from coremesh.core.links.zmq import ZmqEnds
from linked_hosts import EPOCH, MACHINE, Connect, links_probe, read, written, zmq_end


def flood(endpoint: str, connections: int) -> list[socket.socket]:
    """Try to open so many connections at once; those that came to be, and those still under way."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    opened = []
    for _ in range(connections):
        one = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
        one.setblocking(False)
        one.connect_ex((host.strip("[]"), int(port)))
        opened.append(one)
    return opened


def spent(pid: int) -> tuple[float, float]:
    """Seconds of all its threads on a processor, and the same with those of waiting for one."""
    counts = [
        [int(word) for word in path.read_text().split()]
        for path in Path("/proc").glob(f"{pid}/task/*/schedstat")
    ]
    ran = sum(one[0] for one in counts) / 1e9
    return ran, ran + sum(one[1] for one in counts) / 1e9


FLOODED = """
import resource, sys
from coremesh.core.links.door import LinkEnd
from coremesh.core.links import ZmqEnds
from coremesh.core._native import LinkProbe
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
end = ZmqEnds(1, 2, sys.argv[1])
print(end.endpoint, end.public_key.hex(), end.end.source, flush=True)
endpoint, key, source = sys.stdin.readline().split()
if sys.argv[2] == "anybody":
    end._door.guarded, end._door = False, end._door
    end._door._listening.setsockopt(1, 27, b"\\0" * 4)  # SO_DETACH_FILTER
end.connect({0: LinkEnd(endpoint, bytes.fromhex(key), source)})
probe = LinkProbe(end.open(%d, %d))
probe.start()
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("interface", "who"), [("127.0.0.1", "peers"), ("::1", "peers"), ("127.0.0.1", "anybody")]
)
def test_given_a_flood_of_connections_when_a_peer_comes_then_it_gets_in_and_nothing_was_spent_on_strangers(
    interface: str, who: str
) -> None:
    """And the control: with the door open for anybody, all descriptors are taken, and a CPU is kept busy."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOODED % (MACHINE, EPOCH), interface, who],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        strangers: list[socket.socket] = []
        try:
            assert peer.stdout is not None and peer.stdin is not None

            def say(word: str = "") -> None:
                assert peer.stdin is not None
                peer.stdin.write(word + "\n")
                peer.stdin.flush()

            def taken() -> int:
                return len(list(Path(f"/proc/{peer.pid}/fd").iterdir()))

            theirs = read(peer.stdout.readline())
            strangers += flood(theirs.endpoint, 200)  # before there are peers at all
            end = ZmqEnds(0, 2, interface)
            ours = end.end
            if who == "anybody":  # its peer never answers
                strangers.append(socket.create_server((interface, 0)))
                ours = ours._replace(endpoint=f"tcp://{interface}:{strangers[-1].getsockname()[1]}")
                end.close()
            say(written(ours))
            assert peer.stdout.readline() == "ready\n"
            before = taken()
            strangers += flood(theirs.endpoint, 700)
            time.sleep(0.5)
            then = spent(peer.pid)
            time.sleep(1)
            ran, wanted = (after - earlier for after, earlier in zip(spent(peer.pid), then, strict=True))
            if who == "anybody":
                assert taken() == 256 and wanted > 0.5
                return
            assert taken() <= before + 1 and ran < 0.2
            end.connect({1: theirs})
            probe = links_probe(end)
            assert len(probe.ping(1, 100)) == 100
            strangers += flood(theirs.endpoint, 100)
            assert len(probe.ping(1, 100)) == 100
            assert taken() <= before + 2  # the peer's
            probe.stop()
            end.close()
        finally:
            peer.kill()
            for one in strangers:
                one.close()


def test_given_no_filter_in_the_kernel_when_ends_are_made_then_they_work_and_say_so(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coremesh.core.links.door._SO_ATTACH_FILTER", 12345)
    machine = connect()
    assert not zmq_end(machine, 0).guarded
    assert len(machine.probes[0].ping(1, 20)) == 20


def test_given_every_possible_peer_when_the_filter_is_made_then_the_kernel_takes_it() -> None:
    for address in ("127.0.0.1", "::1"):
        door = Door(ip_address(address))
        sources = [(ip_address(address), 1024 + number) for number in range(63)]
        door.admit(sources)
        assert door.guarded and len(filter_program(sources)) < 8 * 4096  # BPF_MAXINSNS
        door.close()
